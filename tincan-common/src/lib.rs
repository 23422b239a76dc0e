//! What the kernel programs and user space agree on, each thing once.

#![no_std]

pub mod counters;
pub mod frame;
pub mod verdict;
