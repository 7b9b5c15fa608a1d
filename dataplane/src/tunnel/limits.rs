//! Every constant of the protocol and every bound of this implementation, in one place.

use std::time::Duration;

/// A session's initiator renews it at this age (WireGuard paper, section 6.1).
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// A session is neither sent nor received with from this age on (section 6.1).
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Handshake attempts without an answer end after this time (section 6.1).
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Time between two initiations to one peer (section 6.1).
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Up to this much is added to [`REKEY_TIMEOUT`], at random, so that two nodes do not stay in step.
pub const REKEY_JITTER: Duration = Duration::from_millis(333);
/// Data that is received is answered after this time at the latest, by a keepalive if need be (section 6.5).
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Data that stays unanswered for this long (plus jitter) asks for a new handshake (section 6.5).
pub const UNANSWERED_TIMEOUT: Duration = Duration::from_secs(15);
/// A session's initiator that receives data on it renews it at this age: the last chance before
/// [`REJECT_AFTER_TIME`] when it never sends (section 6.2).
pub const REKEY_ON_RECEIVE_AFTER: Duration = Duration::from_secs(180 - 10 - 5);
/// Keys are wiped this long after the last handshake (section 6.3).
pub const ZERO_KEYS_AFTER: Duration = Duration::from_secs(3 * 180);
/// A session is renewed from this counter on (section 6.1).
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Counters from this one on are never used (section 6.1).
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// A session with AES-256-GCM is renewed from this counter on. WireGuard's own limits are for ChaCha20-Poly1305, which is
/// no permutation of blocks; AES is one, and after s blocks under one key GCM can be told from what it should be with an
/// advantage of 2 s^2 / 2^128 (RFC 9001, appendix B.1.1; the limit of 2^32 messages in NIST SP 800-38D, section 8.3, is for
/// random nonces, and ours are counters). With packets of 2 KiB at most, 2^28 of them are 2^35 blocks: the margin of 2^-57
/// that QUIC keeps, and TLS 1.3 with 2^24.5 records of 16 KiB (RFC 8446, section 5.5). With packets of 1,420 bytes it takes
/// 25 Gbit/s to get there before [`REKEY_AFTER_TIME`]. Larger packets do not get far beyond it in the life of a session
/// either: 100 Gbit/s for [`REJECT_AFTER_TIME`] are 2^37 blocks, and 2^-53. Forgeries are not counted: QUIC, whose limit is
/// that of AES-128 for packets of any size, allows 2^52 of them (RFC 9001, section 6.6), more than any link brings in that
/// time.
pub const AES_REKEY_AFTER_MESSAGES: u64 = 1 << 28;
/// Counters of a session with AES-256-GCM from this one on are neither used nor taken: as many as lie before
/// [`AES_REKEY_AFTER_MESSAGES`] are left for the handshake, which is 2^-55 with packets of 2 KiB.
pub const AES_REJECT_AFTER_MESSAGES: u64 = 1 << 29;
/// Age at which the secret behind our cookies is replaced, and a cookie is no longer shown (section 5.4.7).
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);

/// Least time between two initiations accepted from one peer; timestamps are whitened to it.
pub const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
/// Handshake messages a second that one source may send while we are under load.
pub const SOURCE_RATE: u32 = 20;
/// Handshake messages that one source may send at once while we are under load.
pub const SOURCE_BURST: u32 = 5;
/// Sources remembered at once. What comes from further ones is dropped until entries expire.
pub const MAX_SOURCES: usize = 8192;

/// Peers of one interface.
pub const MAX_PEERS: usize = 65_536;
/// Receiver indices in use at once: previous, current and next session and a handshake for every peer.
pub const MAX_SESSIONS: usize = MAX_PEERS * 4;
/// Peers whose timers are served by one call, so that a thousand handshakes that are due at once (some
/// 0.2 ms each) do not keep the caller from its queues.
pub const MAX_PEERS_PER_TURN: usize = 64;
/// Pause before the next turn if peers were left over.
pub const TURN_PAUSE: Duration = Duration::from_millis(1);
/// Messages waiting to be taken by `poll_output`; further ones are lost, as on a full socket.
pub const MAX_OUTPUTS: usize = 4096;
