//! Pure codecs, both directions in one file each, total on any input.

pub mod answer;
pub mod candidate;
pub mod control;
pub mod fingerprint;
pub mod json_rpc;
#[cfg(test)]
pub(crate) mod mutation;
pub mod notification;
pub mod request;
pub mod stanza;
pub mod state;
pub mod uid;
