//! Typed access to a TOML table that reports what is not as it should be.

use super::problem::Report;
use super::values;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
    /// As `xmpp.jid`.
    pub(super) key: String,
}

impl<T> Found<T> {
    /// Reports something about it.
    pub(super) fn wrong(&self, report: &mut Report, message: impl Into<String>) {
        report.at(&self.span, self.key.clone(), message);
    }

    /// Checks and converts it; a refusal is reported.
    pub(super) fn check<U, E: Into<String>>(
        &self,
        report: &mut Report,
        check: impl FnOnce(&T) -> Result<U, E>,
    ) -> Option<U> {
        check(&self.value).map_err(|e| self.wrong(report, e)).ok()
    }
}

/// A table of the file.
pub(super) struct Section<'a, 'i> {
    table: &'a DeTable<'i>,
    /// Where it starts.
    pub(super) span: Range<usize>,
    name: &'static str,
}

impl<'a, 'i> Section<'a, 'i> {
    /// Opens it and reports keys that are not among `known`. `hint` knows of keys that people may expect.
    pub(super) fn new(
        table: &'a DeTable<'i>,
        span: Range<usize>,
        name: &'static str,
        known: &[&str],
        hint: impl Fn(&str) -> Option<String>,
        report: &mut Report,
    ) -> Self {
        let section = Self { table, span, name };
        for key in table.keys() {
            let text: &str = key.get_ref();
            if !known.contains(&text) && !report.is_full() {
                let message = hint(text).unwrap_or_else(|| unknown(text, known));
                report.at(&key.span(), section.path(&values::shown(text)), message);
            }
        }
        section
    }

    /// `name.key`.
    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Reports that `key` has to be there.
    pub(super) fn missing(&self, report: &mut Report, key: &str, message: impl Into<String>) {
        report.missing(&self.span, self.path(key), message);
    }

    fn get<T>(
        &self,
        report: &mut Report,
        key: &str,
        wanted: &str,
        take: impl FnOnce(&'a Spanned<DeValue<'i>>) -> Option<T>,
    ) -> Option<Found<T>> {
        let value = self.table.get(key)?;
        let (span, key) = (value.span(), self.path(key));
        match take(value) {
            Some(value) => Some(Found { value, span, key }),
            None => {
                report.at(&span, key, format!("has to be {wanted}, and is {}", kind(value.get_ref())));
                None
            }
        }
    }

    /// A string that is not empty.
    pub(super) fn string(&self, report: &mut Report, key: &str) -> Option<Found<String>> {
        let found = self.get(report, key, "a string in quotes", |v| v.get_ref().as_str().map(str::to_owned))?;
        if found.value.trim().is_empty() {
            found.wrong(report, "is empty: fill it in, or leave the line out");
            return None;
        }
        Some(found)
    }

    pub(super) fn boolean(&self, report: &mut Report, key: &str) -> Option<bool> {
        self.get(report, key, "true or false", |v| v.get_ref().as_bool()).map(|f| f.value)
    }

    /// A whole number in `range`.
    pub(super) fn number(&self, report: &mut Report, key: &str, range: (u16, u16)) -> Option<Found<u16>> {
        let wanted = format!("a whole number from {} to {}", range.0, range.1);
        let found = self.get(report, key, &wanted, |v| integer(v.get_ref()))?;
        match u16::try_from(found.value) {
            Ok(n) if (range.0..=range.1).contains(&n) => Some(Found { value: n, span: found.span, key: found.key }),
            _ => {
                found.wrong(report, format!("has to be {wanted}, and is {}", found.value));
                None
            }
        }
    }

    /// A span of time: seconds as a number, or as "90s", "10m", "2h".
    pub(super) fn duration(&self, report: &mut Report, key: &str) -> Option<Found<std::time::Duration>> {
        let text = |v: &Spanned<DeValue<'_>>| match v.get_ref() {
            DeValue::String(s) => Some(s.to_string()),
            DeValue::Integer(_) => integer(v.get_ref()).map(|n| n.to_string()),
            _ => None,
        };
        let found = self.get(report, key, "a number of seconds, or a time as \"10m\"", text)?;
        let value = found.check(report, |s| values::duration(s))?;
        Some(Found { value, span: found.span, key: found.key })
    }

    /// An array of strings with at most `most` entries.
    pub(super) fn strings(&self, report: &mut Report, key: &str, most: usize) -> Vec<Found<String>> {
        let mut all = Vec::new();
        for entry in self.array(report, key, "a list of strings, as [\"a\", \"b\"]", most) {
            let (span, key) = (entry.span(), self.path(key));
            match entry.get_ref().as_str() {
                Some(s) => all.push(Found { value: s.to_owned(), span, key }),
                None => report.at(
                    &span,
                    key,
                    format!("each entry has to be a string in quotes, and this is {}", kind(entry.get_ref())),
                ),
            }
        }
        all
    }

    /// An array of tables with at most `most` entries: `[[name]]` or `name = [{ ... }]`.
    pub(super) fn tables(
        &self,
        report: &mut Report,
        key: &str,
        wanted: &str,
        most: usize,
    ) -> Vec<(&'a DeTable<'i>, Range<usize>)> {
        let mut all = Vec::new();
        for entry in self.array(report, key, wanted, most) {
            match entry.get_ref() {
                DeValue::Table(t) => all.push((t, entry.span())),
                other => report.at(
                    &entry.span(),
                    self.path(key),
                    format!("has to be {wanted}, and this entry is {}", kind(other)),
                ),
            }
        }
        all
    }

    fn array(&self, report: &mut Report, key: &str, wanted: &str, most: usize) -> &'a [Spanned<DeValue<'i>>] {
        let Some(found) = self.get(report, key, wanted, |v| v.get_ref().as_array()) else { return &[] };
        if found.value.len() > most {
            found.wrong(report, format!("has {} entries: at most {most} are taken", found.value.len()));
        }
        &found.value[..found.value.len().min(most)]
    }

    /// A table below this one whose keys are for people to choose: each with where it stands and its string, at most
    /// `most`.
    pub(super) fn pairs(
        &self,
        report: &mut Report,
        key: &str,
        wanted: &str,
        most: usize,
    ) -> Vec<(Found<String>, Found<String>)> {
        let Some(found) = self.get(report, key, wanted, |v| v.get_ref().as_table()) else { return Vec::new() };
        if found.value.len() > most {
            found.wrong(report, format!("has {} entries: at most {most} are taken", found.value.len()));
        }
        let mut all = Vec::new();
        for (name, value) in found.value.iter().take(most) {
            let path = format!("{}.\"{}\"", found.key, values::shown(name.get_ref()));
            match value.get_ref().as_str() {
                Some(s) => all.push((
                    Found { value: name.get_ref().to_string(), span: name.span(), key: path.clone() },
                    Found { value: s.to_owned(), span: value.span(), key: path },
                )),
                None => {
                    let message = format!("has to be a string in quotes, and is {}", kind(value.get_ref()));
                    report.at(&value.span(), path, message);
                }
            }
        }
        // In the order of the file: of two that clash the second is told.
        all.sort_by_key(|(name, _)| name.span.start);
        all
    }

    /// A table below this one.
    pub(super) fn table(&self, report: &mut Report, key: &str) -> Option<(&'a DeTable<'i>, Range<usize>)> {
        let wanted = format!("a section [{key}]");
        let found = self.get(report, key, &wanted, |v| v.get_ref().as_table())?;
        Some((found.value, found.span))
    }
}

fn integer(v: &DeValue<'_>) -> Option<i64> {
    let n = v.as_integer()?;
    // Digits only, so what does not fit is too large or too small for every use here.
    Some(i64::from_str_radix(n.as_str(), n.radix()).unwrap_or(if n.as_str().starts_with('-') {
        i64::MIN
    } else {
        i64::MAX
    }))
}

fn kind(v: &DeValue<'_>) -> &'static str {
    match v {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

fn unknown(key: &str, known: &[&str]) -> String {
    match values::nearest(key, known) {
        Some(near) => format!("is no known key; did you mean \"{near}\"?"),
        None => format!("is no known key here; known are {}", known.join(", ")),
    }
}
