//! What the kernel may say to a send or a write.
