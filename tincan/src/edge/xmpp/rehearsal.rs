//! One login and logout, to see whether they work: the way of the session, without presence and without a second try.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::SinkExt;
use tokio::time::{Instant, timeout};
use tokio_xmpp::Stanza;
use xmpp_parsers::iq::Iq;
use xmpp_parsers::jid::{FullJid, Jid};
use xmpp_parsers::time::{TimeQuery, TimeResult};

use super::connect::{StanzaChannel, connect, request};
use super::{Account, Failure, XmppOptions};

/// For the server's answer about its clock.
const CLOCK_DEADLINE: Duration = Duration::from_secs(1);
/// For an orderly logout.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// What a login showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    /// The full jid the server bound.
    pub jid: String,
    /// From the first packet to the bound resource.
    pub took: Duration,
    /// The server's clock less ours in milliseconds, where it tells (XEP-0202); servers tell whole seconds.
    pub clock_difference_ms: Option<i64>,
}

/// Logs in as a node does and logs out at once; at most 14 s.
pub async fn rehearse(options: &XmppOptions, account: &Account) -> Result<Rehearsal, Failure> {
    let start = Instant::now();
    let (mut channel, bound) = connect(options, account).await?;
    let took = start.elapsed();
    let clock = timeout(CLOCK_DEADLINE, ask_clock(&mut channel, &bound)).await;
    // A server that does not take the farewell sees the connection close.
    let _ = timeout(CLOSE_DEADLINE, SinkExt::<&Stanza>::close(&mut channel)).await;
    Ok(Rehearsal { jid: bound.to_string(), took, clock_difference_ms: clock.ok().flatten() })
}

async fn ask_clock(channel: &mut StanzaChannel, own: &FullJid) -> Option<i64> {
    let server = Jid::new(own.domain().as_str()).ok()?;
    let asked = now_ms()?;
    let answer = request(channel, Iq::from_get("time", TimeQuery).with_to(server)).await.ok()?;
    let told = TimeResult::try_from(answer?).ok()?.utc.timestamp_millis();
    let answered = now_ms()?;
    told.checked_sub(asked.midpoint(answered))
}

fn now_ms() -> Option<i64> {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}
