//! T35, T37–T44: a JVM that runs is brought to a stack, and back, all or none.

use std::{fs, path::PathBuf};

use upfleet_agent::jvm::{
    live,
    proof::{self, Means},
    request::StackView,
};
use upfleet_domain::{
    jvm::{Mechanism, Proof, Standing},
    reason::{Reason, ReasonCode},
};

use crate::{
    patches::{StackSet, of, patch, stack},
    support::{Jdk, Jvm, PATIENCE, compile, each_jdk, jar, jdks, skip, wait},
};

/// Says what `A` and `B` say whenever that changes, in one loader or, with directories as arguments, in one each;
/// `C` once there is a file `c`; a further loader once there is a file `loader`. Keeps the longest gap of its loop.
const MAIN: (&str, &str) = (
    "app/Main.java",
    "package app; import java.io.File; import java.util.*; import java.net.*; public class Main {\
       static volatile long gap;\
       static ClassLoader loader(String d) throws Exception { return new URLClassLoader(new URL[] { new URL(\"file:\" + d + \"/\") }, null); }\
       static String say(ClassLoader l, String c) throws Exception { return (String) l.loadClass(\"app.\" + c).getMethod(\"say\").invoke(null); }\
       public static void main(String[] a) throws Exception {\
         List<ClassLoader> ls = new ArrayList<>(); for (String d : a) ls.add(loader(d));\
         if (ls.isEmpty()) ls.add(Main.class.getClassLoader());\
         String last = \"\"; boolean c = false, more = false; long before = System.nanoTime(), warm = before + 500000000L;\
         while (true) { StringBuilder s = new StringBuilder(\"says\");\
           for (ClassLoader l : ls) s.append(' ').append(say(l, \"A\")).append(say(l, \"B\"));\
           if (c |= new File(\"c\").exists()) s.append(' ').append(say(ls.get(0), \"C\"));\
           if (!more && new File(\"loader\").exists()) { more = true; ls.add(loader(a[0])); }\
           if (!s.toString().equals(last)) { last = s.toString(); System.out.println(last); before = System.nanoTime(); }\
           long now = System.nanoTime(); if (now > warm) gap = Math.max(gap, now - before); before = now;\
           if (new File(\"gap\").delete()) { System.out.println(\"gap \" + gap / 1000); gap = 0; } Thread.sleep(1); } } }",
);

fn source(class: &str, says: &str, more: &str) -> (String, String) {
    // Methods enough for the JVM to keep them in another order than the class file.
    let many: String = (0..12).map(|n| format!("int other{n}(int x) {{ return x + {n}; }}")).collect();
    let text = format!(
        "package app; public class {class} {{ {many} public static String say() {{ return \"{says}\"; }} {more} }}"
    );
    (format!("app/{class}.java"), text)
}

fn built(a: &str, b: &str, c: &str, more_of_b: &str) -> PathBuf {
    let sources = [source("A", a, ""), source("B", b, more_of_b), source("C", c, "")];
    let mut all = vec![MAIN];
    all.extend(sources.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    compile(&all)
}

fn base() -> PathBuf {
    built("a0", "b0", "c0", "")
}

fn first() -> StackView {
    stack(&[&patch(1, &base(), &built("a1", "b1", "c1", ""))], &[])
}

fn start(jdk: &Jdk, options: &[&str]) -> Jvm {
    let base = base();
    let mut jvm = Jvm::start(jdk, &[options, &["-cp", base.to_str().unwrap(), "app.Main"]].concat());
    jvm.wait_for("says a0b0");
    jvm
}

fn apply(jvm: &Jvm, stack: &StackView) -> Result<Proof, Reason> {
    wait(live::patch(&jvm.target(), stack, Mechanism::Live, None))
}

fn ask(jvm: &Jvm, stack: &StackView) -> Proof {
    let means = Means { mechanism: Mechanism::Live, journal: None, attach: true };
    wait(proof::prove(&jvm.target(), stack, &means)).unwrap()
}

#[test]
fn t40_a_running_jvm_goes_forth_and_back_and_on() {
    each_jdk("t40", |jdk| {
        let mut jvm = start(jdk, &[]);
        let (one, none) = (first(), stack(&[], &[&first().layers[0]]));
        let proof = apply(&jvm, &one).unwrap();
        jvm.wait_for("says a1b1");
        let a = of(&proof, "app.A")[0];
        assert_eq!((a.standing, a.loader.as_str(), a.mechanism), (Standing::Proved, "app", Mechanism::Live));
        assert_eq!(a.original, one.layers[0].spec.class("app.A").unwrap().accepts.first().copied());
        let proof = apply(&jvm, &none).unwrap();
        wait_until_said(&mut jvm, &["a0b0", "a1b1", "a0b0"]);
        assert!(proof.classes.iter().all(|class| class.number == 0 && class.standing == Standing::Proved));
        assert_eq!(of(&proof, "app.A")[0].expected, a.original.unwrap());
        let second = patch(2, &base(), &built("a2", "b0", "c0", ""));
        let two = stack(&[&one.layers[0], &second], &[]);
        apply(&jvm, &two).unwrap();
        jvm.wait_for("says a2b1");
        let proof = apply(&jvm, &stack(&[&one.layers[0]], &[&second])).unwrap();
        assert_eq!((of(&proof, "app.A")[0].number, proof.count(Standing::Old)), (1, 0));
        wait_until_said(&mut jvm, &["a0b0", "a1b1", "a0b0", "a2b1", "a1b1"]);
        apply(&jvm, &none).unwrap();
        wait_until_said(&mut jvm, &["a0b0", "a1b1", "a0b0", "a2b1", "a1b1", "a0b0"]);
        assert!(ask(&jvm, &one).old().is_some(), "what went back is not in force");
    });
}

fn wait_until_said(jvm: &mut Jvm, lines: &[&str]) {
    let begun = std::time::Instant::now();
    while says(jvm) != lines {
        assert!(jvm.is_alive() && begun.elapsed() < PATIENCE, "{}", jvm.output());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn says(jvm: &Jvm) -> Vec<String> {
    jvm.output().lines().filter_map(|line| line.strip_prefix("says ").map(str::to_owned)).collect()
}

#[test]
fn t35_one_changed_schema_leaves_all_classes_as_they_were() {
    each_jdk("t35", |jdk| {
        let mut jvm = start(jdk, &[]);
        fs::write(jvm.work_dir().join("c"), "").unwrap();
        jvm.wait_for("says a0b0 c0");
        let bad = stack(&[&patch(3, &base(), &built("a3", "b3", "c3", "int added;"))], &[]);
        let reason = apply(&jvm, &bad).unwrap_err();
        assert_eq!(reason.code, ReasonCode::RedefinitionRefused);
        let text = reason.to_string();
        assert!(text.contains("app.B in loader app") && !text.contains("app.A in"), "{text}");
        let after = ask(&jvm, &bad);
        assert_eq!((after.count(Standing::Proved), after.count(Standing::Old)), (0, 3));
        apply(&jvm, &first()).unwrap();
        jvm.wait_for("says a1b1 c1");
        assert_eq!(apply(&jvm, &bad).unwrap_err().code, ReasonCode::RedefinitionRefused);
        assert_eq!(ask(&jvm, &first()).count(Standing::Proved), 3);
        assert_eq!(says(&jvm).last().unwrap(), "a1b1 c1");
    });
}

#[test]
fn t37_every_loader_gets_it_and_so_does_one_that_comes_later() {
    each_jdk("t37", |jdk| {
        let base = base();
        let dir = base.to_str().unwrap();
        let mut jvm = Jvm::start(jdk, &["-cp", dir, "app.Main", dir, dir]);
        jvm.wait_for("says a0b0 a0b0");
        let proof = apply(&jvm, &first()).unwrap();
        assert_eq!(of(&proof, "app.A").len(), 2);
        jvm.wait_for("says a1b1 a1b1");
        fs::write(jvm.work_dir().join("loader"), "").unwrap();
        jvm.wait_for("says a1b1 a1b1 a1b1");
        let proof = ask(&jvm, &first());
        assert_eq!((of(&proof, "app.A").len(), proof.count(Standing::Old)), (3, 0));
    });
}

#[test]
fn t38_a_class_that_is_not_loaded_is_armed_and_then_proved() {
    each_jdk("t38", |jdk| {
        let mut jvm = start(jdk, &[]);
        let journals = jvm.work_dir();
        let stack = first();
        let target = jvm.target();
        let patched = live::patch(&target, &stack, Mechanism::Live, Some(&journals));
        assert_eq!(of(&wait(patched).unwrap(), "app.C")[0].standing, Standing::Armed);
        fs::write(journals.join("c"), "").unwrap();
        jvm.wait_for("says a1b1 c1");
        let means = Means { mechanism: Mechanism::Live, journal: Some(journals), attach: false };
        let told = wait(proof::prove(&jvm.target(), &stack, &means)).unwrap();
        assert_eq!(of(&told, "app.C")[0].standing, Standing::Proved);
        assert_eq!(of(&ask(&jvm, &stack), "app.C")[0].standing, Standing::Proved);
    });
}

#[test]
fn t39_a_frame_that_never_returns_is_reported() {
    each_jdk("t39", |jdk| {
        let looping = |word: &str| {
            let text = format!(
                "package app; public class Loop {{ static volatile boolean end; static String word() {{ return \"{word}\"; }}\
                   public static void main(String[] a) throws Exception {{ System.out.println(\"ready\");\
                     String last = \"\"; while (!end) {{ if (!word().equals(last)) {{ last = word(); System.out.println(last); }} Thread.sleep(1); }} }} }}"
            );
            compile(&[("app/Loop.java", text.as_str())])
        };
        let old = looping("old word");
        let mut jvm = Jvm::start(jdk, &["-cp", old.to_str().unwrap(), "app.Loop"]);
        jvm.wait_for("old word");
        let proof = apply(&jvm, &stack(&[&patch(1, &old, &looping("new word"))], &[])).unwrap();
        jvm.wait_for("new word");
        let frame = proof.alarms.iter().find(|alarm| alarm.code == ReasonCode::OldFrame).unwrap();
        assert!(frame.to_string().contains("thread main in app.Loop.main"), "{frame}");
    });
}

#[test]
fn t41_a_live_patch_that_is_also_in_the_stack_set_is_there_after_a_restart() {
    each_jdk("t41", |jdk| {
        let stack = first();
        let jvm = start(jdk, &[]);
        apply(&jvm, &stack).unwrap();
        drop(jvm);
        let set = StackSet::new(&stack);
        let base = base();
        let mut jvm = Jvm::start(jdk, &[&set.option, "-cp", base.to_str().unwrap(), "app.Main"]);
        jvm.wait_for("says a1b1");
        let means = Means { mechanism: Mechanism::JavaAgent, journal: Some(set.journal()), attach: false };
        let proof = wait(proof::prove(&jvm.target(), &stack, &means)).unwrap();
        assert_eq!((proof.count(Standing::Proved), proof.count(Standing::Armed)), (2, 1));
        // And a resident agent is taken further while it runs, with its journal, and back.
        let second = patch(2, &base, &built("a2", "b0", "c0", ""));
        let two = crate::patches::stack(&[&stack.layers[0], &second], &[]);
        wait(live::patch(&jvm.target(), &two, Mechanism::JavaAgent, None)).unwrap();
        jvm.wait_for("says a2b1");
        let proof = wait(proof::prove(&jvm.target(), &two, &means)).unwrap();
        assert_eq!(of(&proof, "app.A")[0].number, 2);
        let none = crate::patches::stack(&[], &[&stack.layers[0], &second]);
        wait(live::patch(&jvm.target(), &none, Mechanism::JavaAgent, None)).unwrap();
        jvm.wait_for("says a0b0");
    });
}

#[test]
fn t43_a_jvm_that_warns_is_noted_and_one_that_forbids_has_its_own_reason() {
    each_jdk("t43", |jdk| {
        let jvm = start(jdk, &[]);
        let proof = apply(&jvm, &first()).unwrap();
        let noted = proof.alarms.iter().any(|alarm| alarm.code == ReasonCode::DynamicLoading);
        assert_eq!(
            (noted, jvm.output().contains("loaded dynamically")),
            (jdk.feature >= 21, jdk.feature >= 21)
        );
        if jdk.feature >= 9 {
            let jvm = start(jdk, &["-XX:+EnableDynamicAgentLoading"]);
            let proof = apply(&jvm, &first()).unwrap();
            assert!(proof.alarms.iter().all(|alarm| alarm.code != ReasonCode::DynamicLoading));
            let mut jvm = start(jdk, &["-XX:-EnableDynamicAgentLoading"]);
            let reason = apply(&jvm, &first()).unwrap_err();
            assert_eq!(reason.code, ReasonCode::AttachRefused);
            assert!(reason.to_string().contains("EnableDynamicAgentLoading"), "{reason}");
            jvm.assert_undisturbed();
        }
    });
}

/// Another vendor's agent, which adds a field to `app.A` when that loads: a class file of ours stands for its work.
fn other_agent(again: bool) -> PathBuf {
    let text = format!(
        "import java.lang.instrument.*; import java.security.*; public class Apm implements ClassFileTransformer {{\
           static byte[] bytes; public static void premain(String a, Instrumentation i) throws Exception {{\
             bytes = java.nio.file.Files.readAllBytes(java.nio.file.Paths.get(a)); i.addTransformer(new Apm(), {again}); }}\
           public byte[] transform(ClassLoader l, String n, Class<?> c, ProtectionDomain d, byte[] b) {{ return \"app/A\".equals(n) ? bytes : null; }} }}"
    );
    jar(&compile(&[("Apm.java", text.as_str())]), "Premain-Class: Apm\nCan-Retransform-Classes: true\n")
}

#[test]
fn t44_a_class_that_another_agent_changed_is_refused_with_that_agents_name() {
    each_jdk("t44", |jdk| {
        let enhanced = {
            let sources = [source("A", "a-apm", "public static int added;")];
            compile(&[(sources[0].0.as_str(), sources[0].1.as_str())])
        };
        for again in [false, true] {
            let agent = other_agent(again);
            let option = format!("-javaagent:{}={}/app/A.class", agent.display(), enhanced.display());
            let base = base();
            let mut jvm = Jvm::start(jdk, &[&option, "-cp", base.to_str().unwrap(), "app.Main"]);
            jvm.wait_for("says a-apmb0");
            let reason = apply(&jvm, &first()).unwrap_err();
            assert_eq!(reason.code, ReasonCode::RedefinitionRefused, "{reason}");
            let text = reason.to_string();
            assert!(text.contains("another Java agent") && text.contains(agent.to_str().unwrap()), "{text}");
            assert_eq!(says(&jvm).last().unwrap(), "a-apmb0");
        }
    });
}

#[test]
fn a_wrong_base_is_refused_with_both_digests_and_changes_nothing() {
    each_jdk("live base", |jdk| {
        let jvm = start(jdk, &[]);
        let wrong = stack(&[&patch(4, &built("x", "b0", "c0", ""), &built("a4", "b0", "c0", ""))], &[]);
        let reason = apply(&jvm, &wrong).unwrap_err();
        assert_eq!(reason.code, ReasonCode::BaseMismatch);
        assert_eq!(
            reason.metadata["actual"],
            first().layers[0].spec.class("app.A").unwrap().accepts[0].to_string()
        );
        assert_eq!(says(&jvm), ["a0b0"]);
    });
}

#[test]
fn t42_another_version_of_the_agent_takes_over_what_the_first_did() {
    let Some(jdk) = jdks().last() else {
        return skip("t42", "no JDK is installed");
    };
    let mut jvm = start(jdk, &[]);
    apply(&jvm, &first()).unwrap();
    jvm.wait_for("says a1b1");
    // A second implementation: the same bootstrap, and an `Agent` that answers in its own words.
    let newer = compile(&[(
        "upfleet/agent/Agent.java",
        "package upfleet.agent; public class Agent { public static void run(String r, java.lang.instrument.Instrumentation i,\
           boolean s, java.util.Map<String, Object> state) throws Exception {\
             ((java.util.concurrent.atomic.AtomicReference<?>) state.get(\"delegate\")).set(null);\
             System.out.println(\"the second version runs: \" + state.containsKey(\"active\")); } }",
    )]);
    let newer = jar(&newer, "Agent-Class: upfleet.Bootstrap\n");
    let request = jvm.work_dir().join("request");
    fs::write(&request, format!("agent\t{}\n", newer.display())).unwrap();
    let own = jvm.work_dir().join("agent.jar");
    fs::write(&own, upfleet_agent::jvm::java::JAR).unwrap();
    let limit = std::time::Duration::from_secs(20);
    let target = jvm.target();
    let load =
        upfleet_agent::jvm::attach::load(&target, own.to_str().unwrap(), request.to_str().unwrap(), limit);
    wait(load).unwrap();
    jvm.wait_for("the second version runs: true");
    // And the first again, over the second.
    apply(&jvm, &stack(&[], &[&first().layers[0]])).unwrap();
    wait_until_said(&mut jvm, &["a0b0", "a1b1", "a0b0"]);
    assert_eq!(ask(&jvm, &first()).count(Standing::Proved), 0);
}

#[test]
fn a_patch_on_the_class_path_gives_way_to_another_and_to_the_applications_own() {
    each_jdk("class path", |jdk| {
        let (base, one) = (base(), first());
        let class_path = format!("{}:{}", one.layers[0].jar.display(), base.display());
        let mut jvm = Jvm::start(jdk, &["-cp", &class_path, "app.Main"]);
        jvm.wait_for("says a1b1");
        let second = patch(2, &base, &built("a2", "b0", "c0", ""));
        let apply =
            |stack: &StackView| wait(live::patch(&jvm.target(), stack, Mechanism::ClassPath, None)).unwrap();
        apply(&stack(&[&one.layers[0], &second], &[]));
        let proof = apply(&stack(&[], &[&one.layers[0], &second]));
        let a = of(&proof, "app.A")[0];
        assert_eq!((a.number, a.standing), (0, Standing::Proved), "{proof:#?}");
        assert_eq!(Some(&a.expected), second.spec.class("app.A").unwrap().accepts.first());
        jvm.wait_for("says a0b0");
        fs::write(jvm.work_dir().join("c"), "").unwrap();
        jvm.wait_for("says a0b0 c0");
    });
}

/// Loads `app.A` in one new loader after the other, as fast as it goes, and keeps them all.
const BUSY: (&str, &str) = (
    "app/Busy.java",
    "package app; import java.util.*; import java.net.*; public class Busy implements Runnable {\
       static final List<ClassLoader> all = Collections.synchronizedList(new ArrayList<ClassLoader>()); static String dir;\
       public void run() { try { while (!new java.io.File(\"stop\").exists()) {\
         if (all.size() > 3000) { Thread.sleep(1); continue; }\
         ClassLoader l = Main.loader(dir); l.loadClass(\"app.A\"); all.add(l); } } catch (Exception e) { e.printStackTrace(); } }\
       public static void main(String[] a) throws Exception { dir = a[0]; Thread[] ts = new Thread[4];\
         for (int i = 0; i < 4; i++) (ts[i] = new Thread(new Busy())).start();\
         while (all.size() < 100) Thread.sleep(1); System.out.println(\"busy\"); for (Thread t : ts) t.join();\
         Map<String, Integer> counts = new TreeMap<>(); for (ClassLoader l : all) { String s = Main.say(l, \"A\"); counts.put(s, 1); }\
         System.out.println(\"they say \" + counts.keySet()); Thread.sleep(100000); } }",
);

#[test]
fn what_loads_while_a_stack_changes_follows_it_too() {
    each_jdk("race", |jdk| {
        let (name, text) = source("A", "a0", "");
        let changed = source("A", "a1", "");
        let base = compile(&[MAIN, BUSY, (&name, &text)]);
        let stack = stack(&[&patch(1, &base, &compile(&[MAIN, BUSY, (&name, &changed.1)]))], &[]);
        let dir = base.to_str().unwrap();
        let mut jvm = Jvm::start(jdk, &["-cp", dir, "app.Busy", dir]);
        jvm.wait_for("busy");
        let proof = apply(&jvm, &stack).unwrap();
        assert!(of(&proof, "app.A").len() >= 100 && proof.count(Standing::Old) == 0);
        fs::write(jvm.work_dir().join("stop"), "").unwrap();
        jvm.wait_for("they say [a1]");
    });
}

#[test]
fn the_application_hardly_pauses() {
    each_jdk("pause", |jdk| {
        let mut jvm = start(jdk, &[]);
        let mut gaps = vec![];
        for number in 1..6 {
            let stack = stack(&[&patch(number, &base(), &built(&format!("p{number}"), "b9", "c9", ""))], &[]);
            // Until the loop has warmed up its gap is not counted.
            let asked = |jvm: &mut Jvm| {
                let before = jvm.output().matches("gap ").count();
                fs::write(jvm.work_dir().join("gap"), "").unwrap();
                while jvm.output().matches("gap ").count() == before {
                    jvm.wait_for("says");
                    std::thread::yield_now();
                }
                let output = jvm.output();
                output
                    .lines()
                    .filter_map(|line| line.strip_prefix("gap "))
                    .next_back()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            };
            let idle = asked(&mut jvm);
            apply(&jvm, &stack).unwrap();
            jvm.wait_for(&format!("says p{number}"));
            gaps.push((idle, asked(&mut jvm)));
        }
        println!(
            "JDK {}: longest gaps in microseconds, before and during each live patch: {gaps:?}",
            jdk.feature
        );
        assert!(gaps.iter().all(|(_, during)| *during < 5_000_000), "{gaps:?}");
    });
}
