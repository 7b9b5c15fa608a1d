//! One query, one answer: an authoritative server (RFC 1034, 1035) for `ipop` and for the names of overlay addresses. It
//! knows what it is told and asks nobody else.

use super::TTL;
use super::table::{Found, Table};
use hickory_proto::op::{
    DEFAULT_MAX_PAYLOAD_LEN, Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, PTR, SOA};
use hickory_proto::rr::{DNSClass, LowerName, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use std::net::IpAddr;

/// Longest query, in bytes: a name has 255, and no option that is of use here is long.
pub(super) const MAX_QUERY: usize = 4096;
/// Records beside the question: EDNS, and a signature that nobody here can check.
const MAX_EXTRA: u16 = 4;
/// A client without EDNS takes so much over UDP (RFC 1035, section 4.2.1).
const PLAIN_UDP: u16 = 512;
/// Times of SOA that only secondary servers look at, and there are none, in seconds.
const REFRESH: i32 = 3600;
const RETRY: i32 = 600;
const EXPIRE: i32 = 86_400;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Answers may have to be cut.
    Udp,
    /// They need not.
    Tcp,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// It is a program of this machine.
    pub own: bool,
    /// How it came.
    pub transport: Transport,
}

/// The answer to a query, in wire format; `None` to what deserves none: what is shorter than a header, and answers.
#[must_use]
pub fn answer(query: &[u8], asker: Asker, table: &Table) -> Option<Vec<u8>> {
    let mut decoder = BinDecoder::new(query);
    let header = Header::read(&mut decoder).ok()?;
    if header.message_type == MessageType::Response {
        return None;
    }
    let mut reply = Message::response(header.id, header.op_code);
    reply.metadata = Metadata::response_from_request(&header.metadata);
    let mut limit = PLAIN_UDP;
    let code = if header.op_code == OpCode::Query {
        read(&header, &mut decoder, asker, &mut reply, &mut limit).and_then(|query| look_up(&query, table, &mut reply))
    } else {
        Err(ResponseCode::NotImp)
    };
    reply.metadata.response_code = code.err().unwrap_or(ResponseCode::NoError);
    let whole = reply.to_vec().ok()?;
    if asker.transport == Transport::Tcp || whole.len() <= limit.into() {
        return Some(whole);
    }
    // A part of the addresses would be taken for all of them (RFC 2181, section 9).
    reply.truncate().to_vec().ok()
}

/// Reads the question and EDNS, and begins the reply with them.
fn read(
    header: &Header,
    decoder: &mut BinDecoder<'_>,
    asker: Asker,
    reply: &mut Message,
    limit: &mut u16,
) -> Result<Query, ResponseCode> {
    let bad = |_| ResponseCode::FormErr;
    // RFC 9619: exactly one question. No question is for cookies alone, which are not used here.
    if header.counts.queries != 1 {
        return Err(ResponseCode::FormErr);
    }
    let query = Query::read(decoder).map_err(bad)?;
    reply.add_query(query.clone());
    // Strangers get no further into this code than that.
    if !asker.own {
        return Err(ResponseCode::Refused);
    }
    if header.counts.answers != 0 || header.counts.authorities != 0 || header.counts.additionals > MAX_EXTRA {
        return Err(ResponseCode::FormErr);
    }
    let count = header.counts.additionals.into();
    let (_, edns, _) = Message::read_records(decoder, count, true, OpCode::Query).map_err(bad)?;
    if !decoder.is_empty() {
        return Err(ResponseCode::FormErr);
    }
    if let Some(asked) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(DEFAULT_MAX_PAYLOAD_LEN).set_dnssec_ok(asked.flags().dnssec_ok);
        reply.set_edns(edns);
        *limit = asked.max_payload().clamp(PLAIN_UDP, DEFAULT_MAX_PAYLOAD_LEN);
        if asked.version() > 0 {
            return Err(ResponseCode::BADVERS);
        }
    }
    Ok(query)
}

/// Puts the answer into the reply.
fn look_up(query: &Query, table: &Table, reply: &mut Message) -> Result<(), ResponseCode> {
    let kind = query.query_type();
    // Nobody gets the whole list.
    if query.query_class() != DNSClass::IN || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        return Err(ResponseCode::Refused);
    }
    let Some((zone, found)) = table.find(&LowerName::from(query.name())) else {
        return Err(ResponseCode::Refused);
    };
    reply.metadata.authoritative = true;
    let mut give = |data: RData| {
        reply.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
    };
    match (found, kind) {
        // RFC 8482, section 4.2: there is something, and one may ask for it by its type.
        (Found::Addresses(_) | Found::Pointer(_) | Found::Apex, RecordType::ANY) => {
            give(RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())));
        }
        (Found::Addresses(all), RecordType::A | RecordType::AAAA) => {
            for a in all {
                match a {
                    IpAddr::V4(a) if kind == RecordType::A => give(RData::A(A(*a))),
                    IpAddr::V6(a) if kind == RecordType::AAAA => give(RData::AAAA(AAAA(*a))),
                    _ => {}
                }
            }
        }
        (Found::Pointer(name), RecordType::PTR) => give(RData::PTR(PTR(name.clone()))),
        (_, RecordType::SOA) if *query.name() == zone => give(RData::SOA(soa(table))),
        (_, RecordType::NS) if *query.name() == zone => give(RData::NS(NS(table.server().clone()))),
        _ => {}
    }
    let nothing = found == Found::Nothing;
    if reply.answers.is_empty() {
        // Both kinds of nothing are remembered as long as this says (RFC 2308, sections 3 and 5).
        reply.add_authority(Record::from_rdata(zone, TTL, RData::SOA(soa(table))));
    }
    if nothing { Err(ResponseCode::NXDomain) } else { Ok(()) }
}

fn soa(table: &Table) -> SOA {
    // Mail to it reaches nobody; the field has to be there.
    let contact = table.server().prepend_label("hostmaster").unwrap_or_else(|_| Name::root());
    SOA::new(table.server().clone(), contact, table.serial(), REFRESH, RETRY, EXPIRE, TTL)
}
