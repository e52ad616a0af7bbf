//! What a JVM's options say about attaching to it, wherever they were given.

use super::process;

/// What its options say about attaching.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// The option that forbids it.
    pub disabled: Option<String>,
    /// The option that keeps the JVM from catching SIGQUIT, where it does not listen from its start.
    pub no_signals: Option<String>,
}

/// Of a process.
#[must_use]
pub fn of(pid: u32) -> AttachOptions {
    let environment = process::variables(pid, &["JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"]);
    let given = |name: &str| {
        let value = environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        value.unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    // In the order in which the JVM reads them; the last word counts.
    let mut options = given("JAVA_TOOL_OPTIONS");
    options.extend(given("JDK_JAVA_OPTIONS"));
    options.extend(process::command_line(pid).into_iter().skip(1));
    options.extend(given("_JAVA_OPTIONS"));
    judge(&options)
}

fn judge(options: &[String]) -> AttachOptions {
    let flag = |name: &str| {
        let is =
            |option: &&String| option.strip_prefix("-XX:").is_some_and(|flag| flag.get(1..) == Some(name));
        options.iter().rfind(is).filter(|option| option.starts_with("-XX:+")).cloned()
    };
    let reduced =
        options.iter().find(|option| *option == "-Xrs").cloned().or_else(|| flag("ReduceSignalUsage"));
    AttachOptions {
        disabled: flag("DisableAttachMechanism"),
        no_signals: reduced.filter(|_| flag("StartAttachListener").is_none()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(options: &[&str]) -> (bool, bool) {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let judged = judge(&options);
        (judged.disabled.is_some(), judged.no_signals.is_some())
    }

    #[test]
    fn the_last_word_counts() {
        assert_eq!(judged(&["-Xmx32m", "Main"]), (false, false));
        assert_eq!(judged(&["-XX:+DisableAttachMechanism"]), (true, false));
        assert_eq!(judged(&["-XX:+DisableAttachMechanism", "-XX:-DisableAttachMechanism"]), (false, false));
        assert_eq!(judged(&["-Xrs"]), (false, true));
        assert_eq!(judged(&["-Xrs", "-XX:+StartAttachListener"]), (false, false));
        assert_eq!(judged(&["-XX:+ReduceSignalUsage"]), (false, true));
    }
}
