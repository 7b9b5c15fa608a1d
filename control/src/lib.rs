//! The program around the data plane: command line, UAPI, daemon.
