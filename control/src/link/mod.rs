//! One link, one peer: a state machine without sockets and clocks.
