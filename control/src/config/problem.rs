//! What is wrong with a file, where, and what would be right.

use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Counted from 1; 0: the file as a whole.
    pub line: usize,
    /// In characters, counted from 1; 0: the file as a whole.
    pub column: usize,
    /// As `xmpp.jid`; empty where it is about no key.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// All that is wrong with a file. Its `Display` has a line for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problems {
    /// The file.
    pub file: PathBuf,
    /// At least one, in the order of the file.
    pub problems: Vec<Problem>,
}

impl Problems {
    /// About the file as a whole.
    #[must_use]
    pub fn of_file(file: &Path, message: String) -> Self {
        Self { file: file.to_owned(), problems: vec![Problem { line: 0, column: 0, key: String::new(), message }] }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, p) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", self.file.display())?;
            if p.line > 0 {
                write!(f, ":{}:{}", p.line, p.column)?;
            }
            f.write_str(": ")?;
            if !p.key.is_empty() {
                write!(f, "{}: ", p.key)?;
            }
            f.write_str(&p.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects problems of one text.
pub(super) struct Report {
    /// Where each line starts.
    lines: Vec<usize>,
    text: String,
    found: Vec<(usize, Problem)>,
    more: usize,
    /// Lines that are no TOML: what was made of them means nothing.
    broken: BTreeSet<usize>,
}

/// Told at most; the rest is a number.
const MAX_PROBLEMS: usize = 100;

impl Report {
    pub(super) fn new(text: &str) -> Self {
        let starts = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1);
        let lines = std::iter::once(0).chain(starts).collect();
        Self { lines, text: text.to_owned(), found: Vec::new(), more: 0, broken: BTreeSet::new() }
    }

    /// The text is no TOML there.
    pub(super) fn syntax(&mut self, span: Option<Range<usize>>, message: &str) {
        let start = span.map_or(0, |s| s.start);
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        self.push(start, String::new(), message);
        self.broken.insert(self.line(start));
    }

    /// Something is wrong with the value of `key`.
    pub(super) fn at(&mut self, span: &Range<usize>, key: impl Into<String>, message: impl Into<String>) {
        if !self.broken.contains(&self.line(span.start)) {
            self.push(span.start, key.into(), message.into());
        }
    }

    /// `key` is not there, but has to be. Not told of a text that is no TOML: it may stand where that was given up.
    pub(super) fn missing(&mut self, section: &Range<usize>, key: impl Into<String>, message: impl Into<String>) {
        if self.broken.is_empty() {
            self.push(section.start, key.into(), message.into());
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether more problems are no news: then the rest of a hopeless file is not looked at in detail.
    pub(super) const fn is_full(&self) -> bool {
        self.found.len() >= MAX_PROBLEMS
    }

    fn push(&mut self, offset: usize, key: String, message: String) {
        if self.is_full() {
            self.more += 1;
            return;
        }
        let line = self.line(offset);
        let column = self.text[self.lines[line - 1]..].char_indices();
        let column = column.take_while(|(i, _)| self.lines[line - 1] + i < offset).count() + 1;
        self.found.push((offset, Problem { line, column, key, message }));
    }

    /// Line of a byte, from 1.
    fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset).max(1)
    }

    pub(super) fn finish(self, file: &Path) -> Result<(), Problems> {
        if self.found.is_empty() {
            return Ok(());
        }
        let mut found = self.found;
        found.sort_by_key(|(offset, _)| *offset);
        let mut problems: Vec<Problem> = found.into_iter().map(|(_, p)| p).collect();
        problems.dedup();
        if self.more > 0 {
            let message = format!("and {} more problems", self.more);
            problems.push(Problem { line: 0, column: 0, key: String::new(), message });
        }
        Err(Problems { file: file.to_owned(), problems })
    }
}
