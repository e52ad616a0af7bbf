//! The Java agent at load time, in every shape of application: what it replaces, what it refuses, and what it reports.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use upfleet_agent::jvm::{
    Target, java,
    proof::{self, Means},
    request::StackView,
};
use upfleet_domain::{
    jvm::{Mechanism, Proof, Standing},
    reason::ReasonCode,
};

use crate::{
    patches::{StackSet, of, patch, stack, standings},
    support::{Jdk, Jvm, PATIENCE, compile, compile_with, each_jdk, jar, jdks, skip, wait},
};

const MAIN: (&str, &str) = (
    "com/acme/Main.java",
    "package com.acme; public class Main { public static void main(String[] a) throws Exception {\
       System.out.println(new Greeter().greet()); System.out.println(\"ready\");\
       while (!new java.io.File(\"go\").exists()) Thread.sleep(5);\
       System.out.println(new Late().word()); System.out.println(\"done\"); Thread.sleep(100000); } }",
);
const GREETER: (&str, &str) = (
    "com/acme/Greeter.java",
    "package com.acme; public class Greeter { String greet() { return \"greeter OLD\"; } }",
);
const LATE: (&str, &str) = (
    "com/acme/Late.java",
    "package com.acme; class Late { String secret() { return \"late OLD\"; } String word() { return secret(); } }",
);
/// With a field, a lambda, an inner class, one derived from the very class that is patched, and a helper of its own
/// that uses what is private to the package.
const GREETER_NEW: (&str, &str) = (
    "com/acme/Greeter.java",
    "package com.acme; public class Greeter { private final java.util.List<String> words = new java.util.ArrayList<>();\
       static class Loud extends Greeter { String mark() { return \"!\"; } }\
       String mark() { return \"?\"; }\
       String greet() { java.util.function.Supplier<String> s = () -> Helper.help(new Late()) + new Loud().mark();\
         Object o = new Object() { public String toString() { return s.get(); } };\
         words.add(\"greeter NEW \" + o); return words.get(0); } }",
);
const HELPER: (&str, &str) = (
    "com/acme/Helper.java",
    "package com.acme; class Helper { static String help(Late late) { return late.secret(); } }",
);
const LATE_NEW: (&str, &str) = (
    "com/acme/Late.java",
    "package com.acme; class Late { String secret() { return \"late NEW\"; } String word() { return secret(); } }",
);

fn base() -> PathBuf {
    compile(&[MAIN, GREETER, LATE])
}

fn richer() -> StackView {
    stack(&[&patch(7, &base(), &compile(&[MAIN, GREETER_NEW, HELPER, LATE]))], &[])
}

fn both() -> StackView {
    stack(&[&patch(7, &base(), &compile(&[MAIN, GREETER_NEW, HELPER, LATE_NEW]))], &[])
}

fn by_journal(set: &StackSet) -> Means {
    Means { mechanism: Mechanism::JavaAgent, journal: Some(set.journal()), attach: false }
}

fn asked() -> Means {
    Means { mechanism: Mechanism::JavaAgent, journal: None, attach: true }
}

fn prove(jvm: &Jvm, stack: &StackView, means: &Means) -> Proof {
    wait(proof::prove(&jvm.target(), stack, means)).unwrap()
}

fn none_old(proof: &Proof) {
    let old: Vec<_> = proof.classes.iter().filter(|class| class.standing == Standing::Old).collect();
    assert!(old.is_empty() && !proof.classes.is_empty(), "{old:#?}");
}

/// Starts it with the stack, and expects both classes to be the patch's.
fn runs_patched(jdk: &Jdk, stack: &StackView, arguments: &[&str]) -> (StackSet, Jvm) {
    let set = StackSet::new(stack);
    let mut jvm = Jvm::start(jdk, &[&[set.option.as_str()], arguments].concat());
    jvm.wait_for("ready");
    assert!(jvm.output().contains("greeter NEW"), "{}\n{}", jvm.output(), set.report());
    fs::write(jvm.work_dir().join("go"), "").unwrap();
    jvm.wait_for("done");
    none_old(&prove(&jvm, stack, &by_journal(&set)));
    (set, jvm)
}

#[test]
fn a_class_path_application_runs_what_adds_members_lambdas_and_classes() {
    each_jdk("agent", |jdk| {
        let stack = richer();
        let (set, jvm) = runs_patched(jdk, &stack, &["-cp", base().to_str().unwrap(), "com.acme.Main"]);
        assert!(jvm.output().contains("greeter NEW late OLD!"), "{}", jvm.output());
        let (told, answered) = (prove(&jvm, &stack, &by_journal(&set)), prove(&jvm, &stack, &asked()));
        assert_eq!(standings(&told), standings(&answered));
        assert_eq!(told.count(Standing::Proved), stack.effective().len(), "{told:#?}");
        let greeter = of(&told, "com.acme.Greeter")[0];
        assert_eq!((greeter.loader.as_str(), greeter.mechanism), ("app", Mechanism::JavaAgent));
        assert_eq!(
            greeter.original,
            stack.layers[0].spec.class("com.acme.Greeter").unwrap().accepts.first().copied()
        );
        assert_eq!(greeter.source.as_deref(), base().to_str());
    });
}

#[test]
fn a_class_is_armed_until_it_loads() {
    each_jdk("armed", |jdk| {
        let stack = both();
        let set = StackSet::new(&stack);
        let arguments =
            [set.option.as_str(), "-cp", base().to_str().unwrap(), "com.acme.Main"].map(str::to_owned);
        let mut jvm = Jvm::start(jdk, &arguments.each_ref().map(String::as_str));
        jvm.wait_for("ready");
        fs::write(jvm.work_dir().join("go"), "").unwrap();
        jvm.wait_for("late NEW");
        assert_eq!(
            of(&prove(&jvm, &stack, &by_journal(&set)), "com.acme.Late")[0].standing,
            Standing::Proved
        );
        // The same JVM without the patched class: T38's half that is about the load-time agent.
        let stack = stack_of_late();
        let set = StackSet::new(&stack);
        let mut jvm =
            Jvm::start(jdk, &[set.option.as_str(), "-cp", base().to_str().unwrap(), "com.acme.Main"]);
        jvm.wait_for("ready");
        assert_eq!(of(&prove(&jvm, &stack, &by_journal(&set)), "com.acme.Late")[0].standing, Standing::Armed);
        assert_eq!(of(&prove(&jvm, &stack, &asked()), "com.acme.Late")[0].standing, Standing::Armed);
        fs::write(jvm.work_dir().join("go"), "").unwrap();
        jvm.wait_for("late NEW");
        assert_eq!(
            of(&prove(&jvm, &stack, &by_journal(&set)), "com.acme.Late")[0].standing,
            Standing::Proved
        );
    });
}

fn stack_of_late() -> StackView {
    stack(&[&patch(8, &base(), &compile(&[MAIN, GREETER, LATE_NEW]))], &[])
}

#[test]
fn a_wrong_base_runs_the_applications_own_class_and_says_so_with_both_digests() {
    each_jdk("base", |jdk| {
        let other = compile(&[
            MAIN,
            LATE,
            (
                "com/acme/Greeter.java",
                "package com.acme; class Greeter { String greet() { return \"another\"; } }",
            ),
        ]);
        let stack = both();
        let set = StackSet::new(&stack);
        let mut jvm =
            Jvm::start(jdk, &[set.option.as_str(), "-cp", other.to_str().unwrap(), "com.acme.Main"]);
        jvm.wait_for("another");
        jvm.wait_for("ready");
        let proof = prove(&jvm, &stack, &by_journal(&set));
        let reason = proof.old().unwrap();
        assert_eq!(reason.code, ReasonCode::ClassOld);
        let greeter = of(&proof, "com.acme.Greeter")[0];
        assert_ne!(greeter.original, Some(greeter.expected));
        assert!(greeter.problem.contains("the patch is for"), "{greeter:?}");
        assert_ne!(of(&proof, "com.acme.Late")[0].standing, Standing::Old);
    });
}

#[test]
fn rubbish_requests_and_jars_let_the_application_start_and_are_no_proof() {
    each_jdk("rubbish", |jdk| {
        let good = both();
        let set = StackSet::new(&good);
        let request = set.path().join("patches.request");
        let text = fs::read_to_string(&request).unwrap();
        let torn = text.replace("end\n", "");
        let wrong = text.replace(&good.effective()[0].patched.unwrap().to_string(), &"0".repeat(64));
        let no_jar = text.replace(good.layers[0].jar.to_str().unwrap(), "/nowhere.jar");
        for bad in ["", "\0\u{7f}rubbish", &torn, &wrong, &no_jar, "upfleet-request\t1\nend\n"] {
            fs::write(&request, bad).unwrap();
            let mut jvm =
                Jvm::start(jdk, &[set.option.as_str(), "-cp", base().to_str().unwrap(), "com.acme.Main"]);
            jvm.wait_for("greeter OLD");
            jvm.wait_for("ready");
            let proved = wait(proof::prove(&jvm.target(), &good, &by_journal(&set)));
            assert_eq!(proved.unwrap_err().code, ReasonCode::ProofMissing, "{bad}");
        }
    });
}

#[test]
fn custom_loaders_each_get_the_patch_and_what_it_adds() {
    each_jdk("loaders", |jdk| {
        let loaders = compile(&[(
            "Loaders.java",
            "import java.net.*; public class Loaders { public static void main(String[] a) throws Exception {\
               for (int i = 0; i < 2; i++) { URLClassLoader l = new URLClassLoader(new URL[] { new URL(\"file:\" + a[0] + \"/\") }, null);\
                 Class<?> c = l.loadClass(\"com.acme.Greeter\"); java.lang.reflect.Constructor<?> k = c.getDeclaredConstructor(); k.setAccessible(true);\
                 java.lang.reflect.Method m = c.getDeclaredMethod(\"greet\"); m.setAccessible(true); System.out.println(m.invoke(k.newInstance())); }\
               System.out.println(\"ready\"); Thread.sleep(100000); } }",
        )]);
        let stack = richer();
        let set = StackSet::new(&stack);
        let (app, classes) = (loaders.to_str().unwrap(), base());
        let mut jvm =
            Jvm::start(jdk, &[set.option.as_str(), "-cp", app, "Loaders", classes.to_str().unwrap()]);
        jvm.wait_for("ready");
        assert_eq!(jvm.output().matches("greeter NEW late OLD!").count(), 2, "{}", jvm.output());
        let proof = prove(&jvm, &stack, &asked());
        none_old(&proof);
        assert_eq!(of(&proof, "com.acme.Greeter").len(), 2);
        assert_eq!(of(&proof, "com.acme.Greeter$Loud").len(), 2, "{proof:#?}");
        assert!(of(&proof, "com.acme.Greeter")[0].loader.starts_with("java.net.URLClassLoader@"));
    });
}

#[test]
fn t17_a_sealed_package_takes_the_patch_and_what_it_adds() {
    each_jdk("t17", |jdk| {
        let sealed = jar(&base(), "Main-Class: com.acme.Main\nSealed: true\n");
        runs_patched(jdk, &richer(), &["-jar", sealed.to_str().unwrap()]);
    });
}

#[test]
fn a_signed_jar_keeps_its_signer() {
    each_jdk("signed", |jdk| {
        let dir = tempfile::tempdir().unwrap();
        let signed = dir.path().join("signed.jar");
        fs::copy(jar(&base(), "Main-Class: com.acme.Main\n"), &signed).unwrap();
        sign(jdk, dir.path(), &signed);
        runs_patched(jdk, &richer(), &["-jar", signed.to_str().unwrap()]);
    });
}

fn sign(jdk: &Jdk, dir: &Path, jar: &Path) {
    let store = dir.join("keys");
    let store = ["-keystore", store.to_str().unwrap(), "-storepass", "changeit"];
    let key = ["-genkeypair", "-alias", "k", "-keyalg", "RSA", "-dname", "CN=test", "-keypass", "changeit"];
    run(Command::new(jdk.program("keytool")).args(key).args(store));
    run(Command::new(jdk.program("jarsigner")).args(store).arg(jar).arg("k"));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
}

fn modern(test: &str, least: u32) -> Vec<&'static Jdk> {
    let modern: Vec<_> = jdks().iter().filter(|jdk| jdk.feature >= least).collect();
    if modern.is_empty() {
        skip(test, &format!("no JDK of version {least} or later is installed"));
    }
    modern
}

#[test]
fn a_named_module_takes_the_patch_and_what_it_adds() {
    for jdk in modern("module", 11) {
        let module = ("module-info.java", "module com.acme.app { }");
        let options = ["--release", "11"];
        let base = compile_with(jdk, &options, &[MAIN, GREETER, LATE, module]);
        let changed = compile_with(jdk, &options, &[MAIN, GREETER_NEW, HELPER, LATE, module]);
        let stack = stack(&[&patch(7, &base, &changed)], &[]);
        let (_set, jvm) =
            runs_patched(jdk, &stack, &["-p", base.to_str().unwrap(), "-m", "com.acme.app/com.acme.Main"]);
        assert!(jvm.output().contains("greeter NEW late OLD!"), "{}", jvm.output());
    }
}

#[test]
fn a_multi_release_jar_is_patched_in_the_version_that_runs() {
    for jdk in modern("mr", 11) {
        let dir = tempfile::tempdir().unwrap();
        let newer = (
            "com/acme/Greeter.java",
            "package com.acme; public class Greeter { String greet() { return \"greeter 9\"; } }",
        );
        let (low, high) = (base(), compile(&[MAIN, newer, LATE]));
        let copy = dir.path().join("classes");
        run(Command::new("cp").arg("-r").arg(&low).arg(&copy));
        let versioned = copy.join("META-INF/versions/9/com/acme");
        fs::create_dir_all(&versioned).unwrap();
        fs::copy(high.join("com/acme/Greeter.class"), versioned.join("Greeter.class")).unwrap();
        let app = jar(&copy, "Main-Class: com.acme.Main\nMulti-Release: true\n");
        // The patch is for what this JVM runs, which is the version's class and not the base entry.
        let stack = stack(&[&patch(7, &high, &compile(&[MAIN, GREETER_NEW, HELPER, LATE]))], &[]);
        runs_patched(jdk, &stack, &["-jar", app.to_str().unwrap()]);
        let other = richer();
        let set = StackSet::new(&other);
        let mut jvm = Jvm::start(jdk, &[set.option.as_str(), "-jar", app.to_str().unwrap()]);
        jvm.wait_for("greeter 9");
        jvm.wait_for("ready");
        assert!(prove(&jvm, &other, &by_journal(&set)).old().is_some());
    }
}

#[test]
fn an_archive_of_shared_classes_does_not_bring_the_old_class_back() {
    for jdk in modern("cds", 13) {
        let dir = tempfile::tempdir().unwrap();
        let app = dir.path().join("app.jar");
        fs::copy(jar(&base(), "Main-Class: com.acme.Main\n"), &app).unwrap();
        let archive = dir.path().join("app.jsa");
        fs::write(dir.path().join("go"), "").unwrap();
        let dump = format!("-XX:ArchiveClassesAtExit={}", archive.display());
        let mut dumping = Jvm::start(jdk, &[&dump, "-cp", app.to_str().unwrap(), "com.acme.Main"]);
        dumping.wait_for("ready");
        fs::write(dumping.work_dir().join("go"), "").unwrap();
        dumping.wait_for("done");
        let begun = std::time::Instant::now();
        let pid = rustix::process::Pid::from_raw(i32::try_from(dumping.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        while dumping.is_alive() {
            assert!(begun.elapsed() < PATIENCE, "{}", dumping.output());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        if dumping.output().contains("base CDS archive is not loaded") {
            skip("cds", &format!("the JDK {} of this place has no archive of its own classes", jdk.feature));
            continue;
        }
        assert!(archive.exists(), "{}", dumping.output());
        let shared = format!("-XX:SharedArchiveFile={}", archive.display());
        runs_patched(jdk, &richer(), &[&shared, "-cp", app.to_str().unwrap(), "com.acme.Main"]);
    }
}

#[test]
fn a_second_stack_in_the_options_changes_nothing_that_is_no_proof() {
    // A JVM whose journal is of another stack is asked, and what it says is what it runs.
    each_jdk("other", |jdk| {
        let first = both();
        let set = StackSet::new(&first);
        let mut jvm =
            Jvm::start(jdk, &[set.option.as_str(), "-cp", base().to_str().unwrap(), "com.acme.Main"]);
        jvm.wait_for("ready");
        let second = stack_of_late();
        let target: Target = jvm.target();
        let by_files = wait(proof::prove(&target, &second, &by_journal(&set))).unwrap_err();
        assert_eq!(by_files.code, ReasonCode::ProofMissing);
        assert!(set.option.contains(java::JAR_NAME));
    });
}
