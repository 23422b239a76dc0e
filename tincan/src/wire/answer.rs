//! The result of a call, before a door gives it its form.

use crate::wire::state::State;

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
