//! The two doors for controllers: the 2014 UDP API and the Unix socket with JSON-RPC 2.0.

use std::net::SocketAddr;

pub use crate::wire::answer::Answer;
use crate::wire::request::Request;

/// Who made a call, so that the answer finds its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A datagram's sender.
    Udp(SocketAddr),
    /// A call on a Unix socket connection, answered through the door's own table.
    Unix { call: u64 },
}

/// A call with its origin.
#[derive(Clone, Debug)]
pub struct Call {
    pub origin: Origin,
    pub request: Request,
}
