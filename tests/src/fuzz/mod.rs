//! What is fuzzed: each function takes any bytes and asserts what has to hold for them.
//!
//! `tests/fuzz` runs them under libFuzzer, `tests/tests/fuzz_corpus.rs` over the corpus that it found.

#[allow(dead_code)]
#[path = "../../../dataplane/tests/pipeline/world.rs"]
mod world;

mod aead;
mod craft;
mod offload;
mod parse;
mod translate;
mod tunnel;

pub use aead::aead;
pub use offload::{coalesce, roundtrip, split};
pub use parse::{checksum, classify, inner, routes, uapi};
pub use translate::translate;
pub use tunnel::{handshake, shard};

/// A fuzz target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target; each has a folder of its name in `tests/fuzz/corpus`.
pub const TARGETS: &[Target] = &[
    ("aead", aead),
    ("checksum", checksum),
    ("classify", classify),
    ("coalesce", coalesce),
    ("handshake", handshake),
    ("inner", inner),
    ("roundtrip", roundtrip),
    ("routes", routes),
    ("shard", shard),
    ("split", split),
    ("translate", translate),
    ("uapi", uapi),
];
