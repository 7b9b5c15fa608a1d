//! Pure functions on the bytes of packets. No file descriptors, no clocks, no randomness.
