//! Log lines on standard error.

use std::io::IsTerminal;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How much is logged. `silent` turns everything off; `verbose` is `wireguard-go`'s word for debug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(pub LevelFilter);

/// Parses a level's name.
///
/// # Errors
/// What the names are.
pub fn level(s: &str) -> Result<Level, String> {
    Ok(Level(match s {
        "silent" | "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "verbose" | "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return Err("use one of silent, error, warn, info, debug, trace".to_owned()),
    }))
}

/// The level that was asked for by `option` or else by `LOG_LEVEL`; `None` if by neither.
#[must_use]
pub fn asked_level(option: Option<Level>) -> Option<Level> {
    option.or_else(|| level(&std::env::var("LOG_LEVEL").ok()?).ok())
}

/// Starts logging. Without a wish it is `info`: a handful of lines in a daemon's life. An unknown `LOG_LEVEL`
/// is ignored, as `wireguard-go` does.
pub fn start(asked: Option<Level>) {
    let filter = asked.map_or(LevelFilter::INFO, |l| l.0);
    // It warns of every malformed datagram: anybody could fill the log. Ours are counted instead.
    let quiet = LevelFilter::ERROR.min(filter);
    let targets = Targets::new().with_default(filter).with_target("stun_types", quiet);
    // Fails only if logging runs already, which is as well.
    let _ = tracing_subscriber::fmt()
        .with_max_level(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .finish()
        .with(targets)
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_wireguard_go_are_known() {
        for (word, filter) in [
            ("silent", LevelFilter::OFF),
            ("error", LevelFilter::ERROR),
            ("verbose", LevelFilter::DEBUG),
            ("debug", LevelFilter::DEBUG),
        ] {
            assert_eq!(level(word), Ok(Level(filter)));
        }
        assert!(level("loud").is_err());
    }
}
