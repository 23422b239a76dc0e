//! What the kernel programs and user space agree on, each thing once.

#![no_std]

pub mod entries;
pub mod frame;
pub mod inner;
pub mod kernel_verdict;
pub mod verdict;
