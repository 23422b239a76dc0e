//! The state report of `get_state`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::link::Traffic;
use crate::node::link::{Link, Sample};
use crate::node::{Node, TrafficSource};
use crate::wire::fingerprint::{Fingerprint, FingerprintKind};
use crate::wire::request::RemoteIp;
use crate::wire::state::{LinkState, LocalState, PathState, PeerState, State};
use crate::wire::uid::Uid;

/// What `local_state` said before `set_local_ip` in 2014.
const DEFAULT_IP4: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 100);
const DEFAULT_IP6: &str = "fd50:0dbc:41f2:4a3c:0000:0000:0000:0000";

/// Rates are taken over at least this much time.
const RATE_WINDOW: Duration = Duration::from_secs(1);

impl Node {
    pub(super) fn report(
        &mut self,
        now: Instant,
        uid: Option<Uid>,
        with_stats: bool,
        traffic: &dyn TrafficSource,
    ) -> State {
        let uids = uid.map_or_else(|| self.known_uids(), |uid| vec![uid]);
        let peers = uids.into_iter().map(|uid| self.report_peer(now, uid, traffic)).collect();
        State { local: self.report_local(), peers, with_stats }
    }

    /// Peers with a link, with addresses, or seen at the XMPP service, in order.
    fn known_uids(&self) -> Vec<Uid> {
        let uids: BTreeSet<Uid> =
            self.links.keys().chain(self.addresses.keys()).copied().chain(self.signalling.seen()).collect();
        uids.into_iter().collect()
    }

    fn report_local(&self) -> LocalState {
        // The MAC is the TAP's; the daemon, who owns the TAP, fills it in.
        let mac = [0; 6];
        match &self.local {
            None => LocalState {
                uid: None,
                ip4: DEFAULT_IP4.to_string(),
                ip6: DEFAULT_IP6.to_owned(),
                fingerprint: Fingerprint::null(FingerprintKind::Sha1).to_string(),
                mac,
            },
            Some(local) => LocalState {
                uid: Some(local.ip.uid),
                ip4: local.ip.ip4_text.clone(),
                ip6: local.ip.ip6_text.clone(),
                fingerprint: local.fingerprint.to_string(),
                mac,
            },
        }
    }

    fn report_peer(&mut self, now: Instant, uid: Uid, traffic: &dyn TrafficSource) -> PeerState {
        let addresses = self
            .addresses
            .get(&uid)
            .map(|RemoteIp { uid: _, ip4: _, ip4_text, ip6: _, ip6_text }| (ip4_text.clone(), ip6_text.clone()));
        let mut link = self.links.get_mut(&uid).map(|link| report_link(now, link, traffic));
        if let (Some(report), Some(hindrance)) = (&mut link, self.signalling_hindrance(uid)) {
            report.reason = format!("{}; {hindrance}", report.reason);
        }
        PeerState { uid, addresses, presence_age: self.signalling.presence_age(now, uid), link }
    }
}

fn report_link(now: Instant, link: &mut Link, source: &dyn TrafficSource) -> LinkState {
    let sample = next_sample(now, link.last_sample, source.traffic(link.id));
    link.last_sample = Some(sample);
    let path = link.pair.map(|pair| PathState {
        local_addr: pair.local_addr,
        local_kind: pair.local_kind,
        remote_addr: pair.remote_addr,
        remote_kind: pair.remote_kind,
        rtt: link.rtt,
        traffic: source.traffic(link.id),
        sent_per_second: sample.sent_per_second,
        received_per_second: sample.received_per_second,
        new: !link.pair_reported,
    });
    link.pair_reported = true;
    LinkState {
        fingerprint: link.fingerprint_text.clone(),
        online: link.flags().online(),
        security: link.security,
        age: now.saturating_duration_since(link.created_at),
        setup: link.setup(),
        phase: link.phase(),
        reason: link.reason(),
        offer: link.offer.clone(),
        engine: source.engine(link.id),
        path,
    }
}

fn next_sample(now: Instant, last: Option<Sample>, traffic: Traffic) -> Sample {
    let Some(last) = last else { return Sample { at: now, traffic, sent_per_second: 0, received_per_second: 0 } };
    let elapsed = now.saturating_duration_since(last.at);
    if elapsed < RATE_WINDOW {
        return last;
    }
    Sample {
        at: now,
        traffic,
        sent_per_second: per_second(traffic.sent_bytes.saturating_sub(last.traffic.sent_bytes), elapsed),
        received_per_second: per_second(traffic.received_bytes.saturating_sub(last.traffic.received_bytes), elapsed),
    }
}

fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1000) / millis
}
