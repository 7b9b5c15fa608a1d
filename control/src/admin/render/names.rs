//! The names of nodes.

use super::super::names::Names;
use super::table::{self, Table};
use super::text::{plain, wrapped};
use std::fmt::Write as _;

/// One line a name; before them, whether and where they are answered.
#[must_use]
pub fn names(n: &Names) -> String {
    let mut out = String::new();
    let answered = match (n.enabled, n.answering.is_empty()) {
        (false, _) => "not answered: enabled = false below [names]".to_owned(),
        (true, true) => "NOT answered".to_owned(),
        (true, false) => format!("answered on {}", n.answering.join(" and ")),
    };
    wrapped(&mut out, "", &format!("{}: {answered}", n.node), 2);
    for problem in &n.problems {
        wrapped(&mut out, "  WARNING  ", problem, 11);
    }
    if n.enabled && !n.answering.is_empty() {
        let resolved = match n.resolved.as_str() {
            "told" => "asks there for ipop".to_owned(),
            "absent" => "does not run here: ask that server, as with dig @ADDRESS NAME".to_owned(),
            other => format!("FAILS: {other}"),
        };
        wrapped(&mut out, "  systemd-resolved ", &resolved, 11);
    }
    if n.refused > 0 {
        let _ = writeln!(out, "  {} queries of other machines were refused", n.refused);
    }
    // Nothing is shortened: names are there to be copied.
    let columns = [
        table::text("NAME", usize::MAX),
        table::text("ADDRESSES", usize::MAX),
        table::text("JID", usize::MAX),
        table::text("NETWORK", usize::MAX),
    ];
    let mut table = Table::new(&columns, true);
    for name in &n.names {
        let own = if name.own { " (this node)" } else { "" };
        let jid = format!("{}{own}", plain(&name.jid));
        table.row([name.name.clone(), name.addresses.join(" "), jid, name.network.clone()], String::new());
    }
    if n.names.is_empty() {
        out += "  no node has a name yet\n";
    } else {
        out += &table.show("  ");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::super::names::Name;
    use super::*;

    #[test]
    fn names_are_listed_with_what_is_wrong_first() {
        let name = |name: &str, own| Name {
            name: name.to_owned(),
            addresses: vec!["172.16.10.2".to_owned(), "fd00::2".to_owned()],
            jid: "vm1@example.org".to_owned(),
            network: "group:g\u{1b}[2J".to_owned(),
            own,
        };
        let mut n = Names {
            node: "vm1".to_owned(),
            enabled: true,
            answering: vec!["172.16.10.2:53".to_owned()],
            problems: vec!["names are not answered on [fd00::2]:53: another process has that port".to_owned()],
            resolved: "absent".to_owned(),
            refused: 3,
            names: vec![name("vm1.g.ipop", true), name("vm2.g.ipop", false)],
        };
        let text = names(&n);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0] == "vm1: answered on 172.16.10.2:53" && lines[1].starts_with("  WARNING  names"), "{text}");
        assert!(text.contains("does not run here") && text.contains("3 queries of other machines"), "{text}");
        let line = lines.iter().find(|l| l.contains("vm1.g.ipop")).expect("its line");
        assert!(line.contains("172.16.10.2 fd00::2") && line.contains("vm1@example.org (this node)"), "{line}");
        assert!(!text.contains('\u{1b}'), "a name moves the cursor");
        n.resolved = "told".to_owned();
        assert!(names(&n).contains("asks there for ipop"));
        n.resolved = "resolvectl: no".to_owned();
        assert!(names(&n).contains("FAILS: resolvectl: no"));
        let off = Names { node: "vm1".to_owned(), ..Names::default() };
        assert!(names(&off).contains("enabled = false") && names(&off).contains("no node has a name yet"));
    }
}
