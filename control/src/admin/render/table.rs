//! Aligned columns.

use super::text::clipped;

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    right: bool,
    most: usize,
}

/// Text, shortened to `most` characters.
#[must_use]
pub const fn text(title: &'static str, most: usize) -> Column {
    Column { title, right: false, most }
}

/// Numbers, shortened to `most` characters.
#[must_use]
pub const fn number(title: &'static str, most: usize) -> Column {
    Column { title, right: true, most }
}

/// Rows under titles.
#[derive(Debug)]
pub struct Table<'a> {
    columns: &'a [Column],
    wide: bool,
    /// The cells, and lines below the row.
    rows: Vec<(Vec<String>, String)>,
}

impl<'a> Table<'a> {
    /// Without rows. `wide`: nothing is shortened.
    #[must_use]
    pub const fn new(columns: &'a [Column], wide: bool) -> Self {
        Self { columns, wide, rows: Vec::new() }
    }

    /// One row; `below` are whole lines under it.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>, below: String) {
        let most = |c: &Column| if self.wide { usize::MAX } else { c.most };
        let cells = cells.into_iter().zip(self.columns).map(|(cell, c)| clipped(&cell, most(c))).collect();
        self.rows.push((cells, below));
    }

    /// All of it.
    #[must_use]
    pub fn show(&self, indent: &str) -> String {
        let titles: Vec<String> = self.columns.iter().map(|c| c.title.to_owned()).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| self.rows.iter().map(|(cells, _)| &cells[i]).chain([&titles[i]]).map(String::len).max())
            .map(Option::unwrap_or_default)
            .collect();
        let mut out = String::new();
        let heading = (titles, String::new());
        for (cells, below) in std::iter::once(&heading).chain(&self.rows) {
            let mut line = indent.to_owned();
            for ((cell, width), column) in cells.iter().zip(&widths).zip(self.columns) {
                line += &if column.right { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            }
            out += line.trim_end();
            out.push('\n');
            out += below;
        }
        out
    }
}
