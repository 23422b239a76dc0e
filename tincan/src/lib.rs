//! tincan: a peer-to-peer overlay network for Linux.
//!
//! Data flows io -> core -> io. `wire` holds the pure codecs, `node` the pure state machine, `ice` the words between it
//! and the ICE edge, `snapshot` what of them outlives the process, `edge` one file per outside resource, `dtls` the
//! secured session, `dataplane` the forwarding table and the engines that move frames.
//! Only `daemon` knows both sides; `doctor` tries the edges one by one. ARCHITECTURE.md has the map.

pub mod cleanup;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod doctor;
pub mod dtls;
pub mod edge;
pub mod ice;
pub mod link;
pub mod node;
pub mod snapshot;
pub mod wire;
