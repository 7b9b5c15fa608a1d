//! This machine's interfaces, addresses and routes (rtnetlink).
