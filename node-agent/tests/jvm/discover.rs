//! Finding JVMs, whatever they are called and however they were started; T44's names of other agents.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::Path,
    process::Command,
    time::Instant,
};

use upfleet_agent::jvm::discover::inventory_with;
use upfleet_domain::jvm::{Attachable, Jvm as Found};

use crate::support::{AGENT, Jdk, Jvm, compile, each_jdk, idle, is_root, jar, newest_jdk};

fn inventory(component: Option<u32>) -> Vec<Found> {
    let components: BTreeMap<String, u32> =
        component.into_iter().map(|pid| ("web".to_owned(), pid)).collect();
    inventory_with(&components, Path::new(AGENT))
}

fn found(pid: u32) -> Found {
    inventory(None).into_iter().find(|jvm| jvm.pid == pid).expect("it is found")
}

fn started(jdk: &Jdk, options: &[&str]) -> Jvm {
    let classes = idle();
    let mut jvm =
        Jvm::start(jdk, &[options, &["-cp", classes.to_str().unwrap(), "Idle", "a secret"]].concat());
    jvm.wait_for("ready");
    jvm
}

#[test]
fn every_jvm_is_found_with_what_it_is() {
    each_jdk("discover", |jdk| {
        let jvm = started(jdk, &["-XX:-UsePerfData", "-Dkey=password"]);
        let found = found(jvm.pid());
        let version = found.java_version.strip_prefix("1.").unwrap_or(&found.java_version);
        assert_eq!(version.split('.').next(), Some(&*jdk.feature.to_string()), "{found:?}");
        assert!(Path::new(&found.java_home).starts_with(&jdk.home), "{found:?}");
        assert_eq!((&*found.main, &found.attachable), ("Idle", &Attachable::Yes));
        assert_eq!(found.class_path, [idle().to_str().unwrap()]);
        assert_eq!((found.inner_pid, found.container, found.component.as_deref()), (None, false, None));
        let text = format!("{found:?}");
        assert!(!text.contains("secret") && !text.contains("password"), "{text}");
        let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        assert!(i64::try_from(age).unwrap() - found.started.0 < 120_000, "{found:?}");
    });
}

#[test]
fn t44_other_agents_are_named_wherever_they_were_given() {
    let Some(jdk) = newest_jdk("t44") else { return };
    let classes = compile(&[(
        "Resident.java",
        "public class Resident { public static void premain(String o) { System.out.println(\"resident\"); } }",
    )]);
    let agent = jar(&classes, "Premain-Class: Resident\n");
    let dir = tempfile::tempdir().unwrap();
    let link = |name: &str| {
        symlink(&agent, dir.path().join(name)).unwrap();
        dir.path().join(name).display().to_string()
    };
    let (direct, tool, by_file) = (link("direct.jar"), link("tool.jar"), link("file.jar"));
    let arguments = dir.path().join("arguments");
    fs::write(&arguments, format!("-javaagent:{by_file}=token=secret\n")).unwrap();
    let mut command = Command::new(jdk.program("java"));
    command.args(Jvm::small()).arg(format!("-javaagent:{direct}")).arg(format!("@{}", arguments.display()));
    command.arg("-cp").arg(idle()).arg("Idle").env("JAVA_TOOL_OPTIONS", format!("-javaagent:{tool}"));
    let mut jvm = Jvm::spawn(&mut command);
    jvm.wait_for("ready");
    assert_eq!(found(jvm.pid()).java_agents, [tool, direct, by_file]);
}

#[test]
fn what_can_not_be_attached_to_says_why() {
    let Some(jdk) = newest_jdk("attachable") else { return };
    let forbidding = started(jdk, &["-XX:+DisableAttachMechanism"]);
    let Attachable::No(why) = found(forbidding.pid()).attachable else { panic!("it forbids it") };
    assert!(why.contains("-XX:+DisableAttachMechanism"), "{why}");
    let deaf = started(jdk, &["-Xrs"]);
    assert_eq!(found(deaf.pid()).attachable, Attachable::Yes);
    fs::remove_file(crate::support::socket_path(deaf.pid())).unwrap();
    let Attachable::No(why) = found(deaf.pid()).attachable else { panic!("it can't be told to listen") };
    assert!(why.contains("-Xrs"), "{why}");
}

#[test]
fn a_launcher_of_another_name_whose_file_is_gone_is_found() {
    let Some(jdk) = newest_jdk("renamed") else { return };
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("bin/our-server");
    fs::create_dir(dir.path().join("bin")).unwrap();
    fs::copy(jdk.program("java"), &program).unwrap();
    symlink(jdk.home.join("lib"), dir.path().join("lib")).unwrap();
    let mut command = Command::new(&program);
    command.args(Jvm::small()).arg("-cp").arg(idle()).arg("Idle");
    let mut jvm = Jvm::spawn(&mut command);
    jvm.wait_for("ready");
    fs::remove_file(&program).unwrap();
    assert_eq!(found(jvm.pid()).main, "Idle");
    assert!(upfleet_agent::jvm::Target::of(jvm.pid()).is_ok());
}

#[test]
fn a_jvm_below_a_script_belongs_to_the_scripts_component() {
    let Some(jdk) = newest_jdk("component") else { return };
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "\"$@\"; true", "sh"]).arg(jdk.program("java")).args(Jvm::small());
    command.arg("-cp").arg(idle()).arg("Idle");
    let mut jvm = Jvm::spawn(&mut command);
    jvm.wait_for("ready");
    let mine: Vec<Found> = inventory(Some(jvm.pid()))
        .into_iter()
        .filter(|jvm| jvm.component.as_deref() == Some("web"))
        .collect();
    assert_eq!(mine.len(), 1, "{mine:?}");
    assert!(mine[0].pid != jvm.pid());
}

/// A JVM's user chooses which argument files the agent reads, so they are read as that user.
#[test]
fn an_argument_file_that_the_jvms_user_can_not_read_is_not_read_for_it() {
    if !is_root("argument file of another") {
        return;
    }
    let Some(jdk) = newest_jdk("argument file of another") else { return };
    let dir = tempfile::Builder::new().permissions(crate::support::mode(0o755)).tempdir().unwrap();
    let file = dir.path().join("arguments");
    fs::write(&file, "-javaagent:/x/secret.jar").unwrap();
    let words = format!("@{}", file.display());
    for (mode, agents) in [(0o600, 0), (0o644, 1)] {
        fs::set_permissions(&file, crate::support::mode(mode)).unwrap();
        // A JVM would not start with a file that it can't read; what it finds on its command line is its own to say.
        let mut command = Command::new(jdk.program("java"));
        command.args(Jvm::small()).arg("-cp").arg(idle()).arg("Idle").arg("--").uid(65534).gid(65534);
        let mut jvm = Jvm::spawn(&mut command);
        jvm.wait_for("ready");
        let mut read = seen(&jvm, &words);
        read.retain(|agent| agent.contains("secret"));
        assert_eq!(read.len(), agents, "mode {mode:o}");
    }
}

/// What the agent reads where this JVM's command line had the word `word`.
fn seen(jvm: &Jvm, word: &str) -> Vec<String> {
    use upfleet_agent::jvm::{discover::Seen, process, started::Started};
    let seen = Seen::new(jvm.pid(), process::mapped(jvm.pid()), Path::new(AGENT)).unwrap();
    let command = ["java", word, "Main"].map(str::to_owned);
    Started::new(&command, &BTreeMap::new(), None, &|path| seen.file(path)).agents()
}

#[test]
fn a_scan_takes_milliseconds() {
    let begun = Instant::now();
    let found = inventory(None);
    let took = begun.elapsed();
    let processes = upfleet_agent::processes::all().len();
    println!("{} JVMs among {processes} processes in {took:?}", found.len());
    // Milliseconds on a machine that does nothing else; the limit is for one that is busy with other tests.
    assert!(took.as_secs() < 5, "{took:?}");
}
