//! Network-namespace harness.

pub mod fuzz;
