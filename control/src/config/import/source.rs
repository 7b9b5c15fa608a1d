//! A JSON file of which every value is either taken or told about.

use serde_json::Value;
use std::collections::BTreeSet;

/// Where a value stands: `CFx.xmpp_username`, `turn[0].server`.
pub(super) type Path = String;

pub(super) struct Source {
    root: Value,
    taken: BTreeSet<Path>,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) path: Path,
    pub(super) value: Value,
}

impl Found {
    /// Text, or a number as text: the forms differ on ports.
    pub(super) fn text(&self) -> Result<String, String> {
        match &self.value {
            Value::String(s) => Ok(s.trim().to_owned()),
            Value::Number(n) => Ok(n.to_string()),
            other => Err(format!("{} has to be a string, and is {}", self.path, kind(other))),
        }
    }

    /// A number, or digits in quotes.
    pub(super) fn number(&self) -> Result<u64, String> {
        let wrong = || format!("{} has to be a whole number, and is {}", self.path, kind(&self.value));
        self.text().ok().and_then(|s| s.parse().ok()).ok_or_else(wrong)
    }

    /// `true`, `"true"`, `1` and the like.
    pub(super) fn truth(&self) -> bool {
        match &self.value {
            Value::Bool(b) => *b,
            Value::Number(n) => n.as_f64() != Some(0.0),
            Value::String(s) => !s.is_empty() && !s.eq_ignore_ascii_case("false") && s != "0",
            Value::Null => false,
            Value::Array(_) | Value::Object(_) => true,
        }
    }
}

/// What a value is, without what is in it: it may be a secret.
pub(super) fn kind(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(s) if s.is_empty() => "an empty string",
        Value::String(_) => "a string",
        Value::Array(a) if a.is_empty() => "an empty list",
        Value::Array(_) => "a list",
        Value::Object(o) if o.is_empty() => "an empty section",
        Value::Object(_) => "a section",
    }
}

impl Source {
    pub(super) const fn new(root: Value) -> Self {
        Self { root, taken: BTreeSet::new() }
    }

    /// All values, from the top: sections as `(path, value)` for each leaf. A list of plain values is one leaf.
    fn leaves(&self) -> Vec<(Path, &Value)> {
        let mut all = Vec::new();
        let mut open = vec![(String::new(), &self.root)];
        while let Some((path, value)) = open.pop() {
            match value {
                Value::Object(map) if !map.is_empty() => {
                    let dot = if path.is_empty() { "" } else { "." };
                    open.extend(map.iter().rev().map(|(k, v)| (format!("{path}{dot}{}", step(k)), v)));
                }
                Value::Array(list) if list.iter().any(|v| v.is_object() || v.is_array()) => {
                    open.extend(list.iter().enumerate().rev().map(|(i, v)| (format!("{path}[{i}]"), v)));
                }
                _ => all.push((path, value)),
            }
        }
        all
    }

    /// Takes the first value whose path matches one of `patterns` (`*` stands for any one key or index); the order
    /// of the patterns goes before that of the file.
    pub(super) fn take(&mut self, patterns: &[&str]) -> Option<Found> {
        let leaves = self.leaves();
        let free = |path: &Path| !self.taken.contains(path);
        let found = patterns
            .iter()
            .find_map(|p| leaves.iter().find(|(path, _)| free(path) && matches(p, path)))
            .map(|(path, value)| Found { path: path.clone(), value: (*value).clone() })?;
        self.taken.insert(found.path.clone());
        Some(found)
    }

    /// Takes every value that matches.
    pub(super) fn take_all(&mut self, patterns: &[&str]) -> Vec<Found> {
        let mut all = Vec::new();
        while let Some(found) = self.take(patterns) {
            all.push(found);
        }
        all
    }

    /// What has not been taken.
    pub(super) fn rest(&self) -> Vec<Found> {
        let left = self.leaves().into_iter().filter(|(path, _)| !self.taken.contains(path));
        left.map(|(path, value)| Found { path, value: value.clone() }).collect()
    }
}

/// A key as a step of a path: one that looks like several steps is quoted, so that no two values share a path.
fn step(key: &str) -> String {
    if key.contains(['.', '[', '"']) || key.chars().any(char::is_control) { format!("{key:?}") } else { key.to_owned() }
}

/// Whether a path is of a pattern; letters of either case are alike.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let steps = |s: &str| s.replace('[', ".[").split('.').map(str::to_lowercase).collect::<Vec<_>>();
    let (pattern, path) = (steps(pattern), steps(path));
    pattern.len() == path.len()
        && pattern.iter().zip(&path).all(|(p, s)| p == s || p == "*" || (p == "[*]" && s.starts_with('[')))
}
