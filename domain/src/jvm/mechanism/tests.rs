//! What fits, and each way that would start cleanly and run the old code.

use std::collections::BTreeMap;

use super::*;
use crate::jvm::command::read;

fn java(line: &str) -> Facts {
    started(line, &[])
}

fn started(line: &str, env: &[(&str, &str)]) -> Facts {
    let argv: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let env: BTreeMap<String, String> = env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let start = match read(&argv, &env, None, &|path| Err(path.to_owned())) {
        Ok(command) => Start::Java(Box::new(command)),
        Err(_) => Start::Script(argv[0].clone()),
    };
    Facts { start, java: Some(17), jar: None, stacks: "/opt/.upfleet/app/stacks".into(), patches: vec![] }
}

fn jar(main_class: &str) -> Facts {
    let jar = MainJar { main_class: Some(main_class.to_owned()), ..MainJar::default() };
    Facts { jar: Some(jar), ..java("java -jar app.jar") }
}

fn boot_jar(launcher: &str) -> Facts {
    jar(&format!("org.springframework.boot.loader.launch.{launcher}"))
}

fn wish(mechanism: Option<Mechanism>) -> Wishes {
    Wishes {
        mechanism,
        java_agents: true,
        module: None,
        strip_caches: false,
        options_variable: "JDK_JAVA_OPTIONS".into(),
    }
}

fn refused(facts: &Facts, mechanism: Mechanism, words: &[&str]) {
    let reason = choose(facts, &wish(Some(mechanism))).expect_err("it would run the old code");
    assert_eq!(reason.code, ReasonCode::MechanismUnfit);
    for word in words {
        assert!(reason.message().contains(word), "{reason} should say {word}");
    }
}

fn accepted(facts: &Facts, mechanism: Mechanism) {
    let choice = choose(facts, &wish(Some(mechanism))).unwrap_or_else(|reason| panic!("{reason}"));
    assert_eq!(choice.mechanism, mechanism);
}

fn patched(facts: Facts, patch: PatchJar) -> Facts {
    Facts { patches: vec![PatchJar { number: 7, ..patch }], ..facts }
}

#[test]
fn the_java_agent_is_chosen_where_it_may_be() {
    let module = java("java -p mods -m com.acme/com.acme.Main");
    for facts in
        [java("java Main"), jar("com.acme.Main"), boot_jar("JarLauncher"), module, java("/opt/start.sh")]
    {
        assert_eq!(choose(&facts, &wish(None)).unwrap().mechanism, Mechanism::JavaAgent);
    }
}

#[test]
fn without_java_agents_the_mechanism_follows_from_the_command() {
    let none = Wishes { java_agents: false, ..wish(None) };
    for (facts, mechanism) in [
        (java("java -cp a.jar Main"), Mechanism::ClassPath),
        (jar("com.acme.Main"), Mechanism::PathingJar),
        (boot_jar("JarLauncher"), Mechanism::PropertiesLauncher),
        (jar("org.springframework.boot.loader.PropertiesLauncher"), Mechanism::PropertiesLauncher),
        (java("java -p mods -m com.acme/com.acme.Main"), Mechanism::PatchModule),
        (Facts { start: Start::Elsewhere, ..java("java M") }, Mechanism::ClassPath),
    ] {
        assert_eq!(choose(&facts, &none).unwrap().mechanism, mechanism, "{facts:?}");
    }
    let reason = choose(&java("/opt/start.sh"), &none).unwrap_err();
    assert_eq!(reason.code, ReasonCode::JvmUnknown);
}

/// T13.
#[test]
fn a_class_path_beside_a_jar_is_refused() {
    refused(&jar("com.acme.Main"), Mechanism::ClassPath, &["-jar app.jar", "java-agent", "pathing-jar"]);
    accepted(&jar("com.acme.Main"), Mechanism::PathingJar);
}

/// T14 and T15.
#[test]
fn spring_boots_loader_needs_its_own_way() {
    let by_class = java("java -cp app.jar org.springframework.boot.loader.JarLauncher");
    for facts in [&boot_jar("JarLauncher"), &by_class] {
        for mechanism in [Mechanism::ClassPath, Mechanism::PathingJar] {
            refused(facts, mechanism, &["JarLauncher", "properties-launcher"]);
        }
        accepted(facts, Mechanism::PropertiesLauncher);
        accepted(facts, Mechanism::JavaAgent);
    }
    let script = Facts { start: Start::Script("/opt/start.sh".into()), ..boot_jar("JarLauncher") };
    refused(&script, Mechanism::PropertiesLauncher, &["ignores -Dloader.path"]);
    refused(&boot_jar("WarLauncher"), Mechanism::PropertiesLauncher, &["WarLauncher"]);
    refused(&jar("com.acme.Main"), Mechanism::PropertiesLauncher, &["not started by Spring Boot"]);
}

/// T19.
#[test]
fn entries_for_later_versions_have_to_be_looked_at() {
    let entry = || Some("META-INF/versions/11/a/B.class".to_owned());
    let plain = PatchJar { versioned: entry(), ..PatchJar::default() };
    let multi = PatchJar { multi_release: true, ..plain.clone() };
    let class = || java("java -cp a.jar Main");
    refused(&patched(class(), plain.clone()), Mechanism::ClassPath, &["Multi-Release: true", "patch 7"]);
    accepted(&patched(class(), multi.clone()), Mechanism::ClassPath);
    let module = || java("java -p mods -m com.acme/com.acme.Main");
    refused(&patched(module(), multi.clone()), Mechanism::PatchModule, &["META-INF/versions/11"]);
    refused(&patched(class(), multi), Mechanism::JavaAgent, &["META-INF/versions/11"]);
}

#[test]
fn a_file_that_is_no_class_needs_the_class_path() {
    let patch = || PatchJar { resource: Some("messages.properties".into()), ..PatchJar::default() };
    let class = patched(java("java -cp a.jar Main"), patch());
    refused(&class, Mechanism::JavaAgent, &["messages.properties", "patch 7"]);
    accepted(&class, Mechanism::ClassPath);
    assert_eq!(choose(&class, &wish(None)).unwrap().mechanism, Mechanism::ClassPath);
    let script = Facts { start: Start::Script("/opt/start.sh".into()), ..class };
    assert_eq!(choose(&script, &wish(None)).unwrap_err().code, ReasonCode::MechanismUnfit);
}

/// T20.
#[test]
fn a_module_has_to_be_known_and_the_right_one() {
    let module = || java("java -p mods -m com.acme/com.acme.Main");
    accepted(&module(), Mechanism::PatchModule);
    refused(&module(), Mechanism::ClassPath, &["com.acme", "patch-module"]);
    let other = PatchJar { module: Some("com.other".into()), ..PatchJar::default() };
    refused(&patched(module(), other), Mechanism::PatchModule, &["com.other"]);
    refused(&java("java -cp a Main"), Mechanism::PatchModule, &["runs no module"]);
    let named = Wishes { module: Some("com.acme".into()), ..wish(Some(Mechanism::PatchModule)) };
    let reason = choose(&java("java -cp a Main"), &named).unwrap_err();
    assert!(reason.message().contains("no module path"), "{reason}");
    assert_eq!(
        choose(&java("java -p m --add-modules com.acme Main"), &named).unwrap().module.unwrap(),
        "com.acme"
    );
    refused(&Facts { java: Some(8), ..module() }, Mechanism::PatchModule, &["Java 8"]);
}

/// T21 and T22.
#[test]
fn class_caches_are_refused_or_overridden() {
    for (line, env, option, with) in [
        ("java -Xshare:on -jar a.jar", &[][..], "-Xshare:on", "-Xshare:auto"),
        ("java -XX:AOTCache=a.aot Main", &[], "-XX:AOTCache=a.aot", "-XX:AOTMode=off"),
        (
            "java Main",
            &[("JAVA_TOOL_OPTIONS", "-XX:AOTCache=b.aot")],
            "-XX:AOTCache=b.aot",
            "-XX:AOTMode=off",
        ),
        (
            "java -XX:AOTMode=on Main",
            &[("JDK_JAVA_OPTIONS", "-XX:AOTCache=c.aot")],
            "c.aot",
            "-XX:AOTMode=off",
        ),
        ("java -XX:AOTCacheOutput=d.aot Main", &[], "AOTCacheOutput", "-XX:AOTMode=off"),
    ] {
        let facts = started(line, env);
        let reason = choose(&facts, &wish(None)).unwrap_err();
        assert_eq!(reason.code, ReasonCode::ClassCache);
        assert!(reason.message().contains(option), "{reason}");
        let strip = Wishes { strip_caches: true, ..wish(None) };
        assert_eq!(choose(&facts, &strip).unwrap().overrides, [with]);
    }
    let strip = Wishes { strip_caches: true, ..wish(None) };
    let last_word = started("java Main", &[("_JAVA_OPTIONS", "-Xshare:on")]);
    assert_eq!(choose(&last_word, &strip).unwrap_err().code, ReasonCode::ClassCache);
    for line in [
        "java -Xshare:on -Xshare:auto M",
        "java -XX:SharedArchiveFile=x.jsa M",
        "java -XX:AOTCache=a -XX:AOTMode=off M",
    ] {
        assert_eq!(choose(&java(line), &wish(None)).unwrap().overrides, [""; 0], "{line}");
    }
}

#[test]
fn names_that_java_takes_apart_are_refused() {
    let below = |stacks: &str, facts: Facts| Facts { stacks: stacks.into(), ..facts };
    refused(&below("/opt/a:b", java("java -cp a M")), Mechanism::ClassPath, &["`:`"]);
    refused(&below("/opt/a:b", java("java -p m -m a/b.C")), Mechanism::PatchModule, &["`:`"]);
    refused(&below("/opt/a,b", boot_jar("JarLauncher")), Mechanism::PropertiesLauncher, &["`,`"]);
    refused(&below("/opt/a=b", java("java M")), Mechanism::JavaAgent, &["`=`"]);
    accepted(&below("/opt/a:b c,d", java("java M")), Mechanism::JavaAgent);
    accepted(&below("/opt/b c,d=e", jar("com.acme.Main")), Mechanism::PathingJar);
    refused(&below("/opt/a:b", jar("com.acme.Main")), Mechanism::PathingJar, &["`:`"]);
}

#[test]
fn scripts_take_what_a_variable_can_say() {
    let script = java("/opt/start.sh");
    refused(&script, Mechanism::ClassPath, &["/opt/start.sh"]);
    refused(&script, Mechanism::PathingJar, &["java -jar"]);
    refused(&Facts { java: Some(8), ..script.clone() }, Mechanism::JavaAgent, &["JAVA_TOOL_OPTIONS"]);
    let tool = Wishes { options_variable: "JAVA_TOOL_OPTIONS".into(), ..wish(None) };
    assert!(choose(&Facts { java: Some(8), ..script }, &tool).is_ok());
}
