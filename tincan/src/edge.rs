//! One file per outside resource: sockets, ICE, netlink, TAP, RPC doors.

pub mod ice;
pub mod netlink;
pub mod rpc;
pub mod tap;
pub mod xmpp;
