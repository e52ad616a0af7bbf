//! Proof of patches that came by the class path: asked of the JVM, and by the files that it holds open.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use upfleet_agent::jvm::{
    proof::{self, Means},
    request::StackView,
};
use upfleet_domain::{
    jvm::{Mechanism, Proof, Standing},
    reason::{Reason, ReasonCode},
};

use crate::{
    patches::{of, patch, stack},
    support::{Jdk, Jvm, PATIENCE, compile, each_jdk, jar, jdks, skip, wait},
};

fn built(a: &str, b: &str) -> PathBuf {
    let a = format!("package app; class A {{ static String say() {{ return \"{a}\"; }} }}");
    let b = format!("package app; class B {{ static String say() {{ return \"{b}\"; }} }}");
    let main = "package app; public class Main { public static void main(String[] x) throws Exception {\
                  System.out.println(\"says \" + A.say()); while (!new java.io.File(\"b\").exists()) Thread.sleep(5);\
                  System.out.println(\"says \" + B.say()); Thread.sleep(100000); } }";
    compile(&[("app/Main.java", main), ("app/A.java", &a), ("app/B.java", &b)])
}

struct App {
    dir: tempfile::TempDir,
    jar: PathBuf,
    stack: StackView,
}

fn app() -> App {
    let base = built("a0", "b0");
    let dir = tempfile::tempdir().unwrap();
    let copied = dir.path().join("app.jar");
    fs::copy(jar(&base, "Main-Class: app.Main\n"), &copied).unwrap();
    let mut layer = patch(1, &base, &built("a1", "b1"));
    let own = dir.path().join("000001.jar");
    fs::copy(&layer.jar, &own).unwrap();
    layer.jar = own;
    App { stack: stack(&[&layer], &[]), jar: copied, dir }
}

fn start(jdk: &Jdk, class_path: &[&Path]) -> Jvm {
    let joined: Vec<_> = class_path.iter().map(|path| path.to_str().unwrap()).collect();
    let mut jvm = Jvm::start(jdk, &["-cp", &joined.join(":"), "app.Main"]);
    jvm.wait_for("says");
    jvm
}

fn prove(jvm: &Jvm, stack: &StackView, attach: bool) -> Result<Proof, Reason> {
    let means = Means { mechanism: Mechanism::ClassPath, journal: None, attach };
    wait(proof::prove(&jvm.target(), stack, &means))
}

#[test]
fn classes_from_a_patch_in_front_are_proved_by_asking_and_armed_by_looking() {
    each_jdk("class path", |jdk| {
        let app = app();
        let mut jvm = start(jdk, &[&app.stack.layers[0].jar, &app.jar]);
        jvm.wait_for("says a1");
        let looked = prove(&jvm, &app.stack, false).unwrap();
        assert_eq!((looked.count(Standing::Armed), looked.count(Standing::Old)), (2, 0), "{looked:#?}");
        let asked = prove(&jvm, &app.stack, true).unwrap();
        let (a, b) = (of(&asked, "app.A")[0], of(&asked, "app.B")[0]);
        assert_eq!((a.standing, b.standing), (Standing::Proved, Standing::Armed), "{asked:#?}");
        assert_eq!(
            (a.mechanism, a.source.as_deref()),
            (Mechanism::ClassPath, app.stack.layers[0].jar.to_str())
        );
        fs::write(jvm.work_dir().join("b"), "").unwrap();
        jvm.wait_for("says b1");
        assert_eq!(prove(&jvm, &app.stack, true).unwrap().count(Standing::Proved), 2);
        // Not restarted yet, it still runs what is gone from its stack; started again, it does not.
        let gone = stack(&[], &[&app.stack.layers[0]]);
        for attach in [true, false] {
            assert_eq!(prove(&jvm, &gone, attach).unwrap().count(Standing::Old), 2);
            let jvm = start(jdk, &[&app.jar]);
            assert_eq!(prove(&jvm, &gone, attach).unwrap().count(Standing::Old), 0);
        }
    });
}

#[test]
fn a_patch_behind_the_application_or_not_there_is_old() {
    each_jdk("order", |jdk| {
        let app = app();
        for order in [vec![app.jar.as_path(), &app.stack.layers[0].jar], vec![app.jar.as_path()]] {
            let mut jvm = start(jdk, &order);
            jvm.wait_for("says a0");
            for attach in [true, false] {
                let proof = prove(&jvm, &app.stack, attach).unwrap();
                assert_eq!((proof.count(Standing::Old), proof.classes.len()), (2, 2), "{proof:#?}");
            }
        }
    });
}

#[test]
fn a_jar_replaced_on_the_disk_raises_an_alarm_and_the_open_one_counts() {
    each_jdk("replaced", |jdk| {
        let app = app();
        let own = &app.stack.layers[0].jar;
        let mut jvm = start(jdk, &[own, &app.jar]);
        jvm.wait_for("says a1");
        assert!(prove(&jvm, &app.stack, false).unwrap().alarms.is_empty());
        let other = app.dir.path().join("other");
        fs::write(&other, "another jar").unwrap();
        fs::rename(&other, own).unwrap();
        let proof = prove(&jvm, &app.stack, false).unwrap();
        let alarm = &proof.alarms[0];
        assert_eq!(
            (alarm.code, alarm.metadata["path"].as_str()),
            (ReasonCode::JarReplaced, own.to_str().unwrap())
        );
        assert_eq!(proof.classes[0].source.as_deref().map(|path| path.contains("(deleted)")), Some(true));
    });
}

#[test]
fn without_attaching_and_without_a_journal_an_agent_is_no_proof() {
    each_jdk("nothing", |jdk| {
        let app = app();
        let jvm = start(jdk, &[&app.jar]);
        let means = Means { mechanism: Mechanism::JavaAgent, journal: None, attach: false };
        let reason = wait(proof::prove(&jvm.target(), &app.stack, &means)).unwrap_err();
        assert_eq!(reason.code, ReasonCode::ProofMissing);
    });
}

/// Without an option about shared classes, which caches do not go together with.
fn plain(jdk: &Jdk, arguments: &[&str]) -> Jvm {
    Jvm::spawn(Command::new(jdk.program("java")).args(["-Xmx64m", "-XX:+UseSerialGC"]).args(arguments))
}

#[test]
fn t22_a_forced_class_cache_never_passes_as_proof() {
    let newest = jdks().iter().filter(|jdk| jdk.feature >= 25);
    let mut ran = false;
    for jdk in newest {
        ran = true;
        let app = app();
        let cache = app.dir.path().join("app.aot");
        let path = app.jar.to_str().unwrap();
        let output = format!("-XX:AOTCacheOutput={}", cache.display());
        let mut training = plain(jdk, &[&output, "-cp", path, "app.Main"]);
        training.wait_for("says");
        fs::write(training.work_dir().join("b"), "").unwrap();
        training.wait_for("says b0");
        let pid = rustix::process::Pid::from_raw(i32::try_from(training.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let begun = std::time::Instant::now();
        while training.is_alive() {
            assert!(begun.elapsed() < PATIENCE, "{}", training.output());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(cache.exists(), "{}", training.output());
        let class_path = format!("{}:{path}", app.stack.layers[0].jar.display());
        let used = format!("-XX:AOTCache={}", cache.display());
        let mut jvm = plain(jdk, &[&used, "-cp", &class_path, "app.Main"]);
        jvm.wait_for("says");
        // A JVM with the flaw runs the old class without a word; one without it runs the patch.
        let asked = prove(&jvm, &app.stack, true).unwrap();
        let standing = of(&asked, "app.A")[0].standing;
        assert_eq!(standing == Standing::Old, jvm.output().contains("says a0"), "{asked:#?}");
        assert!(asked.alarms.iter().any(|alarm| alarm.code == ReasonCode::ClassCache), "{asked:#?}");
        assert_eq!(prove(&jvm, &app.stack, false).unwrap_err().code, ReasonCode::ProofMissing);
    }
    if !ran {
        skip("t22", "no JDK of version 25 or later is installed");
    }
}
