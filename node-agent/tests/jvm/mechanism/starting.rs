//! Ways of starting: `-cp`, `-jar`, modules, scripts, class caches; names that nobody expects.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use upfleet_domain::{digest::Digest, reason::ReasonCode, state::Layer};

use super::{
    App,
    app::{Shipped, class_bytes, classes, compiled, output, said, sources},
};
use crate::support::{Jdk, each_jdk, jdks, newest_jdk, skip};

const MAIN: &str = "Main-Class: demo.Main\r\n\r\n";

fn jar_app<'a>(jdk: &'a Jdk, jvm: &str) -> (App<'a>, Layer) {
    let mut app = App::new(jdk, "{java} -Down=kept -jar {path} x", jvm);
    app.install(&classes(jdk, "888888"), MAIN);
    let patch = app.greeting_patch(1, "888888", None, "PATCH1");
    (app, patch)
}

/// T13: java itself says why; the class path is refused, the two that work are proposed, and they do.
#[test]
fn a_jar_is_patched_by_agent_or_pathing_jar() {
    each_jdk("mechanism::a_jar_is_patched_by_agent_or_pathing_jar", |jdk| {
        let (app, patch) = jar_app(jdk, "mechanism = \"class-path\"");
        let patch_jar = app.patcher.place().version(&patch.release.artifact);
        let mut forced = app.base();
        forced.argv.splice(1..1, ["-cp".to_owned(), patch_jar.display().to_string()]);
        assert!(said(&forced).starts_with("value=888888"), "java ignores -cp beside -jar");
        let reason = app.fit(std::slice::from_ref(&patch)).unwrap_err();
        assert_eq!(reason.code, ReasonCode::MechanismUnfit, "{reason}");
        assert!(reason.message().contains("java-agent") && reason.message().contains("pathing-jar"));
        for jvm in ["", "mechanism = \"pathing-jar\"", "java_agents = \"forbidden\""] {
            let (app, patch) = jar_app(jdk, jvm);
            for (layers, value) in [(&[][..], "888888"), (&[patch], "PATCH1"), (&[], "888888")] {
                assert_eq!(app.says(layers), format!("value={value} own=kept arguments=[x]"), "{jvm}");
            }
        }
    });
}

/// Blanks, percent signs and letters that are none in ASCII. A colon parts names in lists, and for `java -jar` as well.
#[test]
fn names_that_nobody_expects() {
    let Some(jdk) = newest_jdk("mechanism::names_that_nobody_expects") else { return };
    let name = "a b,c%20#ü";
    for jvm in ["", "mechanism = \"pathing-jar\""] {
        let jdk_command = "{java} -jar {path}".replace("{java}", &jdk.program("java").display().to_string());
        let mut app = App::in_directory(jdk, "x", &jdk_command, "", jvm);
        let home = app.home().parent().unwrap().join(name);
        fs::rename(app.home(), &home).unwrap();
        app.config.path = home.join("app.jar");
        app.patcher = upfleet_agent::jvm::Patcher::new(app.scratch(), &app.config).unwrap();
        app.install(&classes(jdk, "888888"), MAIN);
        let patch = app.greeting_patch(1, "888888", None, "PATCH1");
        let mut launch = app.apply(&[patch]);
        launch.env.insert("LC_ALL".into(), "C.UTF-8".into());
        assert!(said(&launch).starts_with("value=PATCH1"), "{jvm}");
    }
    let mut app =
        App::in_directory(jdk, "a:b", "{java} -cp {path} demo.Main", "", "mechanism = \"class-path\"");
    app.install(&classes(jdk, "888888"), "\r\n");
    let patch = app.greeting_patch(1, "888888", None, "PATCH1");
    let reason = app.fit(&[patch]).unwrap_err();
    assert!(reason.code == ReasonCode::MechanismUnfit && reason.message().contains("`:`"), "{reason}");
}

/// A modular build of the application, as the directory `demo` below a module path.
fn modular(jdk: &Jdk, greeting: &str) -> PathBuf {
    let mut all = sources(greeting);
    all.push(("module-info.java", "module demo { exports demo; }".to_owned()));
    compiled(jdk, &["--release", "9", "-Xlint:-options"], &all)
}

fn modular_patch(app: &mut App<'_>, number: u32, class: &str, bytes: Vec<u8>, original: &[u8]) -> Layer {
    app.patch_with(number, &[Shipped::over(class, original, bytes)], "\r\n", |spec| {
        spec.module = Some("demo".to_owned());
    })
}

/// T20: two patches of one module are in one option, behind them what the operator had; a wrong name is refused.
#[test]
fn modules_are_patched_by_one_option() {
    each_jdk("mechanism::modules_are_patched_by_one_option", |jdk| {
        if jdk.feature < 9 {
            return;
        }
        let base = modular(jdk, "888888");
        let own = tempfile::tempdir().unwrap();
        let command = format!(
            "{{java}} -Down=kept -p {} --patch-module demo={} -m demo/demo.Main {{path}}",
            base.display(),
            own.path().display()
        );
        for jvm in ["", "mechanism = \"patch-module\"", "java_agents = \"forbidden\""] {
            let mut app = App::new(jdk, &command, jvm);
            app.install_jar(b"of no use here");
            let read = |dir: &PathBuf, class: &str| class_bytes(dir, class);
            let greeter = modular_patch(
                &mut app,
                2,
                "demo.Greeter",
                read(&modular(jdk, "PATCH2"), "demo.Greeter"),
                &read(&base, "demo.Greeter"),
            );
            // Another class, so that both have to be in force at once.
            let louder = |dir: &str| {
                let mut all = sources("888888");
                all.push(("module-info.java", "module demo { exports demo; }".to_owned()));
                all[1].1 = all[1].1.replace("return s;", &format!("return s + \"{dir}\";"));
                compiled(jdk, &["--release", "9", "-Xlint:-options"], &all)
            };
            let peer = modular_patch(
                &mut app,
                1,
                "demo.Peer",
                read(&louder("!"), "demo.Peer"),
                &read(&base, "demo.Peer"),
            );
            assert!(app.says(&[]).starts_with("value=888888 own=kept"), "{jvm}");
            assert!(
                app.says(&[greeter.clone(), peer.clone()]).starts_with("value=PATCH2! own=kept"),
                "{jvm}"
            );
            assert!(app.says(&[peer]).starts_with("value=888888! "), "{jvm}");
            assert!(app.says(&[greeter]).starts_with("value=PATCH2 "), "{jvm}");
        }
        let mut app = App::new(jdk, &command, "mechanism = \"patch-module\"");
        app.install_jar(b"of no use here");
        let bytes = class_bytes(&modular(jdk, "X"), "demo.Greeter");
        let original = class_bytes(&base, "demo.Greeter");
        let wrong = app.patch_with(3, &[Shipped::over("demo.Greeter", &original, bytes)], "\r\n", |spec| {
            spec.module = Some("demi".to_owned());
        });
        let reason = app.fit(&[wrong]).unwrap_err();
        assert!(reason.code == ReasonCode::MechanismUnfit && reason.message().contains("demi"), "{reason}");
    });
}

/// T21: with `-Xshare:on` a JVM that is patched does not start; refused, or overridden where the operator says so.
#[test]
fn a_required_class_data_archive_is_refused_or_overridden() {
    let test = "mechanism::a_required_class_data_archive_is_refused_or_overridden";
    let Some(jdk) = newest_jdk(test) else { return };
    let app = |jvm: &str| {
        let mut app = App::new(jdk, "{java} -Xshare:on -cp {path} demo.Main", jvm);
        app.install(&classes(jdk, "888888"), "\r\n");
        let patch = app.greeting_patch(1, "888888", None, "PATCH1");
        (app, patch)
    };
    let (refusing, patch) = app("");
    let reason = refusing.fit(&[patch]).unwrap_err();
    assert!(reason.code == ReasonCode::ClassCache && reason.message().contains("-Xshare:on"), "{reason}");
    for jvm in ["caches = \"strip\"", "caches = \"strip\"\nmechanism = \"class-path\""] {
        let (app, patch) = app(jvm);
        assert!(app.says(&[patch]).starts_with("value=PATCH1"), "{jvm}");
    }
}

/// T22: up to 25.0.3 an AOT cache runs the old class although the patch is in front. Refused, or overridden.
#[test]
fn an_aot_cache_is_refused_or_overridden() {
    let test = "mechanism::an_aot_cache_is_refused_or_overridden";
    let Some(jdk) = jdks().iter().find(|jdk| jdk.feature >= 25) else {
        return skip(test, "no JDK 25 is installed");
    };
    let command = "{java} -XX:AOTCache={dir}/app.aot -cp {path} demo.Main";
    let app = |jvm: &str| {
        let mut app = App::new(jdk, command, jvm);
        app.install(&classes(jdk, "888888"), "\r\n");
        let mut training = app.base();
        let cache = app.home().join("app.aot").display().to_string();
        training.argv[1] = format!("-XX:AOTCacheOutput={cache}");
        let trained = output(&training);
        assert!(trained.status.success() && app.home().join("app.aot").exists(), "{trained:?}");
        let patch = app.greeting_patch(1, "888888", None, "PATCH1");
        (app, patch)
    };
    let class_path = "mechanism = \"class-path\"\njava_agents = \"forbidden\"";
    let (refusing, patch) = app(class_path);
    let reason = refusing.fit(std::slice::from_ref(&patch)).unwrap_err();
    assert!(reason.code == ReasonCode::ClassCache && reason.message().contains("AOTCache"), "{reason}");
    let jar = refusing.patcher.place().version(&patch.release.artifact);
    let mut forced = refusing.base();
    let at = forced.argv.iter().position(|word| word == "-cp").unwrap() + 1;
    forced.argv[at] = format!("{}:{}", jar.display(), forced.argv[at]);
    println!("{test}: forced past the refusal, java says {}", said(&forced));
    for jvm in [class_path, ""] {
        let (app, patch) = app(&format!("caches = \"strip\"\n{jvm}"));
        assert!(app.says(&[patch]).starts_with("value=PATCH1"), "{jvm}");
        assert!(app.says(&[]).starts_with("value=888888"), "{jvm}");
    }
}

/// T23: what the operator had in the variable stays, in front, and is alone again after the way back.
#[test]
fn a_scripts_variable_is_appended_to_and_restored() {
    each_jdk("mechanism::a_scripts_variable_is_appended_to_and_restored", |jdk| {
        let variable = if jdk.feature < 9 { "JAVA_TOOL_OPTIONS" } else { "JDK_JAVA_OPTIONS" };
        let run = format!("env = {{ {variable} = \"-Down='the operator'\", A = \"b\" }}");
        let jvm = format!("options_variable = \"{variable}\"");
        let mut app = App::in_directory(jdk, "app", "{dir}/start {path}", &run, &jvm);
        app.install(&classes(jdk, "888888"), MAIN);
        let script = app.home().join("start");
        let java = jdk.program("java");
        fs::write(&script, format!("#!/bin/sh\nexec {} -cp \"$1\" demo.Main\n", java.display())).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let patch = app.greeting_patch(1, "888888", None, "PATCH1");
        let before = app.base();
        let launch = app.apply(&[patch]);
        assert!(launch.env[variable].starts_with("-Down='the operator' "), "{:?}", launch.env);
        assert_eq!(launch.argv, before.argv);
        assert!(said(&launch).starts_with("value=PATCH1 own=the operator "), "{}", said(&launch));
        let after = app.apply(&[]);
        assert_eq!(after, before);
        assert!(said(&after).starts_with("value=888888 own=the operator "));
    });
}

/// Original bytes in front decide, and a class that the application has elsewhere is refused: T06 on real files.
#[test]
fn another_base_is_refused_with_both_digests() {
    let Some(jdk) = newest_jdk("mechanism::another_base_is_refused_with_both_digests") else { return };
    let mut app = App::new(jdk, "{java} -cp {path} demo.Main", "");
    app.install(&classes(jdk, "999999"), "\r\n");
    let patch = app.greeting_patch(1, "888888", None, "PATCH1");
    let reason = app.fit(&[patch]).unwrap_err();
    assert_eq!(reason.code, ReasonCode::BaseMismatch, "{reason}");
    for greeting in ["888888", "999999"] {
        let digest = Digest::of(&class_bytes(&classes(jdk, greeting), "demo.Greeter"));
        assert!(reason.message().contains(&digest.to_string()), "{reason}");
    }
    assert!(said(&app.base()).starts_with("value=999999"));
}
