//! JVMs: what runs on the fleet's nodes, component or not.

use upfleet_api::v1;

use super::{Paint, Table, id, since};

/// A row per JVM.
#[must_use]
pub fn jvm_table(jvms: &[v1::NodeJvm], now: i64, wide: bool, paint: Paint) -> String {
    let mut headings = vec!["NODE", "PID", "JAVA", "MAIN", "COMPONENT", "ATTACH", "RUNS FOR"];
    if wide {
        headings.extend(["UID", "VENDOR", "JAVA HOME", "JAVA AGENTS", "CLASS PATH"]);
    }
    let mut table = Table::new(&headings, "No JVMs.");
    for found in jvms {
        let Some(jvm) = &found.jvm else { continue };
        let pid = match (jvm.container, jvm.inner_pid) {
            (false, _) => jvm.pid.to_string(),
            (true, 0) => format!("{} (container)", jvm.pid),
            (true, inner) => format!("{} (container, {inner})", jvm.pid),
        };
        let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let mut row = vec![
            id(&found.node).to_owned(),
            pid,
            or_dash(&jvm.java_version),
            or_dash(&jvm.main),
            or_dash(&jvm.component),
            if jvm.attachable { "yes".to_owned() } else { paint.warn(format!("no: {}", jvm.attach_problem)) },
            since(jvm.start_time.as_ref(), now).trim_end_matches(" ago").to_owned(),
        ];
        if wide {
            row.extend([
                jvm.uid.to_string(),
                or_dash(&jvm.vendor),
                jvm.java_home.clone(),
                or_dash(&jvm.java_agents.join(" ")),
                or_dash(&jvm.class_path.join(":")),
            ]);
        }
        table.row(row);
    }
    table.text(paint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inventory_as_people_see_it() {
        let jvm = |node: &str, pid, main: &str| v1::NodeJvm {
            node: format!("nodes/{node}"),
            jvm: Some(v1::Jvm {
                pid,
                java_version: "17.0.15".into(),
                main: main.into(),
                start_time: Some(pbjson_types::Timestamp { seconds: 0, nanos: 0 }),
                attachable: true,
                ..Default::default()
            }),
        };
        let mut inside = jvm("web-02", 2444, "com.acme.Main");
        let own = inside.jvm.as_mut().unwrap();
        (own.container, own.inner_pid, own.attachable) = (true, 1, false);
        own.attach_problem = "started with -XX:+DisableAttachMechanism".into();
        let mut mine = jvm("web-01", 812, "app.jar");
        mine.jvm.as_mut().unwrap().component = "payments".into();
        assert_eq!(
            jvm_table(&[mine, inside], 4020, false, Paint::PLAIN),
            "\
NODE    PID                  JAVA     MAIN           COMPONENT  ATTACH                                        RUNS FOR
web-01  812                  17.0.15  app.jar        payments   yes                                           1h 07m
web-02  2444 (container, 1)  17.0.15  com.acme.Main  -          no: started with -XX:+DisableAttachMechanism  1h 07m
"
        );
    }
}
