//! Words and numbers of fixed widths. Everything that another node chose passes [`plain`]: a name shall not move the
//! cursor of a terminal.

use std::fmt::Write as _;

/// Columns of a line.
pub const WIDTH: usize = 100;

/// `s` in printable ASCII; anything else is escaped as in Rust.
#[must_use]
pub fn plain(s: &str) -> String {
    let mut text = String::with_capacity(s.len());
    for c in s.chars() {
        if c == ' ' || c.is_ascii_graphic() {
            text.push(c);
        } else {
            let _ = write!(text, "{}", c.escape_default());
        }
    }
    text
}

/// [`plain`] as a cell of a table: never empty, no spaces around it, `~` at the end of what is longer than `most`
/// characters.
#[must_use]
pub fn clipped(s: &str, most: usize) -> String {
    let mut text = plain(s.trim());
    if text.is_empty() {
        text.push('-');
    }
    if text.len() > most {
        text.truncate(most.saturating_sub(1));
        text.push('~');
    }
    text
}

/// Bytes in powers of ten, as interfaces count: `0 B`, `999 B`, `1.2 kB`, `34.5 MB`.
#[must_use]
pub fn bytes(n: u64) -> String {
    if n < 1000 { format!("{n} B") } else { scaled(n as f64) }
}

/// A rate in at most four characters: `0`, `999`, `1.5M`, `15M`, `150G`.
#[must_use]
pub fn rate_short(bps: f64) -> String {
    let mut n = if bps.is_finite() { bps.clamp(0.0, LARGEST) } else { 0.0 };
    let mut prefixes = ["", "k", "M", "G", "T", "P", "E"].into_iter();
    let mut prefix = prefixes.next().unwrap_or_default();
    while n >= 999.5 {
        let Some(next) = prefixes.next() else { break };
        prefix = next;
        n /= 1000.0;
    }
    if n < 9.95 && !prefix.is_empty() { format!("{n:.1}{prefix}") } else { format!("{n:.0}{prefix}") }
}

/// No machine has more; it still fits its column.
const LARGEST: f64 = 999e18;

fn scaled(n: f64) -> String {
    let mut n = n.min(LARGEST) / 1000.0;
    let mut prefixes = ["k", "M", "G", "T", "P", "E"].into_iter();
    let mut prefix = prefixes.next().unwrap_or_default();
    // 999.95 would be shown as 1000.0.
    while n >= 999.95 {
        let Some(next) = prefixes.next() else { break };
        prefix = next;
        n /= 1000.0;
    }
    format!("{n:.1} {prefix}B")
}

/// Milliseconds: `0.42 ms`, `12.3 ms`, `1234 ms`.
#[must_use]
pub fn millis(ms: Option<f64>) -> String {
    match ms {
        Some(ms) if ms.is_finite() && ms >= 0.0 => match ms {
            ms if ms < 9.995 => format!("{ms:.2} ms"),
            ms if ms < 99.95 => format!("{ms:.1} ms"),
            ms => format!("{ms:.0} ms"),
        },
        _ => "-".to_owned(),
    }
}

/// A span of time in its largest unit: `7s`, `3m`, `2h`, `5d`.
#[must_use]
pub fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `label` and `items` behind it, in lines of at most [`WIDTH`] columns; nothing without items.
pub fn list(out: &mut String, label: &str, items: &[String]) {
    if items.is_empty() {
        return;
    }
    let indent = 14;
    let mut line = format!("  {label:<width$}", width = indent - 2);
    for (i, item) in items.iter().enumerate() {
        let item = format!("{}{}", plain(item), if i + 1 < items.len() { "," } else { "" });
        if line.len() > indent && line.len() + 1 + item.len() > WIDTH {
            let _ = writeln!(out, "{}", line.trim_end());
            line = " ".repeat(indent);
        } else if line.len() > indent {
            line.push(' ');
        }
        line.push_str(&item);
    }
    let _ = writeln!(out, "{}", line.trim_end());
}

/// `text` word by word in lines of at most [`WIDTH`] columns, all but the first indented by `indent`.
pub fn wrapped(out: &mut String, start: &str, text: &str, indent: usize) {
    let mut line = start.to_owned();
    let mut fresh = true;
    for word in plain(text).split_whitespace() {
        if !fresh && line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(out, "{line}");
            line = " ".repeat(indent);
            fresh = true;
        }
        if !fresh {
            line.push(' ');
        }
        line.push_str(word);
        fresh = false;
    }
    let _ = writeln!(out, "{}", line.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([bytes(0), bytes(999), bytes(1000), bytes(999_950)], ["0 B", "999 B", "1.0 kB", "1.0 MB"]);
        assert_eq!(bytes(u64::MAX), "18.4 EB");
        assert_eq!(
            [rate_short(0.0), rate_short(f64::NAN), rate_short(-1.0), rate_short(999.4)],
            ["0", "0", "0", "999"]
        );
        assert_eq!([rate_short(999.6), rate_short(1.5e6), rate_short(9.96e9)], ["1.0k", "1.5M", "10G"]);
        assert_eq!(rate_short(f64::MAX), "999E");
        assert_eq!([millis(None), millis(Some(f64::NAN)), millis(Some(-1.0))], ["-"; 3]);
        assert_eq!([millis(Some(0.421)), millis(Some(12.34)), millis(Some(1234.5))], ["0.42 ms", "12.3 ms", "1234 ms"]);
        assert_eq!([age(0), age(119), age(120), age(7_200), age(172_800)], ["0s", "119s", "2m", "2h", "2d"]);
    }

    #[test]
    fn a_terminal_gets_no_commands() {
        assert_eq!(plain("a\x1b[2Jb\r\n\u{e9}\u{202e}"), "a\\u{1b}[2Jb\\r\\n\\u{e9}\\u{202e}");
        assert_eq!(clipped("abcdef", 4), "abc~");
        assert_eq!([clipped(" abcd", 4), clipped(" ", 4)], ["abcd", "-"]);
    }

    proptest! {
        #[test]
        fn lists_and_sentences_fit_the_width(words in prop::collection::vec("[ -~]{0,60}", 0..20)) {
            let mut text = String::new();
            list(&mut text, "label", &words);
            wrapped(&mut text, "start ", &words.join(" "), 6);
            for line in text.lines() {
                prop_assert!(line.len() <= WIDTH, "{}", line);
            }
        }
    }
}
