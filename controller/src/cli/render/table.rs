//! Aligned columns.

use super::Paint;

/// Rows under headings; columns are as wide as their widest cell, two spaces apart.
#[derive(Clone, Debug)]
pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
    empty: &'static str,
}

impl Table {
    /// A table with these headings; `empty` is said where it has no rows.
    #[must_use]
    pub fn new(headings: &[&'static str], empty: &'static str) -> Self {
        Self::of(headings.iter().copied(), empty)
    }

    /// A table whose headings are names.
    #[must_use]
    pub fn of<'a>(headings: impl IntoIterator<Item = &'a str>, empty: &'static str) -> Self {
        Self { headings: headings.into_iter().map(str::to_owned).collect(), rows: Vec::new(), empty }
    }

    /// Adds a row. Cells may carry colours. A line break in one, which a node may have sent, makes no row of its own.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| cell.replace('\n', "\\n")).collect());
    }

    /// The text.
    #[must_use]
    pub fn text(&self, paint: Paint) -> String {
        if self.rows.is_empty() {
            return self.empty.to_owned();
        }
        let headings: Vec<String> = self.headings.iter().map(|heading| paint.bold(heading)).collect();
        let rows = || std::iter::once(&headings).chain(&self.rows);
        let widths: Vec<usize> = (0..self.headings.len())
            .map(|column| rows().map(|row| row.get(column).map_or(0, |cell| width(cell))).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in rows() {
            let mut line = String::new();
            for (cell, wide) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.push_str(&" ".repeat(wide + 2 - width(cell)));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// How many columns a text takes: colours take none.
pub(super) fn width(text: &str) -> usize {
    let mut count = 0;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            // A colour ends with its `m`.
            chars.by_ref().find(|c| *c == 'm');
        } else {
            count += 1;
        }
    }
    count
}

/// Cuts a text to so many columns; what is cut off shows as `…`, and colours are ended.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut count = 0;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(c);
        if c == '\x1b' {
            for c in chars.by_ref() {
                out.push(c);
                if c == 'm' {
                    break;
                }
            }
            continue;
        }
        count += 1;
        if count + 1 >= columns {
            break;
        }
    }
    out.push('…');
    if text.contains('\x1b') {
        out.push_str("\x1b[0m");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_colours_take_no_room() {
        let mut table = Table::new(&["NODE", "STATE"], "none");
        assert_eq!(table.text(Paint::PLAIN), "none");
        table.row(["a".into(), Paint::COLORED.good("ok")]);
        table.row(["longer-name".into(), "away".into()]);
        assert_eq!(
            table.text(Paint::PLAIN),
            "NODE         STATE\na            \x1b[32mok\x1b[0m\nlonger-name  away\n"
        );
    }

    #[test]
    fn long_lines_are_cut() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("\x1b[31mabcdef\x1b[0m", 4), "\x1b[31mabc…\x1b[0m");
    }
}
