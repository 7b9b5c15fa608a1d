//! Where the servers of a domain are: SRV records (RFC 6120, section 3.2; RFC 2782), those for TLS from the first byte
//! among them (XEP-0368), or the domain's own addresses.
//!
//! Ours, and not the library's, because that takes records in any order, gives up with the first server that does not
//! answer, and goes to the domain's own addresses although DNS says that there is no such service.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::{Name, RData};

/// Of a domain without SRV records.
const PORT: u16 = 5222;
/// For what the name servers say. A login that waits for them longer is better begun anew.
pub(super) const DNS_LIMIT: Duration = Duration::from_secs(5);
/// For one question to one name server: with two that are dead, a third is heard within [`DNS_LIMIT`].
const QUESTION_LIMIT: Duration = Duration::from_secs(2);
/// Of one domain. Who has more has some to spare.
const MAX_PLACES: usize = 16;

/// Where a server may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// A name or an address.
    pub host: String,
    pub port: u16,
    /// TLS from the first byte.
    pub direct_tls: bool,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What is known about a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located {
    /// In the order in which they are to be tried.
    pub places: Vec<Place>,
    /// What went wrong on the way, if they are a guess.
    pub doubt: Option<String>,
}

/// An SRV record.
#[derive(Clone, Debug)]
struct Record {
    priority: u16,
    weight: u16,
    port: u16,
    /// Without the last dot; empty: no such service here.
    target: String,
}

/// What came back for a question.
enum Answer {
    /// At least one.
    Records(Vec<Record>),
    /// There are none.
    None,
    /// Nobody knows.
    Failed(String),
}

/// Asks the name servers about a domain; an address needs no asking. An error: the domain says that it has no server.
pub(super) async fn locate(domain: &str) -> Result<Located, String> {
    if domain.parse::<IpAddr>().is_ok() {
        return Ok(Located { places: vec![own(domain)], doubt: None });
    }
    // Anew each time: resolv.conf changes as the machine moves.
    let resolver = TokioResolver::builder_tokio().and_then(|mut b| {
        let options = b.options_mut();
        options.timeout = options.timeout.min(QUESTION_LIMIT);
        b.build()
    });
    let (start, direct) = match resolver {
        Ok(r) => tokio::join!(ask(&r, domain, "_xmpp-client._tcp"), ask(&r, domain, "_xmpps-client._tcp")),
        Err(e) => (Answer::Failed(format!("the system's settings: {e}")), Answer::None),
    };
    choose(domain, start, direct, |most| {
        let mut bytes = [0; 4];
        // Without randomness the first is always the first, which is no reason to stop.
        let _ = getrandom::fill(&mut bytes);
        u32::from_le_bytes(bytes) % most.saturating_add(1)
    })
}

fn own(domain: &str) -> Place {
    Place { host: domain.to_owned(), port: PORT, direct_tls: false }
}

async fn ask(resolver: &TokioResolver, domain: &str, service: &str) -> Answer {
    // The dot: not below what resolv.conf searches.
    let name = match Name::from_utf8(format!("{service}.{domain}.")) {
        Ok(name) => name,
        Err(e) => return Answer::Failed(format!("{domain} is no name for DNS: {e}")),
    };
    let found = match tokio::time::timeout(DNS_LIMIT, resolver.srv_lookup(name)).await {
        Err(_) => return Answer::Failed(format!("no answer from DNS within {} s", DNS_LIMIT.as_secs())),
        Ok(Err(e)) if e.is_no_records_found() || e.is_nx_domain() => return Answer::None,
        Ok(Err(e)) => return Answer::Failed(format!("DNS: {e}")),
        Ok(Ok(found)) => found,
    };
    let records = found.answers().iter().filter_map(|r| match &r.data {
        RData::SRV(s) => Some(Record {
            priority: s.priority,
            weight: s.weight,
            port: s.port,
            target: s.target.to_ascii().trim_end_matches('.').to_owned(),
        }),
        _ => None,
    });
    let records: Vec<Record> = records.collect();
    if records.is_empty() { Answer::None } else { Answer::Records(records) }
}

/// Puts both kinds of records in one order, as XEP-0368 wants it. `random` gives a number up to the given one.
fn choose(domain: &str, start: Answer, direct: Answer, mut random: impl FnMut(u32) -> u32) -> Result<Located, String> {
    // A target of "." denies the service. That of STARTTLS is the one that a domain has if it has any: with it denied,
    // nobody is at the domain's own addresses.
    let denied = matches!(&start, Answer::Records(r) if r.iter().all(|r| r.target.is_empty()));
    let mut doubts = Vec::new();
    let mut left = Vec::new();
    for (answer, direct_tls) in [(start, false), (direct, true)] {
        match answer {
            Answer::Records(records) => {
                left.extend(records.into_iter().filter(|r| !r.target.is_empty()).map(|r| (r, direct_tls)));
            }
            Answer::None => {}
            Answer::Failed(why) if doubts.contains(&why) => {}
            Answer::Failed(why) => doubts.push(why),
        }
    }
    if left.is_empty() {
        return if denied {
            Err(format!("DNS says that {domain} has no XMPP server for clients (SRV target \".\")"))
        } else {
            let doubt = (!doubts.is_empty()).then(|| doubts.join("; "));
            Ok(Located { places: vec![own(domain)], doubt })
        };
    }
    let mut places = Vec::new();
    while let Some(first) = left.iter().map(|(r, _)| r.priority).min()
        && places.len() < MAX_PLACES
    {
        // RFC 2782: those without weight first, so that they are not chosen but by a 0 (all but never).
        left.sort_by_key(|(r, _)| (r.priority, Reverse(r.weight == 0)));
        let sum = |n: usize| left[..n].iter().map(|(r, _)| u32::from(r.weight)).fold(0, u32::saturating_add);
        let group = left.iter().take_while(|(r, _)| r.priority == first).count();
        let wanted = random(sum(group));
        let n = (0..group).find(|n| sum(n + 1) >= wanted).unwrap_or(0);
        let (record, direct_tls) = left.remove(n);
        places.push(Place { host: record.target, port: record.port, direct_tls });
    }
    Ok(Located { places, doubt: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(list: &[(u16, u16, &str)]) -> Answer {
        let record = |&(priority, weight, target): &(u16, u16, &str)| Record {
            priority,
            weight,
            port: 5222,
            target: target.to_owned(),
        };
        Answer::Records(list.iter().map(record).collect())
    }

    fn hosts(start: Answer, direct: Answer, random: impl FnMut(u32) -> u32) -> Vec<String> {
        let located = choose("d.test", start, direct, random).unwrap();
        located.places.iter().map(|p| format!("{}{}", p.host, if p.direct_tls { " tls" } else { "" })).collect()
    }

    #[test]
    fn both_kinds_of_records_are_tried_in_one_order_of_priority() {
        let start = records(&[(20, 0, "c"), (5, 0, "a")]);
        assert_eq!(hosts(start, records(&[(10, 0, "b")]), |_| 0), ["a", "b tls", "c"]);
    }

    #[test]
    fn among_equals_the_weight_decides_and_everybody_is_tried_at_last() {
        let of =
            |n: u32| hosts(records(&[(1, 10, "a"), (1, 30, "b"), (1, 0, "z")]), Answer::None, move |most| n.min(most));
        assert_eq!(of(0), ["z", "a", "b"]);
        assert_eq!(of(10), ["a", "b", "z"]);
        assert_eq!(of(11), ["b", "a", "z"]);
        assert_eq!(of(40), ["b", "a", "z"]);
    }

    #[test]
    fn without_records_it_is_the_domain_itself_and_what_went_wrong_is_kept() {
        assert_eq!(hosts(Answer::None, Answer::None, |_| 0), ["d.test"]);
        let failed = || Answer::Failed("no answer".into());
        let located = choose("d.test", failed(), failed(), |_| 0).unwrap();
        assert_eq!((located.places, located.doubt.as_deref()), (vec![own("d.test")], Some("no answer")));
    }

    #[test]
    fn a_dot_denies_starttls_and_with_it_the_domains_own_addresses_but_not_servers_for_direct_tls() {
        let denied = || records(&[(0, 0, "")]);
        assert!(choose("d.test", denied(), Answer::None, |_| 0).unwrap_err().contains("no XMPP server"));
        assert!(choose("d.test", denied(), denied(), |_| 0).is_err());
        assert_eq!(hosts(denied(), records(&[(0, 0, "a")]), |_| 0), ["a tls"]);
        // Only direct TLS is denied: as if there were no such records.
        assert_eq!(hosts(Answer::None, denied(), |_| 0), ["d.test"]);
    }

    #[test]
    fn a_domain_with_a_thousand_servers_is_cut_short() {
        let many: Vec<(u16, u16, &str)> = (0..1000).map(|n| (n % 7, u16::MAX, "a")).collect();
        assert_eq!(hosts(records(&many), Answer::None, |most| most).len(), MAX_PLACES);
    }
}
