//! Parameters of a call, read with the tolerance of 2014: missing and null mean empty, zero or false; booleans and
//! integers stand for each other; any other type is an error.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::parse::RequestError;
use crate::wire::uid::Uid;

/// What to give where a uid is wanted.
const UID_TEXT: &str = "a uid of 40 hexadecimal digits";

/// The members of a call object.
#[derive(Clone, Copy)]
pub(super) struct Params<'a>(&'a Map<String, Value>);

impl<'a> Params<'a> {
    pub(super) fn of(json: &'a Value) -> Result<Self, RequestError> {
        json.as_object().map(Self).ok_or(RequestError::NotAnObject)
    }

    /// The value of `key`, unless missing or null.
    pub(super) fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// Text of at most `limit` bytes; empty when missing.
    pub(super) fn text(self, key: &'static str, limit: usize) -> Result<&'a str, RequestError> {
        let Some(value) = self.get(key) else { return Ok("") };
        let text = value.as_str().ok_or(RequestError::WrongType { key, give: "text" })?;
        if text.len() > limit {
            return Err(RequestError::TooLong { key, limit, unit: "bytes" });
        }
        Ok(text)
    }

    /// Text that must be there.
    pub(super) fn required_text(
        self,
        key: &'static str,
        limit: usize,
        give: &'static str,
    ) -> Result<&'a str, RequestError> {
        let text = self.text(key, limit)?;
        if text.is_empty() { Err(RequestError::Missing { key, give }) } else { Ok(text) }
    }

    /// A whole number in `range`; zero when missing.
    pub(super) fn int<T: TryFrom<i64>>(
        self,
        key: &'static str,
        range: RangeInclusive<i64>,
        give: &'static str,
    ) -> Result<T, RequestError> {
        let value = match self.get(key) {
            None => 0,
            Some(Value::Bool(flag)) => i64::from(*flag),
            Some(value) => value.as_i64().ok_or(RequestError::WrongType { key, give })?,
        };
        let in_range = T::try_from(value).ok().filter(|_| range.contains(&value));
        in_range.ok_or(RequestError::OutOfRange { key, value, give })
    }

    /// A switch; off when missing, on for every whole number but zero.
    pub(super) fn flag(self, key: &'static str) -> Result<bool, RequestError> {
        self.flag_or(key, false)
    }

    /// The same with another meaning of its absence.
    pub(super) fn flag_or(self, key: &'static str, absent: bool) -> Result<bool, RequestError> {
        match self.get(key) {
            None => Ok(absent),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::Number(number)) if !number.is_f64() => Ok(number.as_u64() != Some(0)),
            Some(_) => Err(RequestError::WrongType { key, give: "true or false, 1 or 0" }),
        }
    }

    /// A uid that must be there.
    pub(super) fn uid(self, key: &'static str) -> Result<Uid, RequestError> {
        self.optional_uid(key)?.ok_or(RequestError::Missing { key, give: UID_TEXT })
    }

    /// A uid, `None` when missing or empty.
    pub(super) fn optional_uid(self, key: &'static str) -> Result<Option<Uid>, RequestError> {
        match self.text(key, usize::MAX)? {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| RequestError::Malformed { key, give: UID_TEXT }),
        }
    }
}
