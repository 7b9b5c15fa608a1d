//! The `ipop-fast` program.
fn main() {}
