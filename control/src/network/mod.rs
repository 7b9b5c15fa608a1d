//! A network's rules: members, addresses, routes, pins. Pure.
