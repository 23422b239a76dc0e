//! The two doors for controllers: the 2014 UDP API and the Unix socket with JSON-RPC 2.0.

use std::net::SocketAddr;

use crate::wire::request::Request;
use crate::wire::state::State;

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

/// The result of a call. The UDP door shows only `State` and `Echo` (2014 behaviour); the Unix door shows all.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Done as asked.
    Done,
    /// Nothing was done because an earlier call already settled it (the first one wins); says which.
    Kept(&'static str),
    /// `get_state`.
    State(Box<State>),
    /// `echo_request`.
    Echo(String),
    /// Could not be done: why, and what to do.
    Refused(String),
}
