//! JVMs and what they say is in force.

use upfleet_domain::{
    jvm::{Attachable, ClassProof, Jvm, Mechanism, Proof, Standing},
    reason::Reason,
};

use super::{Result, all, each, field, invalid, optional, required, time, timestamp};
use crate::v1;

/// The most classes of a proof that are sent: those that run old code first.
pub const MAX_CLASSES: usize = 500;
/// The most JVMs of a node that are sent.
pub const MAX_JVMS: usize = 500;
/// The most bytes of class paths that are sent of all JVMs of a node together.
const MAX_CLASS_PATHS: usize = 1024 * 1024;
/// The most bytes of any other text of a JVM, or of all its Java agents.
const MAX_TEXT: usize = 1000;

impl From<Mechanism> for v1::Mechanism {
    fn from(mechanism: Mechanism) -> Self {
        match mechanism {
            Mechanism::JavaAgent => Self::JavaAgent,
            Mechanism::ClassPath => Self::ClassPath,
            Mechanism::PathingJar => Self::PathingJar,
            Mechanism::PropertiesLauncher => Self::PropertiesLauncher,
            Mechanism::PatchModule => Self::PatchModule,
            Mechanism::Live => Self::Live,
        }
    }
}

fn mechanism(wire: i32) -> Result<Mechanism> {
    Ok(match v1::Mechanism::try_from(wire) {
        Ok(v1::Mechanism::JavaAgent) => Mechanism::JavaAgent,
        Ok(v1::Mechanism::ClassPath) => Mechanism::ClassPath,
        Ok(v1::Mechanism::PathingJar) => Mechanism::PathingJar,
        Ok(v1::Mechanism::PropertiesLauncher) => Mechanism::PropertiesLauncher,
        Ok(v1::Mechanism::PatchModule) => Mechanism::PatchModule,
        Ok(v1::Mechanism::Live) => Mechanism::Live,
        Ok(v1::Mechanism::Unspecified) | Err(_) => {
            return Err(invalid("mechanism", format!("{wire} is no mechanism")));
        }
    })
}

impl From<Standing> for v1::Standing {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Armed => Self::Armed,
            Standing::Proved => Self::Proved,
            Standing::Old => Self::Old,
        }
    }
}

fn standing(wire: i32) -> Result<Standing> {
    match v1::Standing::try_from(wire) {
        Ok(v1::Standing::Armed) => Ok(Standing::Armed),
        Ok(v1::Standing::Proved) => Ok(Standing::Proved),
        Ok(v1::Standing::Old) => Ok(Standing::Old),
        Ok(v1::Standing::Unspecified) | Err(_) => {
            Err(invalid("standing", format!("{wire} is no standing of a class")))
        }
    }
}

impl From<&ClassProof> for v1::ClassProof {
    fn from(proof: &ClassProof) -> Self {
        Self {
            class_name: proof.class.clone(),
            number: proof.number,
            standing: v1::Standing::from(proof.standing).into(),
            loader: proof.loader.clone(),
            source: proof.source.clone().unwrap_or_default(),
            original_digest: proof.original.as_ref().map(Into::into),
            expected_digest: Some((&proof.expected).into()),
            mechanism: v1::Mechanism::from(proof.mechanism).into(),
            problem: proof.problem.clone(),
        }
    }
}

impl TryFrom<v1::ClassProof> for ClassProof {
    type Error = Reason;

    fn try_from(wire: v1::ClassProof) -> Result<Self> {
        Ok(Self {
            class: wire.class_name,
            number: wire.number,
            standing: standing(wire.standing)?,
            loader: wire.loader,
            source: (!wire.source.is_empty()).then_some(wire.source),
            original: optional(wire.original_digest, "original_digest")?,
            expected: field(wire.expected_digest, "expected_digest")?,
            mechanism: mechanism(wire.mechanism)?,
            problem: wire.problem,
        })
    }
}

impl From<&Proof> for v1::StackProof {
    /// Of more than [`MAX_CLASSES`] classes those that run old code go first.
    fn from(proof: &Proof) -> Self {
        let mut classes: Vec<&ClassProof> = proof.classes.iter().collect();
        classes.sort_by_key(|class| class.standing != Standing::Old);
        Self {
            pid: proof.pid,
            mechanism: v1::Mechanism::from(proof.mechanism).into(),
            classes: classes.into_iter().take(MAX_CLASSES).map(Into::into).collect(),
            alarms: all(&proof.alarms),
            time: Some(timestamp(proof.time)),
        }
    }
}

impl TryFrom<v1::StackProof> for Proof {
    type Error = Reason;

    fn try_from(wire: v1::StackProof) -> Result<Self> {
        if wire.classes.len() > MAX_CLASSES {
            return Err(invalid("classes", format!("more than {MAX_CLASSES}")));
        }
        Ok(Self {
            pid: wire.pid,
            mechanism: mechanism(wire.mechanism)?,
            classes: each(wire.classes, "classes")?,
            alarms: each(wire.alarms, "alarms")?,
            time: time(&required(wire.time, "time")?),
        })
    }
}

impl From<&Jvm> for v1::Jvm {
    fn from(jvm: &Jvm) -> Self {
        Self {
            pid: jvm.pid,
            inner_pid: jvm.inner_pid.unwrap_or(0),
            start_time: Some(timestamp(jvm.started)),
            uid: jvm.uid,
            java_home: jvm.java_home.clone(),
            java_version: jvm.java_version.clone(),
            vendor: jvm.vendor.clone(),
            main: jvm.main.clone(),
            class_path: jvm.class_path.clone(),
            java_agents: jvm.java_agents.clone(),
            attachable: jvm.attachable == Attachable::Yes,
            attach_problem: match &jvm.attachable {
                Attachable::Yes => String::new(),
                Attachable::No(problem) => problem.clone(),
            },
            container: jvm.container,
            component: jvm.component.clone().unwrap_or_default(),
        }
    }
}

/// The JVMs of a node as one message of bounded length, whatever command lines the users of the node write: a longer
/// one would end the session, again and again.
#[must_use]
pub fn inventory(jvms: &[Jvm]) -> v1::JvmInventory {
    let share = MAX_CLASS_PATHS / jvms.len().clamp(1, MAX_JVMS);
    let brief = |jvm: &Jvm| {
        let mut wire = v1::Jvm::from(jvm);
        for text in [&mut wire.java_home, &mut wire.java_version, &mut wire.vendor, &mut wire.main] {
            cut(text);
        }
        cut(&mut wire.attach_problem);
        wire.class_path = within_bytes(wire.class_path, share);
        wire.java_agents = within_bytes(wire.java_agents, MAX_TEXT);
        wire
    };
    v1::JvmInventory { jvms: jvms.iter().take(MAX_JVMS).map(brief).collect() }
}

fn cut(text: &mut String) {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
}

/// The first of a list's texts, and how many more there are.
fn within_bytes(mut texts: Vec<String>, mut budget: usize) -> Vec<String> {
    // A text takes a few bytes more on the wire.
    let long = texts.iter().position(|text| {
        let rest = budget.checked_sub(text.len() + 4);
        budget = rest.unwrap_or(0);
        rest.is_none()
    });
    let count = long.unwrap_or(texts.len());
    let more = texts.len() - count;
    texts.truncate(count);
    if more > 0 {
        texts.push(format!("… and {more} more"));
    }
    texts
}

impl TryFrom<v1::Jvm> for Jvm {
    type Error = Reason;

    fn try_from(wire: v1::Jvm) -> Result<Self> {
        Ok(Self {
            pid: wire.pid,
            inner_pid: (wire.inner_pid != 0).then_some(wire.inner_pid),
            started: time(&required(wire.start_time, "start_time")?),
            uid: wire.uid,
            java_home: wire.java_home,
            java_version: wire.java_version,
            vendor: wire.vendor,
            main: wire.main,
            class_path: wire.class_path,
            java_agents: wire.java_agents,
            attachable: if wire.attachable { Attachable::Yes } else { Attachable::No(wire.attach_problem) },
            container: wire.container,
            component: (!wire.component.is_empty()).then_some(wire.component),
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use upfleet_domain::time::Time;

    use super::*;

    #[test]
    fn no_command_line_makes_the_inventory_too_long_for_a_message() {
        let jvm = |pid, entries: usize| Jvm {
            pid,
            inner_pid: None,
            started: Time(1),
            uid: 0,
            java_home: "/opt/jdk".into(),
            java_version: "17".into(),
            vendor: String::new(),
            main: "ä".repeat(100_000),
            class_path: vec!["/opt/some/where/library-of-the-application.jar".into(); entries],
            java_agents: vec!["x".repeat(100_000)],
            attachable: Attachable::Yes,
            container: false,
            component: None,
        };
        let wire = inventory(&(0..600).map(|pid| jvm(pid, 10_000)).collect::<Vec<_>>());
        assert_eq!(wire.jvms.len(), MAX_JVMS);
        assert!(wire.encoded_len() < 3 * 1024 * 1024, "{}", wire.encoded_len());
        assert_eq!(wire.jvms[0].class_path.last().unwrap(), "… and 9959 more");
        let few = inventory(&[jvm(1, 500)]);
        assert_eq!((few.jvms[0].class_path.len(), &*few.jvms[0].java_agents[0]), (500, "… and 1 more"));
    }
}
