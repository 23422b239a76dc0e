//! The text of a snapshot: JSON, in which calls and candidates are written as controllers write them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ice::{SelectedPair, UFRAG_LENGTH};
use crate::link::{CandidateKind, Path, Security};
use crate::snapshot::{BootTime, End, NodeSnapshot, PlainLink, Snapshot, SnapshotError};
use crate::wire::candidate::{Extension, MAX_CANDIDATES, kind_name, parse_cas, parse_kind, write_cas};
use crate::wire::control::{millis, parse_request, request_to_value};
use crate::wire::request::{CreateLink, LocalIp, Request};
use crate::wire::uid::Uid;

/// Grows with every change of the format.
const VERSION: u64 = 1;
/// One a second for thirty years; there must always be a later one.
const MAX_GENERATION: u32 = 1 << 30;
/// Longest boot id: a UUID as text.
const MAX_BOOT_ID: usize = 64;

#[derive(Deserialize)]
struct Head {
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u64,
    boot_id: String,
    uptime_ms: u64,
    plain_port: u16,
    callback: Option<SocketAddr>,
    local: Value,
    calls: Vec<Value>,
    links: Vec<LinkRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkRecord {
    /// `create_link` with the peer's candidates.
    call: Value,
    /// Own candidates as `con_resp` said them.
    offer: String,
    generation: u32,
    source: Option<IpAddr>,
    local_addr: SocketAddr,
    local_kind: String,
    remote_addr: SocketAddr,
    remote_kind: String,
    reachable: bool,
    silence_ms: u64,
}

impl Snapshot {
    /// As text. ICE passwords are in it: it is for a private file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { taken: BootTime { boot_id, uptime }, plain_port, callback, node } = self;
        let NodeSnapshot { local, calls, links } = node;
        let record = Record {
            version: VERSION,
            boot_id: boot_id.clone(),
            uptime_ms: millis(*uptime),
            plain_port: *plain_port,
            callback: *callback,
            local: request_to_value(&Request::SetLocalIp(local.clone())),
            calls: calls.iter().map(request_to_value).collect(),
            links: links.iter().map(write_link).collect(),
        };
        serde_json::to_vec(&record).expect("maps with text keys and numbers have a JSON form")
    }

    /// Reads any bytes; what is accepted is sound.
    pub fn decode(text: &[u8]) -> Result<Self, SnapshotError> {
        let Head { version } = serde_json::from_slice(text).map_err(|_| SnapshotError::Damaged)?;
        if version != VERSION {
            return Err(SnapshotError::Version(version));
        }
        let record: Record = serde_json::from_slice(text).map_err(|_| SnapshotError::Damaged)?;
        let Record { version: _, boot_id, uptime_ms, plain_port, callback, local, calls, links } = record;
        if boot_id.len() > MAX_BOOT_ID || plain_port == 0 {
            return Err(SnapshotError::Damaged);
        }
        let local = read_local(&local)?;
        let links: Vec<PlainLink> = links.iter().map(read_link).collect::<Result<_, _>>()?;
        check_links(&local, &links)?;
        Ok(Self {
            taken: BootTime { boot_id, uptime: Duration::from_millis(uptime_ms) },
            plain_port,
            callback,
            node: NodeSnapshot { local, calls: calls.iter().map(read_call).collect::<Result<_, _>>()?, links },
        })
    }
}

fn write_link(link: &PlainLink) -> LinkRecord {
    let PlainLink { uid, fingerprint_text, overlay, own, peer, generation, pair, reachable, silence } = link;
    let SelectedPair { path, local_addr, local_kind, remote_addr, remote_kind } = pair;
    let call = Request::CreateLink(CreateLink {
        uid: *uid,
        fingerprint_text: fingerprint_text.clone(),
        fingerprint: None,
        overlay: *overlay,
        stun: None,
        turn: None,
        security: Security::None,
        cas: write_end(peer),
    });
    LinkRecord {
        call: request_to_value(&call),
        offer: write_end(own),
        generation: *generation,
        source: path.source,
        local_addr: *local_addr,
        local_kind: kind_name(*local_kind).to_owned(),
        remote_addr: *remote_addr,
        remote_kind: kind_name(*remote_kind).to_owned(),
        reachable: *reachable,
        silence_ms: millis(*silence),
    }
}

fn write_end(end: &End) -> String {
    let read_back = end.candidates.len().min(MAX_CANDIDATES);
    write_cas(&end.candidates[..read_back], Some(Extension { vni: end.vni, security: Security::None }))
}

fn read_local(call: &Value) -> Result<LocalIp, SnapshotError> {
    if let Request::SetLocalIp(local) = parse_request(call)? { Ok(local) } else { Err(SnapshotError::Damaged) }
}

fn read_call(call: &Value) -> Result<Request, SnapshotError> {
    let request = parse_request(call)?;
    let is_kept = matches!(
        request,
        Request::SetSwitchMode { .. }
            | Request::SetTranslation { .. }
            | Request::SetTrimPolicy { .. }
            | Request::SetNetworkIgnoreList { .. }
            | Request::SetRemoteIp(_)
    );
    if is_kept { Ok(request) } else { Err(SnapshotError::Damaged) }
}

fn read_link(record: &LinkRecord) -> Result<PlainLink, SnapshotError> {
    let Request::CreateLink(call) = parse_request(&record.call)? else { return Err(SnapshotError::Damaged) };
    let uid = call.uid;
    let wrong = |problem| SnapshotError::Link { uid, problem };
    if call.security != Security::None {
        return Err(wrong("is not a plain one"));
    }
    let own = read_end(&record.offer).ok_or_else(|| wrong("has no sound own candidates"))?;
    if own.candidates.iter().any(|candidate| candidate.ufrag.len() != UFRAG_LENGTH) {
        return Err(wrong("has no sound own candidates"));
    }
    let peer = read_end(&call.cas).ok_or_else(|| wrong("has no sound candidates of the peer"))?;
    let pair = read_pair(record).ok_or_else(|| wrong("has no sound direct path"))?;
    let (generation, reachable, silence) =
        (record.generation, record.reachable, Duration::from_millis(record.silence_ms));
    if generation > MAX_GENERATION {
        return Err(wrong("has a generation that is never reached"));
    }
    let CreateLink { uid: _, fingerprint_text, fingerprint: _, overlay, stun: _, turn: _, security: _, cas: _ } = call;
    Ok(PlainLink { uid, fingerprint_text, overlay, own, peer, generation, pair, reachable, silence })
}

/// Candidates with the credentials of one agent, and the tag.
fn read_end(text: &str) -> Option<End> {
    let cas = parse_cas(text);
    let first = cas.candidates.first()?;
    let is_one_agent = cas.candidates.iter().all(|one| (&one.ufrag, &one.pwd) == (&first.ufrag, &first.pwd));
    let extension = cas.extension.filter(|extension| extension.security == Security::None && extension.vni != 0)?;
    (is_one_agent && cas.skipped == 0).then_some(End { candidates: cas.candidates, vni: extension.vni })
}

fn read_pair(record: &LinkRecord) -> Option<SelectedPair> {
    let &LinkRecord { source, local_addr, remote_addr, .. } = record;
    let (local_kind, remote_kind) = (parse_kind(&record.local_kind)?, parse_kind(&record.remote_kind)?);
    let is_direct = [local_kind, remote_kind].iter().all(|kind| *kind != CandidateKind::Relayed);
    let ip = remote_addr.ip();
    let is_target = remote_addr.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && ip.to_canonical() == ip;
    let is_of_one_family = source.is_none_or(|source| source.is_ipv4() == ip.is_ipv4());
    let path = Path { remote: remote_addr, source, relay: None };
    let pair = SelectedPair { path, local_addr, local_kind, remote_addr, remote_kind };
    (is_direct && is_target && is_of_one_family).then_some(pair)
}

/// No link to this node itself, one to a peer, and a name of its own for each.
fn check_links(local: &LocalIp, links: &[PlainLink]) -> Result<(), SnapshotError> {
    let (mut uids, mut names): (BTreeSet<Uid>, BTreeSet<&str>) = (BTreeSet::from([local.uid]), BTreeSet::new());
    for PlainLink { uid, own, .. } in links {
        let is_first = uids.insert(*uid) && own.candidates.first().is_some_and(|first| names.insert(&first.ufrag));
        if !is_first {
            return Err(SnapshotError::Link { uid: *uid, problem: "is there twice" });
        }
    }
    Ok(())
}
