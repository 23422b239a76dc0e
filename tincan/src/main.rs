//! The `tincan` program: see `tincan --help`.
fn main() {}
