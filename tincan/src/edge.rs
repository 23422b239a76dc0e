//! One file per outside resource: sockets, ICE, netlink, TAP, RPC doors, the snapshot's file.

pub mod ethtool;
pub mod ice;
pub mod netlink;
pub mod rpc;
pub mod snapshot;
pub mod tap;
pub mod xmpp;
