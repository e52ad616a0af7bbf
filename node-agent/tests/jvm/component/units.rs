//! The same with a JVM that a systemd unit runs: patches come by a drop-in, and their files are hashed before each start.

use serde::Serialize;
use upfleet_agent::config::ComponentConfig;

use super::*;
use fake::FakeSystemd;

#[path = "../../process/systemd/fake/mod.rs"]
mod fake;

const UNIT: &str = "app.service";
/// What the operator has there already.
const OWN: &str = "-Dshop.name=\\\"a b\\\"";

/// As much of `agent.toml` as a check of the stack needs.
#[derive(Serialize)]
struct File<'a> {
    state_dir: &'a Path,
    run_dir: &'a Path,
    component: [&'a ComponentConfig; 1],
}

/// A component whose unit starts a JVM of `jdk`, on a faked systemd.
fn bench(fake: &FakeSystemd, jdk: &Jdk, jvm: &str) -> Bench {
    let text = format!(
        "[run]\nmode = \"systemd\"\nunit = \"{UNIT}\"\ndrop_in_dir = {:?}\n[health]\nsoak = \"300ms\"\n[[probe]]\n\
         type = \"systemd\"\ninterval = \"20ms\"\n[jvm]\n{jvm}",
        fake.units_dir()
    );
    let bench = Bench::on_bus(&text, Some(fake.address()));
    let small = Jvm::small().join(" ");
    let (java, path) = (jdk.program("java"), &bench.config.path);
    let unit = format!(
        "[Service]\nEnvironment=\"{}={OWN}\"\nExecStart={} {small} -jar {}\nRestart=always\nRestartSec=1ms\n\
         StartLimitBurst=5\nStartLimitIntervalSec=60\n",
        bench.config.jvm.as_ref().unwrap().options_variable,
        java.display(),
        path.display(),
    );
    fake.install(UNIT, &unit);
    let dir = bench.dir.path();
    let (state, run) = (dir.join("state"), dir.join("run"));
    let file = File { state_dir: &state, run_dir: &run, component: [&bench.config] };
    fs::write(dir.join("agent.toml"), toml::to_string(&file).unwrap()).unwrap();
    bench
}

async fn says(fake: &FakeSystemd, text: &str) {
    let wanted = format!("says {text}");
    until(&wanted, async || {
        let journal = fake.journal(UNIT);
        let last = journal.lines().rev().find(|line| line.starts_with("says "));
        last.is_some_and(|line| line == wanted).then_some(())
    })
    .await;
}

fn systemd(test: &str) -> Option<FakeSystemd> {
    let fake = FakeSystemd::start();
    if fake.is_none() {
        crate::support::skip(test, "there is no dbus-daemon");
    }
    fake
}

/// By restart, live on top, through a crash of the JVM that systemd restarts, live back, and back to none.
#[test]
fn a_unit_is_patched_by_restart_and_live_and_back() {
    let test = "a_unit_is_patched_by_restart_and_live_and_back";
    each_jdk(test, |jdk| {
        if let Some(fake) = systemd(test) {
            run(forth_and_back(&fake, jdk));
        }
    });
}

async fn forth_and_back(fake: &FakeSystemd, jdk: &Jdk) {
    // Java 8 knows only the variable that the VM itself reads.
    let variable = if jdk.feature < 9 { "JAVA_TOOL_OPTIONS" } else { "JDK_JAVA_OPTIONS" };
    let bench = bench(fake, jdk, &format!("options_variable = \"{variable}\"\n"));
    let drop_in = fake.units_dir().join(format!("{UNIT}.d/50-upfleet.conf"));
    let (plain, first, second) = (built("888888"), built("PATCH1"), built("PATCH2"));
    let (base, one, two) =
        (base(1, &plain), patch(1, &plain, &plain, &first), patch(2, &plain, &first, &second));
    assert_eq!(bench.apply(&base, &[], false, true).await, Outcome::Succeeded);
    says(fake, "888888").await;
    assert!(!drop_in.exists());
    assert_eq!(bench.apply(&base, &[&one], false, false).await, Outcome::Succeeded);
    says(fake, "PATCH1").await;
    assert_eq!(standing(&bench.inventory().await), [(1, Standing::Proved)]);
    let text = fs::read_to_string(&drop_in).unwrap();
    assert!(text.contains(&format!("{variable}={OWN} ")), "what the operator has stays: {text}");
    let pid = bench.pid().await;
    assert_eq!(bench.apply(&base, &[&two, &one], true, false).await, Outcome::Succeeded);
    says(fake, "PATCH2").await;
    assert_eq!(bench.pid().await, pid, "without a restart");
    bench.crash().await;
    says(fake, "PATCH2").await;
    assert_eq!(bench.inventory().await.drift, None);
    let pid = bench.pid().await;
    assert_eq!(bench.apply(&base, &[&one], true, false).await, Outcome::Succeeded);
    says(fake, "PATCH1").await;
    assert_eq!(bench.pid().await, pid);
    assert_eq!(bench.apply(&base, &[], false, false).await, Outcome::Succeeded);
    says(fake, "888888").await;
    assert!(!drop_in.exists(), "it goes with the patches");
    bench.close().await;
}

/// A jar of the stack was damaged: systemd does not start the JVM with it, whoever asks, and the same stack once more
/// puts it right.
#[test]
fn a_unit_does_not_start_with_a_damaged_patch() {
    let test = "a_unit_does_not_start_with_a_damaged_patch";
    let Some(jdk) = newest_jdk(test) else { return };
    let Some(fake) = systemd(test) else { return };
    run(async {
        let bench = bench(&fake, jdk, "");
        let (plain, first) = (built("888888"), built("PATCH1"));
        let (base, one) = (base(1, &plain), patch(1, &plain, &plain, &first));
        assert_eq!(bench.apply(&base, &[&one], false, true).await, Outcome::Succeeded);
        says(&fake, "PATCH1").await;
        let set = bench.place().stacks().join(fs::read_link(bench.place().current_stack()).unwrap());
        let mut files = fs::read_dir(set).unwrap().map(|entry| entry.unwrap().path());
        let path = files.find(|path| path.to_string_lossy().contains("000001-")).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(fake.operator_stops(UNIT), "done");
        assert_eq!(fake.operator_starts(UNIT), "failed");
        assert_eq!(fake.standing(UNIT).main_pid, 0);
        until("drift", async || bench.inventory().await.drift).await;
        assert_eq!(bench.apply(&base, &[&one], false, false).await, Outcome::Succeeded);
        says(&fake, "PATCH1").await;
        bench.close().await;
    });
}
