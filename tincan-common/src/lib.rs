#![no_std]
//! x
pub mod counters;
