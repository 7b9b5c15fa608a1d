//! The address in an SSDP message's LOCATION (UPnP Device Architecture 2.0, sections 1.2.2 and 1.3.3).

use super::Translation;
use std::io::Write;
use std::net::Ipv4Addr;

/// Messages are no longer: they ought to fit into one datagram of some 1,500 bytes.
const MAX_LEN: usize = 4096;
/// An IPv4 address as text, at most: "255.255.255.255".
const MAX_TEXT: usize = 15;

/// Makes the lease of the host in the first LOCATION header if that is the peer's own address. The message is the first
/// `len` bytes of `buf`; gives its new length if it changed, and leaves it alone if there is no room to grow.
pub(super) fn rewrite(t: &Translation, buf: &mut [u8], len: usize) -> Option<usize> {
    if len > MAX_LEN {
        return None;
    }
    let (start, end) = location_host(&buf[..len])?;
    if std::str::from_utf8(&buf[start..end]).ok()?.parse() != Ok(t.peer) {
        return None;
    }
    let (text, text_len) = decimal(t.lease);
    let (new_end, new_len) = (start + text_len, len - (end - start) + text_len);
    if new_len > buf.len() {
        return None;
    }
    buf.copy_within(end..len, new_end);
    buf[start..new_end].copy_from_slice(&text[..text_len]);
    Some(new_len)
}

/// An address as text.
fn decimal(a: Ipv4Addr) -> ([u8; MAX_TEXT], usize) {
    let mut text = [0; MAX_TEXT];
    let mut rest = &mut text[..];
    // Cannot fail: it fits.
    let _ = write!(rest, "{a}");
    let left = rest.len();
    (text, MAX_TEXT - left)
}

/// From where to where the host of the first LOCATION header's URL (RFC 3986 section 3.2) goes.
fn location_host(message: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    for line in message.split(|b| *b == b'\n') {
        let start = at;
        at += line.len() + 1;
        if line.trim_ascii().is_empty() {
            // What follows is no header.
            return None;
        }
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        if !line[..colon].trim_ascii().eq_ignore_ascii_case(b"location") {
            continue;
        }
        let scheme = colon + line[colon..].windows(3).position(|w| w == b"://")? + 3;
        let authority = &line[scheme..];
        let authority = &authority[..end_of(authority, b"/?# \t\r")];
        let host = authority.iter().rposition(|b| *b == b'@').map_or(0, |at| at + 1);
        let len = end_of(&authority[host..], b":");
        return Some((start + scheme + host, start + scheme + host + len));
    }
    None
}

/// How many bytes come before any of `marks`.
fn end_of(text: &[u8], marks: &[u8]) -> usize {
    text.iter().position(|b| marks.contains(b)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::super::GROWTH;
    use super::*;

    fn t(peer: &str, lease: &str) -> Translation {
        let address = |a: &str| a.parse().expect("an address");
        Translation { peer: address(peer), lease: address(lease), own: address("10.0.0.1"), broadcast: None }
    }

    fn run(t: &Translation, message: &str, room: usize) -> Option<String> {
        let mut buf = [message.as_bytes(), &vec![0xee; room]].concat();
        let len = rewrite(t, &mut buf, message.len())?;
        Some(String::from_utf8(buf[..len].to_vec()).expect("text"))
    }

    const NOTIFY: &str = "NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nX: 1.1.1.1\r\nLocation:  http://1.1.1.1:80/1.1.1.1?a=1.1.1.1\r\nUSN: u\r\n\r\n";

    #[test]
    fn the_host_of_the_location_becomes_the_lease_and_nothing_else_does() {
        for lease in ["255.255.255.254", "2.2.2.2", "10.0.0.2"] {
            let expected = NOTIFY.replace("//1.1.1.1:", &format!("//{lease}:"));
            assert_eq!(run(&t("1.1.1.1", lease), NOTIFY, GROWTH).as_deref(), Some(&*expected));
        }
        let long = NOTIFY.replace("//1.1.1.1", "//172.131.100.100");
        let expected = NOTIFY.replace("//1.1.1.1", "//8.8.8.8");
        assert_eq!(run(&t("172.131.100.100", "8.8.8.8"), &long, 0), Some(expected), "it shrinks");
    }

    #[test]
    fn other_forms_of_the_header_are_understood() {
        let t = t("1.1.1.1", "10.20.30.40");
        for (before, after) in [
            ("OK\r\nLOCATION:http://1.1.1.1\r\n\r\n", "OK\r\nLOCATION:http://10.20.30.40\r\n\r\n"),
            ("OK\nlocation : https://1.1.1.1/x\n\n", "OK\nlocation : https://10.20.30.40/x\n\n"),
            ("OK\r\nLocation: http://me:you@1.1.1.1:1/@", "OK\r\nLocation: http://me:you@10.20.30.40:1/@"),
            ("OK\r\nLOCATION: http://1.1.1.1 \r\n", "OK\r\nLOCATION: http://10.20.30.40 \r\n"),
        ] {
            assert_eq!(run(&t, before, 16).as_deref(), Some(after));
        }
    }

    #[test]
    fn what_names_somebody_else_or_has_no_room_or_is_no_header_stays() {
        let t = t("1.1.1.1", "10.20.30.40");
        for message in [
            "OK\r\nLOCATION: http://1.1.1.11/\r\n\r\n",
            "OK\r\nLOCATION: http://11.1.1.1/\r\n\r\n",
            "OK\r\nLOCATION: http://laptop/1.1.1.1\r\n\r\n",
            "OK\r\nLOCATION: http://[::1]/\r\n\r\n",
            "OK\r\nLOCATION: 1.1.1.1\r\n\r\n",
            "OK\r\nLOCATION:\r\nX: http://1.1.1.1/\r\n\r\n",
            "OK\r\nXLOCATION: http://1.1.1.1/\r\n\r\n",
            "OK\r\n\r\nLOCATION: http://1.1.1.1/\r\n\r\n",
            "LOCATION",
            "LOCATION:",
            "LOCATION: ://",
            "",
            "\n",
        ] {
            assert_eq!(run(&t, message, 16), None, "{message}");
        }
        assert_eq!(run(&t, "OK\r\nLOCATION: http://1.1.1.1/", 3), None, "no room for four more");
        assert!(run(&t, "OK\r\nLOCATION: http://1.1.1.1/", 4).is_some());
        let long = format!("OK\r\nLOCATION: http://1.1.1.1/\r\nX: {}\r\n\r\n", "x".repeat(MAX_LEN));
        assert_eq!(run(&t, &long, 16), None);
    }
}
