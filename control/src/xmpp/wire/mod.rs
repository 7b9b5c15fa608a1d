//! One stream to the server: elements in, elements out, both bounded.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{Sink, SinkExt, Stream};
use tokio_xmpp::connect::AsyncReadAndWrite;
use tokio_xmpp::minidom::Element;
use tokio_xmpp::xmlstream::{ReadError, XmlStream};

mod bounded;
mod connect;
mod locate;
mod tls;

pub(super) use bounded::Incoming;
pub(super) use connect::{ConnectError, Target, connect};
pub(super) use tls::config as tls_config;

/// Elements that wait to be written. A server that takes nothing for so many is as good as gone.
const MAX_OUT: usize = 8192;
/// For saying goodbye.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// What the stream has to say.
#[derive(Debug)]
pub(super) enum Heard {
    /// An element.
    Incoming(Incoming),
    /// Nothing for half a minute: ask for a sign of life.
    Silence,
    /// The end.
    Ended(String),
}

/// A bound stream.
pub(super) struct Wire {
    stream: XmlStream<Box<dyn AsyncReadAndWrite + Send>, Incoming>,
    out: VecDeque<Element>,
    /// Of the server.
    pub(super) address: Option<IpAddr>,
}

impl Wire {
    fn new(stream: XmlStream<Box<dyn AsyncReadAndWrite + Send>, Incoming>, address: Option<IpAddr>) -> Self {
        Self { stream, out: VecDeque::new(), address }
    }

    /// Queues an element for writing; `false` if the queue is full.
    pub(super) fn push(&mut self, e: Element) -> bool {
        if self.out.len() >= MAX_OUT {
            return false;
        }
        self.out.push_back(e);
        true
    }

    /// Writes what is queued and, if `read`, waits for what comes. Nothing is lost when the future is dropped.
    pub(super) async fn turn(&mut self, read: bool) -> Heard {
        std::future::poll_fn(|cx| {
            if let Poll::Ready(Err(e)) = self.poll_write(cx) {
                return Poll::Ready(Heard::Ended(format!("the connection broke: {e}")));
            }
            if read { self.poll_read(cx) } else { Poll::Pending }
        })
        .await
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = Pin::new(&mut self.stream);
        while !self.out.is_empty() {
            ready!(Sink::<&Element>::poll_ready(stream.as_mut(), cx))?;
            if let Some(e) = self.out.pop_front() {
                Sink::<&Element>::start_send(stream.as_mut(), &e)?;
            }
        }
        Sink::<&Element>::poll_flush(stream, cx)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Heard> {
        Poll::Ready(match ready!(Pin::new(&mut self.stream).poll_next(cx)) {
            Some(Ok(incoming)) => Heard::Incoming(incoming),
            Some(Err(ReadError::SoftTimeout)) => Heard::Silence,
            Some(Err(ReadError::HardError(e))) => Heard::Ended(format!("the connection broke: {e}")),
            Some(Err(ReadError::ParseError(e))) => Heard::Ended(format!("the server sent what is no XML: {e}")),
            Some(Err(ReadError::StreamFooterReceived)) | None => Heard::Ended("the server closed the stream".into()),
        })
    }

    /// Writes what is queued, ends the stream, and waits for that, but not for long.
    pub(super) async fn close(mut self) {
        let _ = tokio::time::timeout(CLOSE_LIMIT, async {
            std::future::poll_fn(|cx| self.poll_write(cx)).await?;
            SinkExt::<&Element>::close(&mut self.stream).await
        })
        .await;
    }
}
