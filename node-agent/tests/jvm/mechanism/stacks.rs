//! The order of a stack, going back, damage, and what somebody else puts beside it.

use std::{fs, path::Path, time::Duration};

use rustix::process::Signal;
use upfleet_agent::{
    exec::stack,
    processes::{Identity, descendants},
    shim::spec::{self, RECORD, Record},
    supervise::{ProcessStateInfo, Supervisor, shim_dir},
};
use upfleet_domain::{jvm::Mechanism, reason::ReasonCode};

use super::{
    App,
    app::{Shipped, class_bytes, classes},
};
use crate::support::{AGENT, each_jdk, newest_jdk, wait};

const CLASS_PATH: &str = "mechanism = \"class-path\"\njava_agents = \"forbidden\"";

/// T01, T02 and T03: 10 before 9, the one taken from the middle, back to none.
#[test]
fn the_highest_number_is_in_force() {
    each_jdk("mechanism::the_highest_number_is_in_force", |jdk| {
        let command = "{java} -cp {path} -Down=kept demo.Main a";
        for jvm in ["", CLASS_PATH] {
            let mut app = App::new(jdk, command, jvm);
            app.install(&classes(jdk, "888888"), "\r\n");
            let nine = app.greeting_patch(9, "888888", None, "PATCH9");
            let ten = app.greeting_patch(10, "888888", Some("PATCH9"), "PATCH10");
            let says = |value: &str| format!("value={value} own=kept arguments=[a]");
            assert_eq!(app.says(&[]), says("888888"));
            assert_eq!(app.says(std::slice::from_ref(&nine)), says("PATCH9"));
            assert_eq!(app.says(&[ten.clone(), nine.clone()]), says("PATCH10"));
            assert_eq!(app.says(&[ten]), says("PATCH10"));
            assert_eq!(app.says(&[nine]), says("PATCH9"));
            assert_eq!(app.says(&[]), says("888888"));
        }
    });
}

/// T04: a jar that is cut, empty or gone after it was applied. The shim starts nothing, whoever asks.
#[test]
fn a_damaged_stack_starts_nothing() {
    let Some(jdk) = newest_jdk("mechanism::a_damaged_stack_starts_nothing") else { return };
    let mut app = App::new(jdk, "{java} -Xmx32m -cp {path} demo.Main", CLASS_PATH);
    app.install(&classes(jdk, "888888"), "\r\n");
    let nine = app.greeting_patch(9, "888888", None, "PATCH9");
    let supervisor = Supervisor::with_program(app.scratch(), &app.config, Path::new(AGENT));
    let _guard = Shim(shim_dir(app.scratch(), &app.config.name));
    let launch = app.apply(std::slice::from_ref(&nine));
    let set = stack::current(app.patcher.place()).unwrap().unwrap();
    let jar = set.files.iter().find(|(name, _)| name.ends_with(".jar")).unwrap().0.clone();
    for name in [jar.as_str(), "java.args"] {
        let path = set.dir.join(name);
        let whole = fs::read(&path).unwrap();
        for damage in [Some(&whole[..whole.len() / 2]), Some(&[][..]), None] {
            match damage {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let fault = wait(supervisor.start(&launch)).unwrap_err();
            assert!(fault.reason.message().contains(name), "{fault}");
            let reason = app.patcher.launch(app.base(), std::slice::from_ref(&nine)).unwrap_err();
            assert_eq!(reason.code, ReasonCode::StackDamaged, "{reason}");
        }
        fs::write(&path, whole).unwrap();
    }
    let info = wait(supervisor.start(&launch)).unwrap();
    assert_eq!(info.stack, launch.stack);
    let said = wait(async {
        for _ in 0..600 {
            let lines = supervisor.launch_tail(10).await;
            if let Some(line) = lines.into_iter().find(|line| line.starts_with("value=")) {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it says nothing: {:?}", supervisor.process().await)
    });
    assert!(said.starts_with("value=PATCH9"), "{said}");
    wait(supervisor.stop()).unwrap();
    assert!(matches!(wait(supervisor.process()).unwrap(), ProcessStateInfo::Stopped { .. }));
}

/// Ends a shim and what it has started.
struct Shim(std::path::PathBuf);

impl Drop for Shim {
    fn drop(&mut self) {
        let Ok(Record { shim: Some(shim), .. }) = spec::read(&self.0.join(RECORD)) else { return };
        let left: Vec<Identity> = descendants(shim.pid);
        for process in std::iter::once(shim).chain(left) {
            let _ = process.signal(Signal::KILL);
        }
    }
}

/// A jar that somebody else drops into the directories is never on the path.
#[test]
fn a_dropped_jar_is_on_no_path() {
    let Some(jdk) = newest_jdk("mechanism::a_dropped_jar_is_on_no_path") else { return };
    for jvm in ["", CLASS_PATH] {
        let mut app = App::new(jdk, "{java} -cp {path} demo.Main", jvm);
        app.install(&classes(jdk, "888888"), "\r\n");
        let nine = app.greeting_patch(9, "888888", None, "PATCH9");
        let evil = app.greeting_patch(999_999, "888888", Some("PATCH9"), "EVIL");
        app.apply(std::slice::from_ref(&nine));
        let bytes = fs::read(app.patcher.place().version(&evil.release.artifact)).unwrap();
        let set = stack::current(app.patcher.place()).unwrap().unwrap();
        for dir in [set.dir.clone(), app.patcher.place().stacks(), app.home().to_owned()] {
            for name in ["999999-evil.jar", "0.jar"] {
                fs::write(dir.join(name), &bytes).unwrap();
            }
        }
        let launch = app.patcher.launch(app.base(), std::slice::from_ref(&nine)).unwrap();
        assert!(super::app::said(&launch).starts_with("value=PATCH9"));
    }
}

/// Who starts the JVM himself refers to the argument file of the set in force, and so do his next starts.
#[test]
fn an_operators_own_script_follows_the_link() {
    each_jdk("mechanism::an_operators_own_script_follows_the_link", |jdk| {
        if jdk.feature < 9 {
            return crate::support::skip("an operator's script with JDK 8", "Java 8 knows no argument files");
        }
        for (jvm, mechanism) in [("", Mechanism::JavaAgent), (CLASS_PATH, Mechanism::ClassPath)] {
            let mut app = App::new(jdk, "", jvm);
            app.install(&classes(jdk, "888888"), "\r\n");
            let nine = app.greeting_patch(9, "888888", None, "PATCH9");
            let script = format!("@{}/java.args", app.patcher.place().current_stack().display());
            let start = || {
                let mut launch = app.base();
                let java = jdk.program("java").display().to_string();
                launch.argv = vec![java, "-cp".into(), app.config.path.display().to_string()];
                launch.argv.extend([script.clone(), "demo.Main".into()]);
                super::app::said(&launch)
            };
            for (layers, value) in
                [(&[][..], "888888"), (std::slice::from_ref(&nine), "PATCH9"), (&[], "888888")]
            {
                app.fit(layers).unwrap();
                app.switch(layers);
                assert!(start().starts_with(&format!("value={value}")), "{}", start());
            }
            app.switch(&[nine]);
            assert_eq!(app.patcher.mechanism().unwrap(), Some(mechanism));
        }
    });
}

/// T36, on the node: what comes or goes has to be possible in a running JVM; what stays does not matter.
#[test]
fn a_live_change_needs_patches_that_can_be_live() {
    let Some(jdk) = newest_jdk("mechanism::a_live_change_needs_patches_that_can_be_live") else { return };
    let app = |jvm: &str| {
        let mut app = App::new(jdk, "{java} -cp {path} demo.Main", jvm);
        app.install(&classes(jdk, "888888"), "\r\n");
        let original = class_bytes(&classes(jdk, "888888"), "demo.Greeter");
        let shipped = |greeting| {
            Shipped::over("demo.Greeter", &original, class_bytes(&classes(jdk, greeting), "demo.Greeter"))
        };
        let fixed = app.patch_with(9, &[shipped("PATCH9")], "\r\n", |spec| {
            spec.live.possible = false;
            spec.live.problems = vec!["demo.Greeter adds the method total()".to_owned()];
        });
        let later = app.greeting_patch(10, "888888", Some("PATCH9"), "PATCH10");
        (app, fixed, later)
    };
    let (app_, fixed, later) = app("");
    assert_eq!(app_.fit_live(std::slice::from_ref(&later)), Ok(vec![]));
    let reason = app_.fit_live(std::slice::from_ref(&fixed)).unwrap_err();
    assert!(reason.code == ReasonCode::LiveImpossible && reason.message().contains("total()"), "{reason}");
    app_.switch(std::slice::from_ref(&fixed));
    assert!(app_.fit_live(&[later.clone(), fixed.clone()]).is_ok(), "it stays");
    assert_eq!(
        app_.fit_live(std::slice::from_ref(&later)).unwrap_err().code,
        ReasonCode::LiveImpossible,
        "it goes"
    );
    for jvm in ["live = false", "java_agents = \"forbidden\""] {
        let (app, _, later) = app(jvm);
        let reason = app.fit_live(&[later]).unwrap_err();
        assert_eq!(reason.code, ReasonCode::LiveForbidden, "{reason}");
    }
}
