//! One file per outside resource: sockets, ICE, netlink, TAP, RPC doors.

pub mod ethtool;
pub mod ice;
pub mod netlink;
pub mod rpc;
pub mod tap;
pub mod xmpp;
