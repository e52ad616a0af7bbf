//! Fixes across the fleet: which nodes lack one, and which patches are where.

use std::collections::BTreeMap;

use upfleet_api::v1::{self, fix_state::State as F};

use super::{Paint, Table, bytes, component_state, date, id, reason, stack::fixes};

/// The order in which states are told: what needs a person first.
const STATES: [(F, &str); 4] = [
    (F::Lacks, "lack it"),
    (F::Unproved, "have it, not proved"),
    (F::Patched, "patched and proved"),
    (F::InBase, "have it in the base"),
];

/// How nodes stand with a fix: the counts over the whole fleet, then the nodes asked for.
#[must_use]
pub fn fix_table(
    fix: &str,
    states: &[v1::FixState],
    counts: &BTreeMap<String, u32>,
    now: i64,
    paint: Paint,
) -> String {
    let mut parts = Vec::new();
    for (state, words) in STATES {
        let count = counts.get(state.as_str_name().trim_start_matches("STATE_")).copied().unwrap_or(0);
        let part = format!("{count} {words}");
        parts.push(match state {
            F::Lacks if count > 0 => paint.bad(part),
            F::Unproved if count > 0 => paint.warn(part),
            _ => part,
        });
    }
    let mut text = format!("{}   {}\n", paint.bold(fix), parts.join(" · "));
    let mut table = Table::new(
        &["NODE", "COMPONENT", "STANDS", "BY", "RUNS", "SEEN", "WHY"],
        "No node in these states.\n",
    );
    for state in states {
        let word = state.state().as_str_name().trim_start_matches("STATE_");
        let by = match (state.state(), state.number) {
            (F::InBase, _) => "base".to_owned(),
            (_, 0) => "-".to_owned(),
            (_, number) => format!("p{number}"),
        };
        table.row([
            id(&state.node).to_owned(),
            state.component.clone(),
            match state.state() {
                F::Lacks => paint.bad(word),
                F::Unproved => paint.warn(word),
                _ => paint.good(word),
            },
            by,
            component_state(state.current.as_ref()),
            if state.online { "online".to_owned() } else { paint.warn("offline") },
            reason(state.reason.as_ref(), now),
        ]);
    }
    text.push_str(&table.text(paint));
    text
}

/// Patches with what they fix and how many nodes have them.
#[must_use]
pub fn patch_table(patches: &[v1::Release], counts: &[v1::PatchCount], wide: bool, paint: Paint) -> String {
    let mut headings = vec!["PATCH", "FIXES", "ACTIVE", "PROVED", "RETIRED", "OF", "STATE"];
    if wide {
        headings.extend(["SIZE", "CREATED", "BY", "NOTES"]);
    }
    let mut table = Table::new(&headings, "No patches. Make one: upfleet patch build --help");
    for patch in patches {
        let none = v1::PatchCount::default();
        let count = counts.iter().find(|count| count.release == patch.name).unwrap_or(&none);
        let proved = count.proved.to_string();
        let state = match (patch.yank_time.is_some(), patch.quarantined_digests.is_empty()) {
            (true, _) => paint.warn("YANKED"),
            (false, false) => paint.bad("QUARANTINED"),
            (false, true) => paint.good("AVAILABLE"),
        };
        let mut row = vec![
            id(&patch.name).to_owned(),
            fixes(patch),
            count.active.to_string(),
            if count.proved < count.active { paint.warn(proved) } else { proved },
            count.retired.to_string(),
            count.nodes.to_string(),
            state,
        ];
        if wide {
            row.push(patch.artifacts.first().map(|artifact| bytes(artifact.size_bytes)).unwrap_or_default());
            row.extend([
                date(patch.create_time.as_ref()),
                id(&patch.creator).to_owned(),
                patch.notes.clone(),
            ]);
        }
        table.row(row);
    }
    table.text(paint)
}

#[cfg(test)]
mod tests {
    use super::{
        super::stack::tests::{release, state},
        *,
    };

    #[test]
    fn which_nodes_lack_a_fix() {
        let stands = |node: &str, state_is: F, number, current, why: &str| v1::FixState {
            node: format!("nodes/{node}"),
            component: "payments".into(),
            state: state_is.into(),
            number,
            current: Some(current),
            reason: Some(v1::Reason { message: why.into(), ..Default::default() }),
            online: node != "web-19",
        };
        let states = [
            stands("web-19", F::Lacks, 0, state("2.14.1", &[]), "patch p10 brings it"),
            stands("web-20", F::Unproved, 10, state("2.14.1", &[(10, false)]), "no JVM runs"),
            stands("web-21", F::Patched, 10, state("2.14.1", &[(10, false)]), ""),
            stands("web-22", F::InBase, 0, state("2.17.1", &[]), ""),
        ];
        let counts = BTreeMap::from([
            ("LACKS".to_owned(), 1),
            ("UNPROVED".to_owned(), 1),
            ("PATCHED".to_owned(), 55),
            ("IN_BASE".to_owned(), 40),
        ]);
        assert_eq!(
            fix_table("CVE-2021-44228", &states, &counts, 0, Paint::PLAIN),
            "\
CVE-2021-44228   1 lack it · 1 have it, not proved · 55 patched and proved · 40 have it in the base
NODE    COMPONENT  STANDS    BY    RUNS            SEEN     WHY
web-19  payments   LACKS     -     2.14.1          offline  patch p10 brings it
web-20  payments   UNPROVED  p10   2.14.1+patch10  online   no JVM runs
web-21  payments   PATCHED   p10   2.14.1+patch10  online
web-22  payments   IN_BASE   base  2.17.1          online
"
        );
        assert!(fix_table("X", &[], &BTreeMap::new(), 0, Paint::PLAIN).contains("0 lack it"));
    }

    #[test]
    fn patches_and_where_they_are() {
        let count = v1::PatchCount {
            component: "payments".into(),
            release: "releases/payments@p10".into(),
            number: 10,
            active: 55,
            proved: 54,
            retired: 1,
            nodes: 100,
        };
        assert_eq!(
            patch_table(&[release(10, &["CVE-2021-44228"]), release(9, &[])], &[count], false, Paint::PLAIN),
            "\
PATCH         FIXES           ACTIVE  PROVED  RETIRED  OF   STATE
payments@p10  CVE-2021-44228  55      54      1        100  AVAILABLE
payments@p9                   0       0       0        0    AVAILABLE
"
        );
    }
}
