//! Figures of ours beside a peer's: medians, ratios, and whether the goal is reached; as a table or as JSON.

use std::fmt::Write as _;

use serde::Serialize;

/// How a report is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// One line for `.ci/endure`, which keeps it in docs/promises.md.
    Figure,
}

/// What a ratio of ours to the peer's should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// At most so much of the peer's.
    AtMostTimesPeer(f64),
    /// At least so many times the peer's.
    AtLeastTimesPeer(f64),
    /// At most this, whatever a peer does.
    AtMost(f64),
    /// At least this, whatever a peer does.
    AtLeast(f64),
}

/// One quantity, measured in several runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measure {
    /// What, with whom it is compared, e.g. `resident per agent, idle (NATS)`.
    pub name: String,
    /// Its unit, e.g. `KiB`.
    pub unit: &'static str,
    /// Ours, one per run.
    pub ours: Vec<f64>,
    /// The peer's, one per run; empty where there is none.
    pub peer: Vec<f64>,
    /// What it should be.
    pub goal: Option<Goal>,
}

impl Measure {
    /// A quantity without runs yet.
    #[must_use]
    pub fn new(name: &str, unit: &'static str) -> Self {
        Self { name: name.to_owned(), unit, ours: Vec::new(), peer: Vec::new(), goal: None }
    }

    /// With a goal.
    #[must_use]
    pub fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self
    }

    /// With our figures.
    #[must_use]
    pub fn ours(mut self, ours: impl IntoIterator<Item = f64>) -> Self {
        self.ours.extend(ours);
        self
    }

    /// With the peer's figures.
    #[must_use]
    pub fn peer(mut self, peer: impl IntoIterator<Item = f64>) -> Self {
        self.peer.extend(peer);
        self
    }

    /// Our median over the peer's; `None` where one has none, or the peer's is 0.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let peer = median(&self.peer).filter(|peer| *peer != 0.0)?;
        Some(median(&self.ours)? / peer)
    }

    /// Whether the goal is reached; `None` where there is none, or nothing to tell it by.
    #[must_use]
    pub fn reached(&self) -> Option<bool> {
        let ours = median(&self.ours);
        match self.goal? {
            Goal::AtMostTimesPeer(limit) => Some(self.ratio()? <= limit),
            Goal::AtLeastTimesPeer(limit) => Some(self.ratio()? >= limit),
            Goal::AtMost(limit) => Some(ours? <= limit),
            Goal::AtLeast(limit) => Some(ours? >= limit),
        }
    }

    fn goal_text(&self) -> String {
        let goal = match self.goal {
            None => return String::new(),
            Some(Goal::AtMostTimesPeer(limit)) => format!("≤ {limit} ×"),
            Some(Goal::AtLeastTimesPeer(limit)) => format!("≥ {limit} ×"),
            Some(Goal::AtMost(limit)) => format!("≤ {limit}"),
            Some(Goal::AtLeast(limit)) => format!("≥ {limit}"),
        };
        match self.reached() {
            Some(true) => format!("{goal} reached"),
            Some(false) => format!("{goal} missed"),
            None => goal,
        }
    }
}

/// What a row found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The row, e.g. `p3`.
    pub row: String,
    /// The machine's load average when it began and when it ended.
    pub load: Vec<f64>,
    /// The quantities.
    pub measures: Vec<Measure>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

impl Report {
    /// An empty report of a row, with the load of this moment.
    #[must_use]
    pub fn new(row: &str) -> Self {
        Self { row: row.to_owned(), load: vec![crate::usage::load()], ..Self::default() }
    }

    /// Adds a quantity.
    pub fn add(&mut self, measure: Measure) {
        self.measures.push(measure);
    }

    /// Adds what a reader must know.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// The report with the load of this moment.
    #[must_use]
    pub fn end(mut self) -> Self {
        self.load.push(crate::usage::load());
        self
    }

    /// As text.
    #[must_use]
    pub fn print(&self, format: Format) -> String {
        match format {
            Format::Json => {
                let mut text = serde_json::to_string_pretty(self).expect("a report has a JSON form");
                text.push('\n');
                text
            }
            Format::Table => self.table(),
            Format::Figure => self.figure(),
        }
    }

    /// Whether no goal was missed.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.measures.iter().all(|measure| measure.reached() != Some(false))
    }

    fn figure(&self) -> String {
        let one = |measure: &Measure| {
            let value = median(&measure.ours).map(number).unwrap_or_default();
            format!("{}: {value} {}", measure.name, measure.unit)
        };
        let all: Vec<String> = self.measures.iter().map(one).collect();
        format!("figure: {} {}\n", self.row, all.join("; "))
    }

    fn table(&self) -> String {
        let mut rows = vec![["", "ours", "peer", "ratio", "goal", "runs"].map(str::to_owned)];
        for measure in &self.measures {
            let cell = |value: Option<f64>| value.map(number).unwrap_or_default();
            rows.push([
                format!("{}, {}", measure.name, measure.unit),
                cell(median(&measure.ours)),
                cell(median(&measure.peer)),
                cell(measure.ratio()),
                measure.goal_text(),
                measure.ours.len().max(measure.peer.len()).to_string(),
            ]);
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..6).map(width).collect();
        let mut text = format!("{} (load average {:.1?})\n", self.row, self.load);
        for row in &rows {
            let mut line = format!("{:<width$}", row[0], width = widths[0]);
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                let _ = write!(line, "  {cell:>width$}");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        self.notes.iter().for_each(|note| text.push_str(&format!("{note}\n")));
        text
    }
}

/// The middle one; `None` of nothing.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    percentile(values, 0.5)
}

/// The value that a part `at` (0 to 1) of the values does not exceed; `None` of nothing.
#[must_use]
pub fn percentile(values: &[f64], at: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let index = (sorted.len() as f64 * at).ceil() as usize;
    sorted.get(index.saturating_sub(1).min(sorted.len().saturating_sub(1))).copied()
}

/// With three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Runs ours and the peer's in turn, `runs` times each, so that what else the machine does meets both.
///
/// # Errors
/// Where one of them fails.
pub fn interleaved<A, B>(
    runs: usize,
    mut ours: impl FnMut() -> anyhow::Result<A>,
    mut peer: impl FnMut() -> anyhow::Result<B>,
) -> anyhow::Result<(Vec<A>, Vec<B>)> {
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..runs.max(1) {
        // Whoever is second finds warm caches: each is first in turn.
        if run % 2 == 0 {
            mine.push(ours()?);
            theirs.push(peer()?);
        } else {
            theirs.push(peer()?);
            mine.push(ours()?);
        }
    }
    Ok((mine, theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0], 0.99), Some(4.0));
        assert_eq!(percentile(&[5.0], 0.0), Some(5.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_goal_is_told_by_medians() {
        let measure = Measure::new("time", "ms").ours([9.0, 1.0, 2.0]).peer([2.0]);
        assert_eq!(measure.clone().goal(Goal::AtMostTimesPeer(1.0)).reached(), Some(true));
        assert_eq!(measure.clone().goal(Goal::AtLeastTimesPeer(1.1)).reached(), Some(false));
        assert_eq!(measure.goal(Goal::AtMost(1.9)).reached(), Some(false));
    }

    #[test]
    fn a_table_lines_up() {
        let mut report = Report { row: "p0".into(), ..Report::default() };
        report.add(Measure::new("a", "ms").ours([1.0]).peer([2.0]).goal(Goal::AtMostTimesPeer(1.0)));
        let text = report.print(Format::Table);
        assert!(text.contains("a, ms  1.00  2.00  0.500  ≤ 1 × reached     1"), "{text}");
        assert_eq!(report.print(Format::Figure), "figure: p0 a: 1.00 ms\n");
        assert!(report.is_good());
        assert!(report.print(Format::Json).contains("\"at_most_times_peer\": 1.0"));
    }

    #[test]
    fn both_are_first_in_turn() {
        let order = std::cell::RefCell::new(String::new());
        let note = |who| {
            order.borrow_mut().push(who);
            Ok(())
        };
        interleaved(2, || note('o'), || note('p')).unwrap();
        assert_eq!(*order.borrow(), "oppo");
    }
}
