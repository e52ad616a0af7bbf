//! Commands before and after, word by word.

use super::*;
use crate::jvm::{
    command::read,
    mechanism::{Facts, MainJar, Wishes, choose},
};

const ARGS: &str = "-Xmx64m com.acme.Main one";

fn set() -> SetPaths {
    SetPaths {
        jars: vec!["/s/10-b.jar".into(), "/s/09-a.jar".into()],
        agent: "/s/agent.jar".into(),
        request: "/s/patches.request".into(),
        arguments: "/s/java.args".into(),
        pathing: "/s/pathing.jar".into(),
        class_path: vec!["/opt/app.jar".into()],
    }
}

struct Case<'a> {
    line: &'a str,
    env: &'a [(&'a str, &'a str)],
    java: u16,
    main_class: Option<&'a str>,
    mechanism: Mechanism,
}

impl Case<'_> {
    fn rewritten(&self) -> Result<Command, Reason> {
        let argv: Vec<String> = self.line.split_whitespace().map(str::to_owned).collect();
        let env: BTreeMap<String, String> =
            self.env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let file = |path: &str| if path == "all" { Ok(ARGS.to_owned()) } else { Err("gone".to_owned()) };
        let start = match read(&argv, &env, Some(self.java), &file) {
            Ok(command) => Start::Java(Box::new(command)),
            Err(_) => Start::Script(argv[0].clone()),
        };
        let jar = MainJar { main_class: self.main_class.map(str::to_owned), ..MainJar::default() };
        let java = Some(self.java);
        let facts = Facts { start, java, jar: Some(jar), stacks: "/s".into(), patches: vec![] };
        let wishes = Wishes {
            mechanism: Some(self.mechanism),
            java_agents: true,
            module: None,
            strip_caches: true,
            options_variable: "JDK_JAVA_OPTIONS".into(),
        };
        let choice = choose(&facts, &wishes)?;
        rewrite(Command { argv, env }, &facts.start, &choice, java, &set(), "JDK_JAVA_OPTIONS")
    }
}

fn check(mechanism: Mechanism, java: u16, main_class: Option<&str>, line: &str, after: &str) {
    let case = Case { line, env: &[], java, main_class, mechanism };
    let command = case.rewritten().unwrap_or_else(|reason| panic!("{line}: {reason}"));
    assert_eq!(command.argv.join(" "), after, "{line}");
    assert_eq!(command.env, BTreeMap::new());
}

#[test]
fn the_java_agent_stands_right_before_what_is_run() {
    let agent = "-XX:+EnableDynamicAgentLoading -javaagent:/s/agent.jar=/s/patches.request";
    for (line, after) in [
        ("java -Xmx1g -cp a.jar Main x", format!("java -Xmx1g -cp a.jar {agent} Main x")),
        ("java -jar app.jar -x", format!("java {agent} -jar app.jar -x")),
        ("java -jar -Da=b app.jar", format!("java -jar -Da=b {agent} app.jar")),
        ("java -p m -m a/b.C x", format!("java -p m {agent} -m a/b.C x")),
        ("java -p m --module=a/b.C x", format!("java -p m {agent} --module=a/b.C x")),
        ("java @all x", format!("java -Xmx64m {agent} com.acme.Main one x")),
        ("java -javaagent:apm.jar Main", format!("java -javaagent:apm.jar {agent} Main")),
        ("java -Xshare:on Main", format!("java -Xshare:on -Xshare:auto {agent} Main")),
        (
            "java -XX:-EnableDynamicAgentLoading Main",
            "java -XX:-EnableDynamicAgentLoading -javaagent:/s/agent.jar=/s/patches.request Main".into(),
        ),
    ] {
        check(Mechanism::JavaAgent, 17, None, line, &after);
    }
    check(Mechanism::JavaAgent, 8, None, "java Main", "java -javaagent:/s/agent.jar=/s/patches.request Main");
}

#[test]
fn the_class_path_is_the_patches_and_then_the_applications() {
    check(Mechanism::ClassPath, 17, None, "java -cp a.jar Main", "java -cp a.jar @/s/java.args Main");
    let list = "-cp /s/10-b.jar:/s/09-a.jar";
    check(
        Mechanism::ClassPath,
        8,
        None,
        "java -cp a.jar:: Main",
        &format!("java -cp a.jar:: {list}:a.jar:.:. Main"),
    );
    check(Mechanism::ClassPath, 8, None, "java Main", &format!("java {list}:. Main"));
    let disabled = "java --disable-@files -cp a Main";
    check(Mechanism::ClassPath, 17, None, disabled, &format!("java --disable-@files -cp a {list}:a Main"));
}

#[test]
fn jars_are_exchanged() {
    check(
        Mechanism::PathingJar,
        17,
        Some("A"),
        "java -Da=b -jar app.jar x",
        "java -Da=b -jar /s/pathing.jar x",
    );
    for package in ["org.springframework.boot.loader.launch", "org.springframework.boot.loader"] {
        check(
            Mechanism::PropertiesLauncher,
            17,
            Some(&format!("{package}.JarLauncher")),
            "java -Da=b -jar app.jar x",
            &format!(
                "java -Da=b -Dloader.path=/s/10-b.jar,/s/09-a.jar -cp app.jar {package}.PropertiesLauncher x"
            ),
        );
    }
    // What JarLauncher had ignored stays without effect.
    check(
        Mechanism::PropertiesLauncher,
        17,
        Some("org.springframework.boot.loader.JarLauncher"),
        "java -Dloader.path=inert -jar app.jar",
        "java -Dloader.path=inert -Dloader.path=/s/10-b.jar,/s/09-a.jar -cp app.jar \
         org.springframework.boot.loader.PropertiesLauncher",
    );
    check(
        Mechanism::PropertiesLauncher,
        17,
        None,
        "java -Dloader.path=lib -cp app.jar org.springframework.boot.loader.PropertiesLauncher",
        "java -Dloader.path=lib -cp app.jar -Dloader.path=/s/10-b.jar,/s/09-a.jar,lib \
         org.springframework.boot.loader.PropertiesLauncher",
    );
}

/// T20: java refuses to start with two of one module.
#[test]
fn one_patch_module_holds_all() {
    let ours = "--patch-module=a=/s/10-b.jar:/s/09-a.jar";
    check(Mechanism::PatchModule, 17, None, "java -p m -m a/b.C", &format!("java -p m {ours} -m a/b.C"));
    for own in ["--patch-module a=x.jar:y", "--patch-module=a=x.jar:y"] {
        let line = format!("java -p m {own} --patch-module z=1 -m a/b.C");
        check(
            Mechanism::PatchModule,
            17,
            None,
            &line,
            &format!("java -p m --patch-module z=1 {ours}:x.jar:y -m a/b.C"),
        );
    }
    let env = &[("JDK_JAVA_OPTIONS", "--patch-module a=x.jar")];
    let case =
        Case { line: "java -p m -m a/b", env, java: 17, main_class: None, mechanism: Mechanism::PatchModule };
    assert_eq!(case.rewritten().unwrap_err().code, ReasonCode::MechanismUnfit);
}

/// T23.
#[test]
fn a_variable_that_is_set_is_appended_to() {
    let env = &[("JDK_JAVA_OPTIONS", "-Xmx1g -Da='b c'"), ("OTHER", "1")];
    let case =
        Case { line: "/opt/start.sh a", env, java: 17, main_class: None, mechanism: Mechanism::JavaAgent };
    let command = case.rewritten().unwrap();
    assert_eq!(command.argv, ["/opt/start.sh", "a"]);
    let agent = "-XX:+EnableDynamicAgentLoading -javaagent:/s/agent.jar=/s/patches.request";
    assert_eq!(command.env["JDK_JAVA_OPTIONS"], format!("-Xmx1g -Da='b c' {agent}"));
    assert_eq!(command.env["OTHER"], "1");
    let direct = Case { line: "java Main", ..case };
    assert_eq!(direct.rewritten().unwrap().env["JDK_JAVA_OPTIONS"], "-Xmx1g -Da='b c'", "left alone");
}

#[test]
fn argument_files_hold_any_name() {
    let options = vec!["-cp".to_owned(), "/a b/p.jar:/c\"d/e.jar:#f".to_owned()];
    assert_eq!(words::of_argument_file(&argument_file(&options)), options);
}
