//! What people see once a dev fleet is up: what runs where, and what to try. Texts only.

use std::time::Duration;

use super::{
    agent::Components,
    app::{FIRST, OTHERS},
    context::CONTEXT,
    fleet::Fleet,
};
use crate::{cli::render::Paint, version::VERSION};

const DEMO: [(&str, &str); 6] = [
    ("upfleet rollout start --release hello@1.1.0", "every node, one by one"),
    ("upfleet rollout start --release hello@1.2.0", "the canary rolls back by itself, exit 3"),
    ("upfleet rollout cancel ROLLOUT", "a halted rollout waits for a person: you"),
    ("upfleet rollout start --release hello@1.3.0", "healthy at first: caught while it soaks"),
    ("upfleet node show demo-1", "before and after"),
    ("upfleet dev chaos kill-agent demo-3", "in the middle of a rollout, say"),
];

const OWN: [(&str, &str); 3] = [
    ("upfleet release create NAME@VERSION --file FILE", "publish something for your component"),
    ("upfleet rollout start --release NAME@VERSION", "install it everywhere"),
    ("upfleet dev chaos kill-agent demo-3", "in the middle of a rollout, say"),
];

impl Fleet {
    /// What people see once it is up.
    pub(super) fn welcome(&self, took: Duration, paint: Paint) -> String {
        let (first, last) = (&self.nodes[0], &self.nodes[self.nodes.len() - 1]);
        let (app, tries) = match &self.components {
            Components::Demo => {
                let releases: Vec<String> =
                    OTHERS.iter().map(|version| format!("{} {}", version.version, version.about)).collect();
                let app = format!(
                    "App         hello {} on http://127.0.0.1:{} … :{}\nReleases    {}\n",
                    FIRST.version,
                    first.port,
                    last.port,
                    releases.join(" · ")
                );
                (app, DEMO.as_slice())
            }
            Components::Own(_) => {
                let ports = format!("Ports       {{port}} is {} … {}\n", first.port, last.port);
                (ports, OWN.as_slice())
            }
        };
        let root = self.root();
        let mut text = format!(
            "{} dev mode - NOT FOR PRODUCTION (throwaway CA). mTLS is ON, as in production. Ready in {:.1} s.\n\
             Controller  127.0.0.1:{}     Metrics  http://127.0.0.1:{}/metrics\n\
             Agents      {} … {} online (real processes, each with its own directory and certificate)\n\
             {app}\
             Files       {}\n\
             Context     {CONTEXT} is selected. Try, in another terminal:\n",
            paint.bold(format!("upfleet {VERSION}")),
            took.as_secs_f64(),
            self.ports.api,
            self.ports.metrics,
            first.name,
            last.name,
            root.display(),
        );
        for (command, effect) in tries {
            text.push_str(&format!("  {:<46} {}\n", command, paint.dim(format!("# {effect}"))));
        }
        let end = if self.is_kept() { "ends it and keeps the files" } else { "removes everything" };
        text.push_str(&format!("Ctrl-C {end}.\n"));
        text
    }
}
