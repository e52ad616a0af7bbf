//! T30–T32: JVMs of other users and in other namespaces, and directories where they see them.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use upfleet_agent::{
    jvm::{Source, Target, Workspace, attach},
    processes,
};
use upfleet_domain::reason::ReasonCode;

use crate::support::{
    AGENT, Jdk, Jvm, PATIENCE, each_jdk, idle, is_root, newest_jdk, obedient_agent, skip, wait,
};

const LIMIT: Duration = Duration::from_secs(30);
const NOBODY: u32 = 65534;

/// Loads the obedient agent out of a workspace and reads its report back; answers the workspace's directory.
async fn round_trip(target: &Target) -> String {
    let files = vec![("agent.jar".to_owned(), Source::File(obedient_agent()))];
    let workspace = Workspace::create(target, files).await.unwrap();
    let dir = Path::new(&workspace.path("x")).parent().unwrap().to_str().unwrap().to_owned();
    assert_eq!(workspace.read("report", 99).await.unwrap(), None);
    let options = format!("write {}", workspace.path("report"));
    attach::load(target, &workspace.path("agent.jar"), &options, LIMIT).await.unwrap();
    assert_eq!(workspace.read("report", 99).await.unwrap().unwrap(), b"done");
    let outside = PathBuf::from(format!("/proc/{}/root{dir}", target.pid()));
    let metadata = fs::symlink_metadata(&outside).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o700);
    assert_eq!(metadata.uid(), target.subject.uid);
    workspace.remove().await.unwrap();
    assert!(!outside.exists());
    dir
}

fn nobody(jdk: &Jdk) -> Jvm {
    let mut command = Command::new(jdk.program("java"));
    command.args(Jvm::small()).arg("-cp").arg(idle()).arg("Idle").uid(NOBODY).gid(NOBODY);
    let mut jvm = Jvm::spawn(&mut command);
    jvm.wait_for("ready");
    jvm
}

#[test]
fn t30_a_jvm_of_another_user_is_attached_to_as_that_user() {
    if !is_root("t30") {
        return;
    }
    each_jdk("t30", |jdk| {
        let mut jvm = nobody(jdk);
        let target = jvm.target();
        assert_eq!((target.subject.uid, target.subject.gid), (NOBODY, NOBODY));
        wait(round_trip(&target));
        jvm.assert_undisturbed();
        let trigger = format!(".attach_pid{}", jvm.pid());
        assert!(!Path::new("/tmp").join(&trigger).exists() && !jvm.work_dir().join(&trigger).exists());
    });
}

#[test]
fn a_workspace_goes_with_its_value() {
    let Some(jdk) = newest_jdk("a workspace") else { return };
    let mut jvm = Jvm::start(jdk, &["-cp", idle().to_str().unwrap(), "Idle"]);
    jvm.wait_for("ready");
    let target = jvm.target();
    wait(round_trip(&target));
    let workspace =
        wait(Workspace::create(&target, vec![("a".into(), Source::Bytes(b"a".to_vec()))])).unwrap();
    let path = PathBuf::from(workspace.path("a"));
    assert_eq!(fs::read(&path).unwrap(), b"a");
    drop(workspace);
    let begun = Instant::now();
    while path.parent().unwrap().exists() {
        assert!(begun.elapsed() < PATIENCE, "it was not removed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn t32_a_link_that_the_jvms_user_put_into_a_workspace_is_not_followed() {
    let Some(jdk) = newest_jdk("t32, workspace") else { return };
    let mut jvm = Jvm::start(jdk, &["-cp", idle().to_str().unwrap(), "Idle"]);
    jvm.wait_for("ready");
    let secret = tempfile::NamedTempFile::new().unwrap();
    let workspace = wait(Workspace::create(&jvm.target(), Vec::new())).unwrap();
    symlink(secret.path(), workspace.path("report")).unwrap();
    let reason = wait(workspace.read("report", 99)).unwrap_err();
    assert_eq!(reason.code, ReasonCode::AttachRefused, "{reason}");
    wait(workspace.remove()).unwrap();
    assert!(secret.path().exists(), "what a link names is not removed with it");
}

/// A JVM as process 1 of its own namespace, with a temporary directory of its own.
fn contained(jdk: &Jdk, prepare: &str) -> (Jvm, Target) {
    // The classes may lie under /tmp, which is about to be covered.
    let classes = idle();
    let script = format!("mount --bind {classes:?} /srv && {prepare} && exec \"$0\" \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--fork", "--pid", "--mount", "--mount-proc", "--kill-child", "sh", "-c", &script]);
    command.arg(jdk.program("java")).args(Jvm::small()).args(["-cp", "/srv", "Idle"]);
    let mut jvm = Jvm::spawn(&mut command);
    jvm.wait_for("ready");
    let inner = processes::descendants(jvm.pid());
    let target = inner.iter().find_map(|process| Target::of(process.pid).ok()).expect("the JVM");
    (jvm, target.with_helper(Path::new(AGENT)))
}

fn can_unshare(test: &str) -> bool {
    if !is_root(test) {
        return false;
    }
    let tried = Command::new("unshare").args(["--fork", "--pid", "--mount", "--mount-proc", "true"]).status();
    let can = tried.is_ok_and(|status| status.success());
    if !can {
        skip(test, "this machine makes no namespaces");
    }
    can
}

#[test]
fn t31_a_jvm_in_namespaces_of_its_own_is_attached_to_from_outside() {
    if !can_unshare("t31") {
        return;
    }
    each_jdk("t31", |jdk| {
        let (mut jvm, target) = contained(jdk, "mount -t tmpfs tmpfs /tmp");
        assert_eq!(target.subject.inner_pid, 1);
        let dir = wait(round_trip(&target));
        assert!(!Path::new(&dir).exists(), "nothing of it is in this namespace");
        assert!(Path::new(&format!("/proc/{}/root/tmp/.java_pid1", target.pid())).exists());
        jvm.assert_undisturbed();
    });
}

#[test]
fn t31_a_jvm_that_can_write_nowhere_is_refused() {
    if !can_unshare("t31, read-only") {
        return;
    }
    let Some(jdk) = newest_jdk("t31, read-only") else { return };
    let (mut jvm, target) = contained(jdk, "mount -t tmpfs tmpfs /tmp && mount -o remount,ro /tmp");
    let reason = wait(Workspace::create(&target, Vec::new())).unwrap_err();
    assert_eq!(reason.code, ReasonCode::AttachRefused, "{reason}");
    // Nor could it make its socket: it is not asked to.
    let reason = wait(attach::command(&target, &["properties"], LIMIT)).unwrap_err();
    assert_eq!(reason.code, ReasonCode::AttachRefused, "{reason}");
    jvm.assert_undisturbed();
}

#[test]
fn t32_a_temporary_directory_that_is_a_link_is_refused() {
    if !can_unshare("t32, /tmp") {
        return;
    }
    let Some(jdk) = newest_jdk("t32, /tmp") else { return };
    let prepare = "mount -t tmpfs tmpfs /mnt && for d in /*; do case $d in /mnt|/tmp) ;; \
        *) if [ -L $d ]; then cp -a $d /mnt/; elif [ -d $d ]; then mkdir /mnt$d && mount --rbind $d /mnt$d; fi ;; \
        esac; done && mkdir /mnt/elsewhere && ln -s elsewhere /mnt/tmp && set -- \"$0\" \"$@\" && exec chroot /mnt \"$@\"";
    let (mut jvm, target) = contained(jdk, prepare);
    let reason = wait(Workspace::create(&target, Vec::new())).unwrap_err();
    assert_eq!(reason.code, ReasonCode::AttachRefused, "{reason}");
    assert!(wait(attach::command(&target, &["properties"], LIMIT)).is_err());
    jvm.assert_undisturbed();
}
