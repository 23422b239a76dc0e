//! A link handed from one process to the next.

use std::collections::VecDeque;
use std::time::Instant;

use crate::ice::{IceCommand, Resumption};
use crate::link::{PortKind, Security};
use crate::node::Output;
use crate::node::link::{Link, LinkParameters, RESTART_AFTER, Remote};
use crate::snapshot::{End, PlainLink};
use crate::wire::fingerprint::Fingerprint;

impl Link {
    /// What a later process needs to go on with this link; `None` when there is nothing it could go on with.
    pub(in crate::node) fn snapshot(&self, now: Instant) -> Option<PlainLink> {
        let is_lasting = self.security == Security::None && self.ended.is_none() && !self.relayed();
        let pair = self.pair.filter(|_| is_lasting)?;
        let Remote { candidates, vni, given_at: _ } = self.remote.as_ref()?;
        let (own, first) = (self.own.first()?, candidates.first()?);
        let of_agent = candidates.iter().filter(|one| (&one.ufrag, &one.pwd) == (&first.ufrag, &first.pwd));
        Some(PlainLink {
            uid: self.uid,
            fingerprint_text: self.fingerprint_text.clone(),
            overlay: self.overlay,
            own: End {
                candidates: self.own.iter().filter(|one| one.ufrag == own.ufrag).cloned().collect(),
                vni: self.receive_vni,
            },
            peer: End { candidates: of_agent.cloned().collect(), vni: (*vni)? },
            generation: self.generation?,
            pair,
            reachable: self.reachable,
            silence: now.saturating_duration_since(self.answered_at?),
        })
    }

    /// Goes on where `resumption` says that the process before was.
    pub(in crate::node) fn resume(
        now: Instant,
        fingerprint: Fingerprint,
        parameters: LinkParameters,
        resumption: Resumption,
        send_vni: u32,
        outputs: &mut VecDeque<Output>,
    ) -> Self {
        let Resumption { own, peer, generation, pair, reachable, silence } = &resumption;
        let mut link = Self::new(now, parameters);
        link.gathered = true;
        link.own.clone_from(own);
        link.offer = Some(link.write_offer(fingerprint));
        link.remote = Some(Remote { candidates: peer.clone(), vni: Some(send_vni), given_at: now });
        link.generation = Some(*generation);
        link.pair = Some(*pair);
        link.authenticated = true;
        link.reachable = *reachable;
        link.answered_at = now.checked_sub(*silence).or(Some(now));
        link.first_online = Some(now);
        link.retry_at = (!reachable).then_some(now + RESTART_AFTER);
        let (id, path) = (link.id, pair.path);
        outputs.push_back(Output::OpenLink { link: id, uid: link.uid, role: link.role, protection: link.protection });
        outputs.push_back(Output::SetSendTag { link: id, vni: send_vni });
        outputs.push_back(Output::SetPath { link: id, path });
        outputs.push_back(Output::SetForwarding { link: id, enabled: link.reachable });
        let (port, role, resumption) = (PortKind::Plain, link.role, Box::new(resumption));
        outputs.push_back(Output::Ice(IceCommand::Resume { link: id, port, role, resumption }));
        link
    }
}
