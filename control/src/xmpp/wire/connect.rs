//! From nothing to a bound stream: TCP, TLS, SASL, resource.
//!
//! Ours, and not the library's client, because that offers channel binding (which ejabberd 23.01 offers and then
//! refuses), falls back to PLAIN, and keeps why it failed to its log.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, SinkExt, StreamExt};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sasl::common::{ChannelBinding, Credentials};
use tokio::io::BufStream;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_xmpp::connect::AsyncReadAndWrite;
use tokio_xmpp::error::AuthError;
use tokio_xmpp::jid::{BareJid, FullJid};
use tokio_xmpp::parsers::sasl::DefinedCondition;
use tokio_xmpp::parsers::{ns, starttls};
use tokio_xmpp::xmlstream::{
    FallibleStreamElement, ReadError, StreamHeader, Timeouts, XmlStream, XmppStreamElement, initiate_stream,
};
use zeroize::Zeroizing;

use super::locate::{DNS_LIMIT, Located, Place, locate};
use super::{Incoming, Wire};
use crate::config::XmppConfig;
use crate::xmpp::xml::{Build, CLIENT, element};

/// A server that is silent for so long is asked for a sign of life, ...
const SILENCE: Duration = Duration::from_secs(30);
/// ... and given so long to give it.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// For the whole way to a bound stream.
const LOGIN_LIMIT: Duration = Duration::from_secs(20);
/// For one address of a server.
const TCP_LIMIT: Duration = Duration::from_secs(6);
/// For one server to talk, once it is connected: with both limits of DNS still within [`LOGIN_LIMIT`].
const PLACE_LIMIT: Duration = Duration::from_secs(6);
/// The next server of a domain gets its chance so soon: a lost packet is sent again after a second.
const PLACE_STAGGER: Duration = Duration::from_millis(1500);
/// The next address of a server gets its chance so soon (RFC 8305, section 5).
const ADDRESS_STAGGER: Duration = Duration::from_millis(250);
/// Of one server.
const MAX_ADDRESSES: usize = 16;
/// So many servers of a domain are named in an error.
const TOLD: usize = 4;
/// PLAIN shows the password to a server that is not the right one, ANONYMOUS is no account.
const MECHANISMS: [&str; 2] = ["SCRAM-SHA-256", "SCRAM-SHA-1"];

/// Why there is no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::xmpp) enum ConnectError {
    /// Trying again cannot help.
    #[error("{0}")]
    Refused(String),
    /// The server is not there: may be back any moment.
    #[error("{0}")]
    Unreachable(String),
    /// It is there and something is wrong with it or with our settings: a person has to do something.
    #[error("{0}")]
    Unusable(String),
    /// Another process uses the same resource.
    #[error("{0}")]
    Conflict(String),
}

/// What a connection needs.
#[derive(Clone)]
pub(in crate::xmpp) struct Target {
    pub account: XmppConfig,
    pub jid: BareJid,
    pub resource: String,
    pub tls: Arc<ClientConfig>,
}

type Io = BufStream<TlsStream<TcpStream>>;
type Step<T> = Result<T, ConnectError>;

/// Connects and logs in.
pub(in crate::xmpp) async fn connect(target: &Target) -> Step<(Wire, FullJid)> {
    match tokio::time::timeout(LOGIN_LIMIT, login(target)).await {
        Ok(done) => done,
        Err(_) => Err(ConnectError::Unreachable(format!("the server took longer than {LOGIN_LIMIT:?} for the login"))),
    }
}

async fn login(target: &Target) -> Step<(Wire, FullJid)> {
    let (pending, address) = reach(target).await?;
    let (features, stream) =
        pending.recv_features::<FallibleStreamElement>().await.map_err(|e| stream_error(e.into()))?;
    let offered = features.sasl_mechanisms;
    let usable: BTreeSet<String> =
        MECHANISMS.iter().filter(|m| offered.contains(**m)).map(|m| (*m).to_owned()).collect();
    if usable.is_empty() {
        let offered: Vec<_> = offered.into_iter().collect();
        let why = format!("the server offers no SCRAM, only {}: enable SCRAM-SHA-256 there", offered.join(", "));
        return Err(ConnectError::Unusable(why));
    }
    let user = target.jid.node().map(ToString::to_string).unwrap_or_default();
    let credentials = sasl_credentials(user, &target.account.password);
    let stream =
        tokio_xmpp::client_login(stream, usable, credentials).await.map_err(|e| login_error(e, &target.jid))?;
    let header = header(&target.jid);
    let pending = stream.send_header(header).await.map_err(unreachable)?;
    let (_, stream) = pending.recv_features::<Incoming>().await.map_err(|e| stream_error(e.into()))?;
    let mut stream: XmlStream<Box<dyn AsyncReadAndWrite + Send>, Incoming> = stream.box_stream();
    let jid = bind(&mut stream, &target.resource).await?;
    if jid.to_bare() != target.jid || jid.resource().as_str() != target.resource {
        let why = format!("the server bound {jid} instead of resource {}: it may be in use", target.resource);
        return Err(ConnectError::Conflict(why));
    }
    Ok((Wire::new(stream, address), jid))
}

fn sasl_credentials(user: String, password: &Zeroizing<String>) -> Credentials {
    Credentials::default()
        .with_username(user)
        .with_password(password.as_str())
        .with_channel_binding(ChannelBinding::None)
}

/// To the server that the configuration names, or to one that DNS does, up to the features that it offers under TLS; and
/// where it is.
async fn reach(target: &Target) -> Step<(Pending, Option<IpAddr>)> {
    let direct_tls = target.account.direct_tls;
    let domain = target.jid.domain().to_string();
    let Located { places, doubt } = match target.account.server.clone() {
        Some((host, port)) => Located { places: vec![Place { host, port, direct_tls }], doubt: None },
        None => locate(&domain).await.map_err(ConnectError::Unusable)?,
    };
    let attempts: Vec<_> = places.iter().map(|p| open_place(target, p).boxed()).collect();
    let failed = match first_of(attempts, PLACE_STAGGER).await {
        Ok(pending) => return Ok(pending),
        Err(failed) => failed,
    };
    let named = |(e, p): (&ConnectError, &Place)| format!("{p}: {e}");
    let mut why = failed.iter().zip(&places).map(named).take(TOLD).collect::<Vec<_>>().join("; ");
    if failed.len() > TOLD {
        let _ = write!(why, "; and {} more", failed.len() - TOLD);
    }
    if target.account.server.is_none() {
        let doubt = doubt.map_or_else(String::new, |d| format!(" (SRV records: {d})"));
        why = format!("no server found for {domain}{doubt}: {why}; set `server` if DNS does not name it");
    }
    Err(if failed.iter().any(|e| matches!(e, ConnectError::Refused(_))) {
        ConnectError::Refused(why)
    } else if failed.iter().any(|e| matches!(e, ConnectError::Unusable(_))) {
        ConnectError::Unusable(why)
    } else {
        ConnectError::Unreachable(why)
    })
}

/// One server. One that takes the connection and then says nothing is as dead as one that does not take it.
async fn open_place(target: &Target, place: &Place) -> Step<(Pending, Option<IpAddr>)> {
    let tcp = tcp(&place.host, place.port).await?;
    let address = tcp.peer_addr().ok().map(|a| a.ip().to_canonical());
    let talk = async { if place.direct_tls { direct(target, tcp).await } else { start_tls(target, tcp).await } };
    let limit = || ConnectError::Unreachable(format!("it says nothing for {} s", PLACE_LIMIT.as_secs()));
    let pending = tokio::time::timeout(PLACE_LIMIT, talk).await.map_err(|_| limit())??;
    Ok((pending, address))
}

/// A connection to the first of its addresses that takes one.
async fn tcp(host: &str, port: u16) -> Step<TcpStream> {
    let name = host.to_owned();
    // The system's resolver, for all that it knows beside DNS. It may wait longer than we do, on its own thread.
    let look_up = tokio::task::spawn_blocking(move || (name.as_str(), port).to_socket_addrs());
    let found = match tokio::time::timeout(DNS_LIMIT, look_up).await {
        Ok(Ok(Ok(addresses))) => addresses,
        Ok(Ok(Err(e))) => return Err(ConnectError::Unreachable(e.to_string())),
        Ok(Err(e)) => return Err(ConnectError::Unreachable(e.to_string())),
        Err(_) => {
            let why = format!("its address is not known: no answer from DNS within {} s", DNS_LIMIT.as_secs());
            return Err(ConnectError::Unreachable(why));
        }
    };
    let attempts: Vec<_> = found.take(MAX_ADDRESSES).map(|a| tcp_to(a).boxed()).collect();
    let failed = match first_of(attempts, ADDRESS_STAGGER).await {
        Ok(stream) => return Ok(stream),
        Err(failed) => failed,
    };
    Err(failed.into_iter().next().unwrap_or_else(|| ConnectError::Unreachable("it has no address".into())))
}

async fn tcp_to(address: SocketAddr) -> Step<TcpStream> {
    match tokio::time::timeout(TCP_LIMIT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) => Err(ConnectError::Unreachable(e.to_string())),
        Err(_) => Err(ConnectError::Unreachable(format!("no answer within {} s", TCP_LIMIT.as_secs()))),
    }
}

/// Makes attempts in their order, the next one when one has failed or is slow. Gives what the first has that works, or
/// the errors, in the order of the attempts.
async fn first_of<T>(attempts: Vec<BoxFuture<'_, Step<T>>>, stagger: Duration) -> Result<T, Vec<ConnectError>> {
    let mut waiting = attempts.into_iter().enumerate().peekable();
    let mut running = FuturesUnordered::new();
    let mut failed = Vec::new();
    loop {
        if let Some((n, attempt)) = waiting.next() {
            running.push(async move { (n, attempt.await) });
        }
        let more = waiting.peek().is_some();
        tokio::select! {
            done = running.next() => match done {
                Some((_, Ok(value))) => return Ok(value),
                Some((n, Err(e))) => failed.push((n, e)),
                None => break,
            },
            () = tokio::time::sleep(stagger), if more => {}
        }
    }
    failed.sort_by_key(|(n, _)| *n);
    Err(failed.into_iter().map(|(_, e)| e).collect())
}

type Pending = tokio_xmpp::xmlstream::PendingFeaturesRecv<Io>;

async fn start_tls(target: &Target, tcp: TcpStream) -> Step<Pending> {
    let pending = open(BufStream::new(tcp), &target.jid).await?;
    let (features, mut stream) =
        pending.recv_features::<FallibleStreamElement>().await.map_err(|e| stream_error(e.into()))?;
    if !features.can_starttls() {
        return Err(ConnectError::Unusable(
            "the server offers no TLS on this port (direct_tls may be what it wants)".into(),
        ));
    }
    let request = XmppStreamElement::Starttls(starttls::Nonza::Request(starttls::Request));
    stream.send(&request).await.map_err(unreachable)?;
    match stream.next().await {
        Some(Ok(FallibleStreamElement::Ok(XmppStreamElement::Starttls(starttls::Nonza::Proceed(_))))) => {}
        Some(Err(ReadError::HardError(e))) => return Err(unreachable(e)),
        _ => return Err(ConnectError::Unusable("the server did not go on with STARTTLS".into())),
    }
    // What came before TLS is worth nothing: also what is in the buffer (CVE-2011-0411 and its like).
    direct(target, stream.into_inner().into_inner()).await
}

async fn direct(target: &Target, tcp: TcpStream) -> Step<Pending> {
    let _ = tcp.set_nodelay(true);
    let domain = target.jid.domain().to_string();
    let name = ServerName::try_from(domain.clone())
        .map_err(|e| ConnectError::Refused(format!("{domain} cannot be the name in a certificate: {e}")))?;
    let tls = TlsConnector::from(Arc::clone(&target.tls)).connect(name, tcp).await;
    let tls = tls.map_err(|e| tls_error(&target.account, &domain, e))?;
    open(BufStream::new(tls), &target.jid).await
}

async fn open<S>(io: S, jid: &BareJid) -> Step<tokio_xmpp::xmlstream::PendingFeaturesRecv<S>>
where
    S: tokio::io::AsyncBufRead + tokio::io::AsyncWrite + Unpin,
{
    let timeouts = Timeouts { read_timeout: SILENCE, response_timeout: SIGN_OF_LIFE };
    initiate_stream(io, ns::JABBER_CLIENT, header(jid), timeouts).await.map_err(unreachable)
}

fn header(jid: &BareJid) -> StreamHeader<'static> {
    StreamHeader { to: Some(Cow::Owned(jid.domain().to_string())), from: None, id: None }
}

/// RFC 6120, section 7.
async fn bind<I>(stream: &mut XmlStream<I, Incoming>, resource: &str) -> Step<FullJid>
where
    I: tokio::io::AsyncBufRead + tokio::io::AsyncWrite + Unpin,
{
    let bind = element("bind", ns::BIND).child(element("resource", ns::BIND).words(resource));
    let iq = element("iq", CLIENT).with("type", "set").with("id", "bind").child(bind);
    stream.send(&iq).await.map_err(unreachable)?;
    loop {
        match stream.next().await {
            Some(Ok(Incoming::Element(e))) if e.is("iq", CLIENT) && e.attr("id") == Some("bind") => {
                if e.attr("type") == Some("error") {
                    let conflict =
                        e.get_child("error", CLIENT).is_some_and(|x| x.has_child("conflict", ns::XMPP_STANZAS));
                    let why = format!("the server refused resource {resource}: {}", String::from(&e));
                    return Err(if conflict { ConnectError::Conflict(why) } else { ConnectError::Unusable(why) });
                }
                let jid = e.get_child("bind", ns::BIND).and_then(|b| b.get_child("jid", ns::BIND)).map(|j| j.text());
                return jid
                    .and_then(|j| FullJid::new(&j).ok())
                    .ok_or_else(|| ConnectError::Unusable("the server bound no full JID".into()));
            }
            Some(Ok(Incoming::Element(e))) if e.is("error", ns::STREAM) => {
                return Err(ConnectError::Unusable(format!("the server ended the stream: {}", String::from(&e))));
            }
            Some(Ok(_)) | Some(Err(ReadError::SoftTimeout)) => {}
            Some(Err(ReadError::HardError(e))) => return Err(unreachable(e)),
            Some(Err(e)) => return Err(ConnectError::Unusable(format!("{e:?}"))),
            None => return Err(ConnectError::Unreachable("the server closed the stream".into())),
        }
    }
}

fn unreachable(e: io::Error) -> ConnectError {
    ConnectError::Unreachable(format!("the connection broke: {e}"))
}

fn stream_error(e: tokio_xmpp::Error) -> ConnectError {
    match e {
        tokio_xmpp::Error::Io(e) => unreachable(e),
        // The server is going down or starting: it says so in a stream error.
        e => ConnectError::Unreachable(format!("the server ended the stream: {e}")),
    }
}

fn login_error(e: tokio_xmpp::Error, jid: &BareJid) -> ConnectError {
    match e {
        tokio_xmpp::Error::Auth(AuthError::Fail(
            DefinedCondition::TemporaryAuthFailure | DefinedCondition::Aborted,
        )) => ConnectError::Unreachable("the server cannot check passwords now".into()),
        tokio_xmpp::Error::Auth(AuthError::Fail(DefinedCondition::NotAuthorized)) => {
            ConnectError::Refused(format!("the server refused account {jid}: no such account, or a wrong password"))
        }
        tokio_xmpp::Error::Auth(AuthError::Fail(condition)) => {
            ConnectError::Refused(format!("the server refused account {jid}: {condition:?}"))
        }
        // SCRAM is mutual: the server could not show that it knows the password.
        tokio_xmpp::Error::Auth(e) => ConnectError::Unusable(format!("the login as {jid} failed: {e}")),
        e => stream_error(e),
    }
}

fn tls_error(account: &XmppConfig, domain: &str, e: io::Error) -> ConnectError {
    let trusted = match account.ca_file {
        Some(_) => "in ca_file",
        None => "that this system trusts (set ca_file if it is a private one)",
    };
    match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(why)) => ConnectError::Unusable(format!(
            "the server's certificate is not to be trusted ({why}): it must be for {domain} and signed by an authority \
             {trusted}"
        )),
        Some(why) => ConnectError::Unusable(format!("no TLS with the server of {domain}: {why}")),
        None => unreachable(e),
    }
}
