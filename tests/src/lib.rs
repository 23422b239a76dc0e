//! The bench: namespaces that remove themselves, routers with NAT kinds, real daemons and a small controller for them.
//!
//! It drives the `tincan` program from outside and knows nothing of its library. `cargo xtask run` is built on it too.
//! Everything needs root: network namespaces, raw sockets and TAP devices.

pub mod bpffs;
pub mod capture;
pub mod controller;
pub mod controller_2014;
pub mod coturn;
pub mod daemon;
pub mod engine;
pub mod frames;
pub mod lab;
pub mod netns;
pub mod packet;
pub mod ping;
pub mod plain_bench;
pub mod process;
pub mod prosody;
pub mod rpc;
pub mod scratch;
pub mod signalling;
pub mod topology;
pub mod traffic;
pub mod udp_door;
pub mod wait;
pub mod wire;
