//! XMPP stanzas as the 2014 nodes write them: presence, messages between peers, and how a uid stands in a jid.
//!
//! Only payloads and names: who may send them is the XMPP edge's business.

use std::time::Duration;

use thiserror::Error;
use xmpp_parsers::iq::Iq;
use xmpp_parsers::jid::{FullJid, Jid};
use xmpp_parsers::minidom::Element;
use xmpp_parsers::presence::Presence;

use super::uid::{UID_LEN, Uid};

/// The namespace of a message between peers and of its two members.
pub const NAMESPACE: &str = "jabber:iq:tincan";
/// Longest text of a message in bytes once written as XML: servers end streams at stanzas of 256 KiB and less.
pub const MAX_DATA: usize = 65_536;
/// Longest name of a message's type in bytes; those in use have 8.
pub const MAX_KIND: usize = 64;

/// XEP-0091, which the 2014 nodes put into their presence.
const DELAY_NAMESPACE: &str = "jabber:x:delay";
/// Begins the resource of every node; the uid follows.
const RESOURCE_PREFIX: &str = "tincan";
const SECONDS_PER_DAY: u64 = 86_400;

/// A message between peers: `con_req`, `con_resp`, `send_msg` or any other type the controllers agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMessage {
    /// The 2014 `type`.
    pub kind: String,
    /// Free text.
    pub data: String,
}

/// Why a payload is no message between peers, or a message cannot become a payload.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum StanzaError {
    #[error("not a query of {NAMESPACE}")]
    OtherPayload,
    #[error("a message needs a data and a type member")]
    MissingMember,
    #[error("a message's type has 1 to {MAX_KIND} bytes")]
    KindLength,
    #[error("a message's data has at most {MAX_DATA} bytes as XML")]
    DataLength,
    #[error("a message holds a character that XML forbids")]
    ForbiddenCharacter,
}

/// Reads the payload of an iq; unknown members are skipped, of doubled ones the first counts.
pub fn read_query(query: &Element) -> Result<PeerMessage, StanzaError> {
    if !query.is("query", NAMESPACE) {
        return Err(StanzaError::OtherPayload);
    }
    let member = |name: &str| query.get_child(name, NAMESPACE).map(Element::text).ok_or(StanzaError::MissingMember);
    let message = PeerMessage { data: member("data")?, kind: member("type")? };
    check(&message)?;
    Ok(message)
}

/// Writes the payload of an iq: data first, as in 2014.
pub fn write_query(message: &PeerMessage) -> Result<Element, StanzaError> {
    check(message)?;
    let member = |name: &str, text: &str| Element::builder(name, NAMESPACE).append(text.to_owned()).build();
    let query = Element::builder("query", NAMESPACE);
    Ok(query.append(member("data", &message.data)).append(member("type", &message.kind)).build())
}

/// The whole stanza that carries a message: an iq of type get, which 2014 nodes never answer.
pub fn message_iq(to: FullJid, id: String, message: &PeerMessage) -> Result<Iq, StanzaError> {
    Ok(Iq::Get { from: None, to: Some(Jid::from(to)), id, payload: write_query(message)? })
}

/// The presence a node sends to everybody; `now` is the time since the Unix epoch.
pub fn presence(now: Duration) -> Presence {
    let name = "stamp".try_into().expect("a name without a colon");
    let delay = Element::builder("x", DELAY_NAMESPACE).attr(name, legacy_stamp(now)).build();
    let mut presence = Presence::available().with_payloads(vec![delay]);
    presence.set_status("", "");
    presence
}

/// The resource a node asks for.
pub fn resource_of(uid: Uid) -> String {
    format!("{RESOURCE_PREFIX}{uid}")
}

/// The uid in a resource; what follows its 40 digits does not matter, as in 2014.
pub fn uid_of(resource: &str) -> Option<Uid> {
    resource.strip_prefix(RESOURCE_PREFIX)?.get(..2 * UID_LEN)?.parse().ok()
}

fn check(message: &PeerMessage) -> Result<(), StanzaError> {
    let PeerMessage { kind, data } = message;
    if kind.is_empty() || written_length(kind) > MAX_KIND {
        return Err(StanzaError::KindLength);
    }
    if written_length(data) > MAX_DATA {
        return Err(StanzaError::DataLength);
    }
    if !kind.chars().chain(data.chars()).all(is_xml) {
        return Err(StanzaError::ForbiddenCharacter);
    }
    Ok(())
}

/// Bytes of a text once escaped: `&lt;`, `&gt;`, `&amp;`, `&#xd;`.
fn written_length(text: &str) -> usize {
    text.bytes().map(|byte| if matches!(byte, b'<' | b'>' | b'&' | b'\r') { 5 } else { 1 }).sum()
}

/// XML 1.0 section 2.2, `Char`.
fn is_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// XEP-0091: `20140718T14:10:23`, UTC.
fn legacy_stamp(now: Duration) -> String {
    let (days, seconds) = (now.as_secs() / SECONDS_PER_DAY, now.as_secs() % SECONDS_PER_DAY);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// Year, month and day of a day since 1970-01-01, counted in years that begin in March so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_EPOCH: u64 = 719_468;
    const DAYS_PER_ERA: u64 = 146_097;
    let days = days.saturating_add(DAYS_TO_EPOCH);
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests;
