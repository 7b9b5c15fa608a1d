//! A running node: joins XMPP, ICE, links and the data plane.
