//! The two doors for controllers: the 2014 UDP API and the Unix socket with JSON-RPC 2.0.

pub mod admission;
pub mod udp;
pub mod unix;
