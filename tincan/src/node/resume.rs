//! What of a node outlives its process, and how the next one goes on with it.
//!
//! A resumed node answers and behaves as if the controller had made all calls again: its plain links are online at once,
//! on the paths they had, and the first checks go out at once; without an answer a link is lost as any other. What was
//! resumed is not final: the first `set_local_ip` and `set_remote_ip` of a controller may still say otherwise.

use std::time::Instant;

use crate::ice::Resumption;
use crate::link::{LinkId, Role, Security, Traffic};
use crate::node::link::{Link, LinkParameters};
use crate::node::{LinkProtection, MAX_LINKS, Node, Output, Settings, TrafficSource};
use crate::snapshot::{End, NodeSnapshot, PlainLink};
use crate::wire::answer::Answer;
use crate::wire::fingerprint::Fingerprint;
use crate::wire::request::{LocalIp, RemoteIp, Request};
use crate::wire::uid::Uid;

impl Node {
    /// What a later process needs to go on; `None` without a link to go on with.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> Option<NodeSnapshot> {
        let local = self.local.as_ref()?.ip.clone();
        let links: Vec<PlainLink> = self.links.values().filter_map(|link| link.snapshot(now)).collect();
        if links.is_empty() {
            return None;
        }
        let Settings { switch_mode, translation, trim_policy, ignored_interfaces } = &self.settings;
        let mut calls = vec![
            Request::SetSwitchMode { enabled: *switch_mode },
            Request::SetTranslation { enabled: *translation },
            Request::SetTrimPolicy { enabled: *trim_policy },
            Request::SetNetworkIgnoreList { interfaces: ignored_interfaces.clone() },
        ];
        let addresses = links.iter().filter_map(|link| self.addresses.get(&link.uid));
        calls.extend(addresses.cloned().map(Request::SetRemoteIp));
        Some(NodeSnapshot { local, calls, links })
    }

    /// Goes on where another process was, after the effects of its `set_local_ip` on the host succeeded. Only for a node
    /// without identity. Links that cannot be are left out; the number of the others.
    pub fn resume(&mut self, now: Instant, snapshot: NodeSnapshot, fingerprint: Fingerprint) -> usize {
        let NodeSnapshot { local, calls, links } = snapshot;
        self.set_local(local, fingerprint);
        self.unconfirmed.local = true;
        for call in calls {
            self.replay(now, call);
        }
        for link in links {
            self.resume_link(now, link, fingerprint);
        }
        self.links.len()
    }

    /// The controller's `set_local_ip`, on a node that has one of a snapshot: whether it says the same.
    pub fn confirm_local(&mut self, call: &LocalIp) -> Confirmation {
        let Some(local) = self.local.as_mut().filter(|_| self.unconfirmed.local) else { return Confirmation::Settled };
        let LocalIp { uid, ip4, ip4_text: _, ip6, ip6_text: _, ip4_mask, ip6_mask, subnet_mask } = &local.ip;
        let masks = (*ip4_mask, *ip6_mask, *subnet_mask);
        let is_same = (*uid, *ip4, *ip6) == (call.uid, call.ip4, call.ip6)
            && masks == (call.ip4_mask, call.ip6_mask, call.subnet_mask);
        if !is_same {
            return Confirmation::Other(Box::new(local.ip.clone()));
        }
        // The texts are the controller's to choose.
        local.ip = call.clone();
        self.unconfirmed.local = false;
        Confirmation::Same
    }

    /// The controller wants another node: nothing of the resumed one stays but the settings.
    pub fn forget_local(&mut self) {
        self.trim_all();
        let mapped: Vec<Uid> = self.addresses.keys().copied().collect();
        for uid in mapped {
            self.forget_addresses(uid);
        }
        self.local = None;
        self.unconfirmed.local = false;
    }

    /// Resumed addresses give way to other ones that a controller says, of the same peer or of another.
    pub(super) fn yield_addresses(&mut self, call: &RemoteIp) {
        let owners = [Some(&call.uid), self.owner_of_ip4.get(&call.ip4), self.owner_of_ip6.get(&call.ip6)];
        let owners: Vec<Uid> = owners.into_iter().flatten().copied().collect();
        for uid in owners {
            if self.unconfirmed.addresses.contains(&uid) && self.addresses.get(&uid) != Some(call) {
                self.forget_addresses(uid);
            }
        }
        self.unconfirmed.addresses.remove(&call.uid);
    }

    fn forget_addresses(&mut self, uid: Uid) {
        let Some(RemoteIp { ip4, ip6, .. }) = self.addresses.remove(&uid) else { return };
        self.owner_of_ip4.remove(&ip4);
        self.owner_of_ip6.remove(&ip6);
        self.unconfirmed.addresses.remove(&uid);
        self.outputs.push_back(Output::UnmapPeer { uid });
    }

    fn replay(&mut self, now: Instant, call: Request) {
        let mapped = if let Request::SetRemoteIp(call) = &call { Some(call.uid) } else { None };
        if self.handle_request(now, call, &NoTraffic) == Answer::Done {
            self.unconfirmed.addresses.extend(mapped);
        }
    }

    fn resume_link(&mut self, now: Instant, snapshot: PlainLink, fingerprint: Fingerprint) {
        let Some(own_uid) = self.local.as_ref().map(|local| local.ip.uid) else { return };
        let PlainLink { uid, fingerprint_text, overlay, own, peer, generation, pair, reachable, silence } = snapshot;
        let End { candidates: own, vni: receive_vni } = own;
        let End { candidates: peer, vni: send_vni } = peer;
        let is_possible = uid != own_uid && !self.links.contains_key(&uid) && self.links.len() < MAX_LINKS;
        let is_inner = peer.iter().any(|one| self.is_inner(one.addr.ip())) || self.is_inner(pair.path.remote.ip());
        if !is_possible || is_inner {
            return;
        }
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let parameters = LinkParameters {
            id,
            uid,
            security: Security::None,
            fingerprint_text,
            overlay,
            receive_vni,
            role: if own_uid > uid { Role::Controlling } else { Role::Controlled },
            protection: LinkProtection::Plain { receive_vni },
        };
        let resumption = Resumption { own, peer, generation, pair, reachable, silence };
        let link = Link::resume(now, fingerprint, parameters, resumption, send_vni, &mut self.outputs);
        self.links.insert(uid, link);
        self.uid_of_link.insert(id, uid);
    }
}

/// No link exists while settings are replayed.
struct NoTraffic;

impl TrafficSource for NoTraffic {
    fn traffic(&self, _link: LinkId) -> Traffic {
        Traffic::default()
    }

    fn engine(&self, _link: LinkId) -> &'static str {
        "user"
    }
}

/// What a controller's `set_local_ip` means to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// No snapshot is at stake: the first call wins.
    Settled,
    /// It says what was resumed.
    Same,
    /// It does not; this was resumed.
    Other(Box<LocalIp>),
}
