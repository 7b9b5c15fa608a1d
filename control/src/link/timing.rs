//! How long things may take, each with its reason.

use std::time::Duration;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// From the start of an attempt to a path: signalling through a slow server, gathering from a slow STUN server, and
/// checks over a relay take 3 s at worst when they work at all.
pub(super) const NEGOTIATION: Duration = ms(12_000);
/// From a path to something authentic over it: one repetition of WireGuard's handshake (5 s) fits.
pub(super) const HANDSHAKE: Duration = ms(6_000);
/// Between requests for a handshake while there is no session: either side's may be lost.
pub(super) const HANDSHAKE_AGAIN: Duration = ms(2_000);
/// The controlled side learns of the chosen pair first and shakes hands first; the other one only if that got lost.
pub(super) const HANDSHAKE_SECOND: Duration = ms(250);
/// An agent goes on answering checks for so long after it found its path: the peer's may need them.
pub(super) const LINGER: Duration = ms(2_000);
/// After a lost tie the winner's initiate is on its way, or was already lost.
pub(super) const TIE_GRACE: Duration = ms(2_000);
/// What an end with the larger JID lets the other one have before it begins by itself: a negotiation that the other one
/// began at once has been offered by then, also over a slow server.
pub(super) const CEDE: Duration = ms(2_000);

/// First wait after a failed attempt, doubled with each.
pub(super) const RETRY_FIRST: Duration = ms(1_000);
/// Longest wait after a failed attempt.
pub(super) const RETRY_MOST: Duration = ms(60_000);
/// Attempts to replace a dead path before it is given up.
pub(super) const DEAD_TRIES: u32 = 4;
/// First wait before a relayed path is tried direct again, doubled with each.
pub(super) const DIRECT_FIRST: Duration = ms(30_000);
/// Longest wait before that.
pub(super) const DIRECT_MOST: Duration = ms(600_000);

/// A packet that found no path keeps an on-demand link trying for so long.
pub(super) const WANT: Duration = ms(60_000);
/// Nobody wanted the link for so long: the next one who does need not wait out the back-off.
pub(super) const QUIET: Duration = ms(30_000);
/// News that reset the back-off do so at most this often: ejabberd delivers every presence twice, and a flapping peer
/// must not undo the back-off.
pub(super) const RESET: Duration = ms(5_000);
/// Spread of what all links of a node do at one event.
pub(super) const SPREAD: Duration = ms(500);
/// Between two renegotiations because of changed networks.
pub(super) const NETWORK_AGAIN: Duration = ms(2_000);

/// Data went out and nothing came back for so long: ask.
pub(super) const UNANSWERED: Duration = ms(1_000);
/// Nothing came for so long: ask. Also keeps NAT mappings: 30 s is the shortest that is common.
pub(super) const QUIET_PATH: Duration = ms(15_000);
/// A round trip time is measured anew after so long, although traffic or the peer's own probes prove the path.
pub(super) const RTT_AGAIN: Duration = ms(60_000);
/// A probe that nobody reported on failed. Its sender repeats it twice in this time.
pub(super) const PROBE_LOST: Duration = ms(700);
/// From an unanswered probe to the next one.
pub(super) const PROBE_AGAIN: [Duration; 3] = [ms(500), ms(1_000), ms(1_000)];
/// From one probe to the next on a path that is dead already: it may come back.
pub(super) const PROBE_DEAD: Duration = ms(2_000);
/// The same after [`PROBE_DEAD_MANY`] of them.
pub(super) const PROBE_DEAD_SLOW: Duration = ms(10_000);
/// See [`PROBE_DEAD_SLOW`].
pub(super) const PROBE_DEAD_MANY: u32 = 20;

/// Attempts at once: one that looks for a path and one whose agent lingers.
pub(super) const ATTEMPTS: usize = 2;
/// Remote sessions that are remembered, so that a late repetition does not start them again.
pub(super) const SEEN: usize = 16;
/// Remote initiates that are taken at once; more are busy.
pub(super) const ADMIT_BURST: u32 = 8;
/// One more remote initiate is taken each so often.
pub(super) const ADMIT_EACH: Duration = ms(2_000);
/// A reason for people is cut to this many characters.
pub(super) const WHY: usize = 240;
