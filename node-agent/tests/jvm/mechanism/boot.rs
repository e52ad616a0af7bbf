//! Spring Boot: a fat jar with the real loader, and the one class path that reaches into it.
//!
//! The loader comes from `tests/fixtures/fetch`; without it these tests are skipped.

use std::{fs, io::Read as _, path::PathBuf};

use upfleet_agent::exec::jar;
use upfleet_domain::{reason::ReasonCode, state::Layer};

use super::{
    App,
    app::{Shipped, class_bytes, classes, said, sources},
};
use crate::support::{Jdk, each_jdk, skip};

/// The package of the loader's classes, with the loader's file. Java 17 and later for the newer one.
const LOADERS: [(&str, &str, u32); 2] = [
    ("org.springframework.boot.loader.launch", "spring-boot-loader-3.jar", 17),
    ("org.springframework.boot.loader", "spring-boot-loader-2.jar", 8),
];

fn loader(file: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/fixtures").join(file);
    path.exists().then_some(path)
}

/// The application's main class in `BOOT-INF/classes`, and the greeter with its peer in a nested jar.
fn fat_jar(jdk: &Jdk, package: &str, loader: &PathBuf) -> Vec<u8> {
    let built = classes(jdk, "888888");
    let mut archive = zip::ZipArchive::new(fs::File::open(loader).unwrap()).unwrap();
    // The loader looks for the directories themselves.
    let directory = |name: &str| (name.to_owned(), Vec::new());
    let mut entries = ["BOOT-INF/", "BOOT-INF/classes/", "BOOT-INF/lib/"].map(directory).to_vec();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let name = entry.name().unwrap().into_owned();
        if name.ends_with(".class") && name.starts_with("org/") {
            entries.push((name, bytes));
        }
    }
    let nested: Vec<_> = ["demo/Greeter.class", "demo/Peer.class"]
        .into_iter()
        .map(|name| (name.to_owned(), fs::read(built.join(name)).unwrap()))
        .collect();
    entries
        .push(("BOOT-INF/classes/demo/Main.class".into(), fs::read(built.join("demo/Main.class")).unwrap()));
    entries.push(("BOOT-INF/lib/core.jar".into(), jar::write("\r\n", &nested).unwrap()));
    let manifest = format!(
        "Manifest-Version: 1.0\r\nMain-Class: {package}.JarLauncher\r\nStart-Class: demo.Main\r\n\
         Spring-Boot-Classes: BOOT-INF/classes/\r\nSpring-Boot-Lib: BOOT-INF/lib/\r\n\r\n"
    );
    jar::write(&manifest, &entries).unwrap()
}

fn app<'a>(jdk: &'a Jdk, jar: &[u8], jvm: &str) -> (App<'a>, Layer) {
    let mut app = App::new(jdk, "{java} -Down=kept -jar {path} x", jvm);
    app.install_jar(jar);
    let patch = app.greeting_patch(1, "888888", None, "PATCH1");
    (app, patch)
}

fn each_loader(test: &str, mut body: impl FnMut(&Jdk, &str, &[u8])) {
    for (package, file, oldest) in LOADERS {
        let Some(loader) = loader(file) else {
            skip(test, &format!("{file} is not there; tests/fixtures/fetch gets it"));
            continue;
        };
        each_jdk(test, |jdk| {
            if jdk.feature >= oldest {
                body(jdk, package, &fat_jar(jdk, package, &loader));
            }
        });
    }
}

/// T14: `JarLauncher` ignores `-Dloader.path`; the launcher is exchanged, and then it works.
#[test]
fn the_launcher_is_exchanged() {
    each_loader("mechanism::the_launcher_is_exchanged", |jdk, package, jar| {
        let (app, patch) = app(jdk, jar, "mechanism = \"properties-launcher\"");
        let mut forced = app.base();
        let patch_jar = app.patcher.place().version(&patch.release.artifact);
        forced.argv.insert(1, format!("-Dloader.path={}", patch_jar.display()));
        assert!(said(&forced).starts_with("value=888888"), "JarLauncher ignores it");
        let launch = app.apply(&[patch]);
        assert!(launch.argv.contains(&format!("{package}.PropertiesLauncher")), "{launch:?}");
        assert_eq!(said(&launch), "value=PATCH1 own=kept arguments=[x]");
        assert_eq!(app.says(&[]), "value=888888 own=kept arguments=[x]");
    });
}

/// T15: a patch that uses a peer of its package works by the loader's path and by the Java agent; in the parent of the
/// loader it would not find the peer, so that both ways there are refused.
#[test]
fn a_parent_loader_is_refused() {
    each_loader("mechanism::a_parent_loader_is_refused", |jdk, package, jar| {
        for mechanism in ["class-path", "pathing-jar"] {
            let (app, patch) = app(jdk, jar, &format!("mechanism = \"{mechanism}\""));
            let reason = app.fit(&[patch]).unwrap_err();
            assert_eq!(reason.code, ReasonCode::MechanismUnfit, "{reason}");
            assert!(reason.message().contains("JarLauncher"), "{reason}");
        }
        let (app, patch) = self::app(jdk, jar, "");
        let mut forced = app.base();
        let patch_jar = app.patcher.place().version(&patch.release.artifact);
        let both = format!("{}:{}", patch_jar.display(), app.config.path.display());
        let java = forced.argv[0].clone();
        forced.argv = vec![java, "-cp".into(), both, format!("{package}.JarLauncher")];
        let output = super::app::output(&forced);
        assert!(!output.status.success(), "the parent has no peer: {output:?}");
        for jvm in ["", "java_agents = \"forbidden\""] {
            let (app, patch) = self::app(jdk, jar, jvm);
            assert_eq!(app.says(&[patch]), "value=PATCH1 own=kept arguments=[x]", "{jvm}");
        }
    });
}

/// A class of `BOOT-INF/classes` is patched as one of a nested jar is, and a wrong base is seen inside.
#[test]
fn classes_are_found_inside() {
    each_loader("mechanism::classes_are_found_inside", |jdk, _, jar| {
        let (mut app, _) = app(jdk, jar, "");
        let main = class_bytes(&classes(jdk, "888888"), "demo.Main");
        let mut all = sources("888888");
        all[0].1 = all[0].1.replace("value=", "patched=");
        let patched = class_bytes(&super::app::compiled(jdk, &["-encoding", "UTF-8"], &all), "demo.Main");
        let layer = app.patch(2, &[Shipped::over("demo.Main", &main, patched.clone())]);
        assert!(app.says(&[layer]).starts_with("patched=888888"));
        let wrong = app.patch(3, &[Shipped::over("demo.Main", b"another", patched)]);
        let reason = app.fit(&[wrong]).unwrap_err();
        assert!(reason.code == ReasonCode::BaseMismatch && reason.message().contains("BOOT-INF"), "{reason}");
    });
}
