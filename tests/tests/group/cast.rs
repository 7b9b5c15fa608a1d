//! Who plays.

pub(crate) use ipop_tests::cast::*;
