//! The controller's calls, one method each.

use std::net::IpAddr;
use std::time::Instant;

use crate::ice::IceCommand;
use crate::link::{LinkId, Role, Security};
use crate::node::link::{Link, LinkParameters};
use crate::node::service::Service;
use crate::node::{LinkProtection, Local, MAX_LINKS, MAX_PEERS, Node, Output, TrafficSource};
use crate::wire::answer::Answer;
use crate::wire::candidate::parse_cas;
use crate::wire::fingerprint::{Fingerprint, FingerprintKind};
use crate::wire::request::{CreateLink, LocalIp, RemoteIp, Request};
use crate::wire::uid::Uid;

impl Node {
    /// Whether `set_local_ip` was accepted; a later one changes nothing (2014).
    #[must_use]
    pub fn has_local(&self) -> bool {
        self.local.is_some()
    }

    /// `set_local_ip`, after its effects on the host succeeded: the TAP is configured and the certificate made.
    pub fn set_local(&mut self, ip: LocalIp, fingerprint: Fingerprint) {
        self.local.get_or_insert(Local { ip, fingerprint });
    }

    /// Carries out a call. `set_local_ip` and `set_cb_endpoint` act on the host and are the daemon's; see
    /// [`Node::set_local`].
    pub fn handle_request(&mut self, now: Instant, request: Request, traffic: &dyn TrafficSource) -> Answer {
        match request {
            Request::GetState { uid, stats } => Answer::State(Box::new(self.report(now, uid, stats, traffic))),
            Request::CreateLink(call) => self.create_link(now, call),
            Request::SetRemoteIp(call) => self.set_remote_ip(call),
            Request::TrimLink { uid } => self.trim_link(uid),
            Request::RegisterService { username, password, host, port } => {
                self.register_service(Service { username, password, host, port })
            }
            Request::SetLogging { level } => self.done(Output::SetLogging { level }),
            Request::SetSwitchMode { enabled } => {
                self.settings.switch_mode = enabled;
                self.done(Output::SetSwitchMode { enabled })
            }
            Request::SetTranslation { enabled } => {
                self.settings.translation = enabled;
                Answer::Done
            }
            Request::SetTrimPolicy { enabled } => {
                self.settings.trim_policy = enabled;
                Answer::Done
            }
            Request::SetNetworkIgnoreList { interfaces } => {
                self.settings.ignored_interfaces.clone_from(&interfaces);
                self.done(Output::Ice(IceCommand::IgnoreInterfaces { names: interfaces }))
            }
            Request::EchoRequest { message } => Answer::Echo(message),
            Request::EchoReply => Answer::Done,
            Request::PeerMessage { kind, uid, data } => self.send_message(kind, uid, data),
            Request::SetLocalIp(_) | Request::SetCallbackEndpoint { .. } => {
                Answer::Refused("this call is the daemon's to carry out".to_owned())
            }
        }
    }

    fn done(&mut self, output: Output) -> Answer {
        self.outputs.push_back(output);
        Answer::Done
    }

    fn create_link(&mut self, now: Instant, call: CreateLink) -> Answer {
        let Some(local) = &self.local else {
            return Answer::Refused("this node has no identity yet: call set_local_ip first".to_owned());
        };
        if call.uid == local.ip.uid {
            return Answer::Refused("a node cannot link to itself: uid is this node's own".to_owned());
        }
        if let Some(link) = self.links.get(&call.uid) {
            if let Some(conflict) = link.conflict(&call) {
                return Answer::Refused(conflict);
            }
            if call.cas.trim().is_empty() {
                return Answer::Kept("the link exists");
            }
            if link.has_remote() {
                return Answer::Kept("the link has its candidates; trim_link first to use others");
            }
            return self.give_candidates(now, call.uid, &call.cas);
        }
        if self.links.len() >= MAX_LINKS {
            return Answer::Refused(format!("this node has {MAX_LINKS} links already: trim some first"));
        }
        let protection = match Self::protection(&call, local.fingerprint) {
            Ok(protection) => protection,
            Err(reason) => return Answer::Refused(reason),
        };
        let role = if local.ip.uid > call.uid { Role::Controlling } else { Role::Controlled };
        let (uid, cas) = (call.uid, call.cas.clone());
        self.open_link(now, call, role, protection);
        if cas.trim().is_empty() { Answer::Done } else { self.give_candidates(now, uid, &cas) }
    }

    /// What a new link is protected with; `Err` says what is wrong with the fingerprint. Never falls back to plain.
    fn protection(call: &CreateLink, own: Fingerprint) -> Result<LinkProtection, String> {
        match call.security {
            Security::None => Ok(LinkProtection::Plain { receive_vni: 0 }),
            Security::Dtls => match call.fingerprint {
                None => Err("fpr is not a certificate fingerprint: give hex pairs joined by ':'".to_owned()),
                Some(expected) if expected.is_null() => {
                    Err("fpr is the null fingerprint: a secured link needs the peer's; sec false asks for a plain link"
                        .to_owned())
                }
                Some(expected) if expected.kind() != own.kind() => Err(format!(
                    "fpr is a {} fingerprint but this node uses {}: all nodes of a network must use the same kind",
                    kind_name(expected),
                    kind_name(own)
                )),
                Some(expected) => Ok(LinkProtection::Dtls { expected }),
            },
        }
    }

    fn open_link(&mut self, now: Instant, call: CreateLink, role: Role, protection: LinkProtection) {
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let receive_vni = self.next_vni();
        let protection = match protection {
            LinkProtection::Plain { receive_vni: _ } => LinkProtection::Plain { receive_vni },
            LinkProtection::Dtls { .. } => protection,
        };
        let CreateLink { uid, fingerprint_text, fingerprint: _, overlay, stun, turn, security, cas: _ } = call;
        self.outputs.push_back(Output::OpenLink { link: id, uid, role, protection });
        self.outputs.push_back(Output::Ice(IceCommand::Gather { link: id, port: security.port(), role, stun, turn }));
        let parameters = LinkParameters { id, uid, security, fingerprint_text, overlay, receive_vni, role, protection };
        self.links.insert(uid, Link::new(now, parameters));
        self.uid_of_link.insert(id, uid);
    }

    /// A tag that is never zero, so that an unset one never matches.
    fn next_vni(&mut self) -> u32 {
        u32::try_from(self.next_random() % 0x00ff_ffff).map_or(1, |tag| tag + 1)
    }

    fn give_candidates(&mut self, now: Instant, uid: Uid, cas: &str) -> Answer {
        let mut cas = parse_cas(cas);
        let read = cas.candidates.len();
        cas.candidates.retain(|candidate| !self.is_inner(candidate.addr.ip()));
        cas.skipped += read - cas.candidates.len();
        let mut result = Ok(());
        self.with_link(uid, |link, outputs| result = link.set_remote(now, cas, outputs));
        match result {
            Ok(()) => Answer::Done,
            Err(reason) => Answer::Refused(reason),
        }
    }

    /// Whether an address belongs to the overlay: a check of it would go into the TAP, or to this host itself.
    pub(super) fn is_inner(&self, ip: IpAddr) -> bool {
        let is_mapped = match ip {
            IpAddr::V4(ip) => self.owner_of_ip4.contains_key(&ip),
            IpAddr::V6(ip) => self.owner_of_ip6.contains_key(&ip),
        };
        is_mapped || self.local.as_ref().is_some_and(|local| local.ip.is_on_subnet(ip))
    }

    fn trim_link(&mut self, uid: Uid) -> Answer {
        let Some(link) = self.links.remove(&uid) else { return Answer::Kept("there is no link to this uid") };
        self.uid_of_link.remove(&link.id);
        self.outputs.push_back(Output::SetForwarding { link: link.id, enabled: false });
        self.outputs.push_back(Output::RemoveLink { link: link.id });
        self.done(Output::Ice(IceCommand::Close { link: link.id }))
    }

    /// Takes every link down, as `trim_link` would: the daemon is stopping.
    pub fn trim_all(&mut self) {
        let uids: Vec<Uid> = self.links.keys().copied().collect();
        for uid in uids {
            self.trim_link(uid);
        }
    }

    fn set_remote_ip(&mut self, call: RemoteIp) -> Answer {
        self.yield_addresses(&call);
        if self.addresses.contains_key(&call.uid) {
            return Answer::Kept("this uid has its addresses; the first call wins");
        }
        if self.addresses.len() >= MAX_PEERS {
            return Answer::Refused(format!("{MAX_PEERS} peers have addresses already"));
        }
        if let Some(local) = &self.local
            && (local.ip.uid == call.uid || local.ip.ip4 == call.ip4 || local.ip.ip6 == call.ip6)
        {
            return Answer::Refused("uid, ip4 or ip6 is this node's own".to_owned());
        }
        if let Some(owner) = self.owner_of_ip4.get(&call.ip4) {
            return Answer::Refused(format!("{} belongs to peer {owner} already", call.ip4));
        }
        if let Some(owner) = self.owner_of_ip6.get(&call.ip6) {
            return Answer::Refused(format!("{} belongs to peer {owner} already", call.ip6));
        }
        self.outputs.push_back(Output::MapPeer { uid: call.uid, ip4: call.ip4, ip6: call.ip6 });
        self.owner_of_ip4.insert(call.ip4, call.uid);
        self.owner_of_ip6.insert(call.ip6, call.uid);
        self.addresses.insert(call.uid, call);
        Answer::Done
    }
}

fn kind_name(fingerprint: Fingerprint) -> &'static str {
    match fingerprint.kind() {
        FingerprintKind::Sha1 => "SHA-1",
        FingerprintKind::Sha256 => "SHA-256",
    }
}
