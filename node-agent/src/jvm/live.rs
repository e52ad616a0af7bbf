//! Patching a running JVM: one declarative call that applies, removes and goes back.
//!
//! Every class of the change, in every loader that has it, or none. That a restart keeps it is the stack set's work.

use std::path::Path;

use upfleet_domain::{
    jvm::{Mechanism, Proof},
    reason::{Reason, ReasonCode},
};

use super::{
    Target, java, process,
    report::{Refusal, Report},
    request::{Operation, StackView},
};

/// Brings the JVM to exactly the stack `wanted`, whose `gone` layers go back to the application's own classes.
/// `mechanism` is how this JVM gets its patches when it starts, `journal` the directory, as the JVM sees it, in which
/// it may say from now on what becomes of classes that load later.
///
/// # Errors
/// `REDEFINITION_REFUSED` or `BASE_MISMATCH` where a class stands in the way: then none was changed. Otherwise as
/// attaching fails.
pub async fn patch(
    target: &Target,
    wanted: &StackView,
    mechanism: Mechanism,
    journal: Option<&Path>,
) -> Result<Proof, Reason> {
    let report = java::ask(target, Operation::Set, mechanism, wanted, journal).await?;
    if let Some(reason) = refused(target.pid(), wanted, &report) {
        return Err(reason);
    }
    report.answers(wanted)?;
    let warned = report.java_version.split('.').next().and_then(|major| major.parse().ok());
    let version = report.java_version.clone();
    let mut proof = report.into_proof(target.pid(), mechanism);
    let words = process::command_line(target.pid());
    let allowed = words.iter().any(|word| word == "-XX:+EnableDynamicAgentLoading");
    if warned.is_some_and(|major: u32| major >= 21) && !allowed {
        proof
            .alarms
            .push(Reason::new(ReasonCode::DynamicLoading).with("pid", target.pid()).with("version", version));
    }
    match proof.old() {
        Some(reason) => Err(reason),
        None => Ok(proof),
    }
}

/// Why the change did not take place; it took place whole where there is no reason.
fn refused(pid: u32, wanted: &StackView, report: &Report) -> Option<Reason> {
    let first = report.refusals.first()?;
    let field = |at: usize| first.fields.get(at).map_or("", String::as_str);
    if first.code == "BASE" && !field(4).contains("another Java agent") {
        let class = field(0);
        let accepts = wanted.effective().into_iter().find(|known| known.name == class)?.accepts;
        let accepts: Vec<_> = accepts.iter().map(ToString::to_string).collect();
        return Some(
            Reason::new(ReasonCode::BaseMismatch)
                .with("number", field(2))
                .with("class", class)
                .with("loader", field(1))
                .with("expected", accepts.join(" or "))
                .with("actual", field(3))
                .with("problem", field(4)),
        );
    }
    let mut problems: Vec<String> = report.refusals.iter().map(problem).collect();
    let agents = java_agents(pid);
    if !agents.is_empty() && first.code != "AGENT" {
        problems.push(format!(
            "other Java agents may have changed these classes when they loaded: {}",
            agents.join(", ")
        ));
    }
    Some(Reason::new(ReasonCode::RedefinitionRefused).with("problem", problems.join("; ")))
}

fn problem(refusal: &Refusal) -> String {
    let fields: Vec<_> =
        refusal.fields.iter().map(String::as_str).filter(|field| !field.is_empty()).collect();
    match (refusal.code.as_str(), fields.as_slice()) {
        ("SCHEMA", [class, loader, problem]) => format!("{class} in loader {loader}: {problem}"),
        ("BASE", [class, loader, _, original, problem]) => {
            format!("{class} in loader {loader} has SHA-256 {original}: {problem}")
        }
        _ => fields.join(" "),
    }
}

/// The Java agents of its command line, without Upfleet's own.
fn java_agents(pid: u32) -> Vec<String> {
    let words = process::command_line(pid);
    let agents = words.iter().filter_map(|word| word.strip_prefix("-javaagent:"));
    let names = agents.map(|agent| agent.split('=').next().unwrap_or(agent));
    names.filter(|name| !name.ends_with(java::JAR_NAME)).map(str::to_owned).collect()
}
