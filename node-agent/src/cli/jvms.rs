//! `upfleet-agent jvms`: the JVMs that run on this node, component or not. Looks by itself; the agent need not run.

use clap::Args;
use upfleet_domain::{
    jvm::{Attachable, Jvm},
    time::Time,
};

use super::{
    Done, Exit, Global, Output,
    render::{columns, span},
    status,
};
use crate::{jvm, transport::now};

#[derive(Debug, Args)]
pub(super) struct Show {
    /// How it is shown
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

impl Show {
    pub(super) fn run(self, global: &Global) -> Done {
        let config = super::load(global)?;
        let supervised = |found: &crate::local::ComponentStatus| {
            Some((found.inventory.component.to_string(), found.inventory.pid?))
        };
        let components = status::gather(&config)?.components.iter().filter_map(supervised).collect();
        let jvms = jvm::inventory(&components);
        match self.output {
            Output::Json => println!("{}", serde_json::to_string_pretty(&jvms)?),
            Output::Table => print!("{}", table(&jvms, now())),
        }
        Ok(Exit::Done)
    }
}

fn table(jvms: &[Jvm], now: Time) -> String {
    if jvms.is_empty() {
        return "No JVMs.\n".to_owned();
    }
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let row = |jvm: &Jvm| {
        let pid = match (jvm.container, jvm.inner_pid) {
            (false, _) => jvm.pid.to_string(),
            (true, None) => format!("{} (container)", jvm.pid),
            (true, Some(inner)) => format!("{} (container, {inner})", jvm.pid),
        };
        vec![
            pid,
            jvm.uid.to_string(),
            or_dash(&jvm.java_version),
            or_dash(&jvm.main),
            jvm.component.clone().unwrap_or_else(|| "-".to_owned()),
            match &jvm.attachable {
                Attachable::Yes => "yes".to_owned(),
                Attachable::No(problem) => format!("no: {problem}"),
            },
            span(now.since(jvm.started)),
        ]
    };
    let headings = ["PID", "UID", "JAVA", "MAIN", "COMPONENT", "ATTACH", "RUNS FOR"];
    columns(&headings, jvms.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_per_jvm() {
        let jvm = Jvm {
            pid: 2444,
            inner_pid: Some(1),
            started: Time(0),
            uid: 1000,
            java_home: "/usr/lib/jvm/x".into(),
            java_version: "17.0.15".into(),
            vendor: String::new(),
            main: "com.acme.Main".into(),
            class_path: vec![],
            java_agents: vec![],
            attachable: Attachable::No("started with -XX:+DisableAttachMechanism".into()),
            container: true,
            component: None,
        };
        assert_eq!(
            table(&[jvm], Time(62_000)),
            "\
PID                  UID   JAVA     MAIN           COMPONENT  ATTACH                                        RUNS FOR
2444 (container, 1)  1000  17.0.15  com.acme.Main  -          no: started with -XX:+DisableAttachMechanism  1m 2s
"
        );
    }
}
