//! Entries of the daemon before, until a link of this one replaces them or nobody wants them.
//!
//! They are kept by slot, which is what the entries of one link have in common.

use std::collections::BTreeMap;

use tincan_common::entries::{Address, Flow, Receiver, Sender};

use crate::link::LinkId;

/// Entries with one slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub flows: Vec<(Flow, Receiver)>,
    pub routes4: Vec<([u8; 4], Sender)>,
    pub routes6: Vec<(Address, Sender)>,
    /// The link that has the slot now; it counts on in it.
    owner: Option<LinkId>,
}

/// A flow of the daemon before, as far as its entries tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdoptedFlow {
    pub flow: Flow,
    /// Where it is counted.
    pub slot: u32,
    /// The 24-bit tag this node asked for.
    pub receive_tag: u32,
    /// The 24-bit tag the peer asked for, where frames are sent too.
    pub send_tag: Option<u32>,
    /// The peer's inner addresses, the IPv4 one cut to the router mask.
    pub ip4: [u8; 4],
    pub ip6: Address,
}

/// Every adopted entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    groups: BTreeMap<u32, Group>,
}

impl Adopted {
    /// From what the maps hold.
    pub fn new(flows: Vec<(Flow, Receiver)>, routes4: Vec<([u8; 4], Sender)>, routes6: Vec<(Address, Sender)>) -> Self {
        let mut groups: BTreeMap<u32, Group> = BTreeMap::new();
        for (flow, receiver) in flows {
            groups.entry(receiver.slot).or_default().flows.push((flow, receiver));
        }
        for (destination, sender) in routes4 {
            groups.entry(sender.slot).or_default().routes4.push((destination, sender));
        }
        for (destination, sender) in routes6 {
            groups.entry(sender.slot).or_default().routes6.push((destination, sender));
        }
        Self { groups }
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether a slot is still counted in by adopted entries.
    pub fn has_slot(&self, slot: u32) -> bool {
        self.groups.contains_key(&slot)
    }

    /// Every flow.
    pub fn flows(&self) -> Vec<AdoptedFlow> {
        let of_group = |group: &Group| {
            let routes6 = group.routes6.first().map(|(_, sender)| sender.tag);
            let send_tag = group.routes4.first().map(|(_, sender)| sender.tag).or(routes6);
            let listed = group.flows.iter().map(move |(flow, receiver)| {
                let Receiver { slot, tag, merger: _, ip4, ip6 } = *receiver;
                AdoptedFlow { flow: *flow, slot, receive_tag: tag, send_tag, ip4, ip6 }
            });
            listed.collect::<Vec<_>>()
        };
        self.groups.values().flat_map(of_group).collect()
    }

    /// The slot of the link that asked for this tag: `link` is that link again, and counts on in it.
    pub fn claim_slot(&mut self, link: LinkId, receive_tag: u32) -> Option<u32> {
        let is_it = |group: &Group| {
            group.owner.is_none() && group.flows.iter().any(|(_, receiver)| receiver.tag == receive_tag)
        };
        let (slot, group) = self.groups.iter_mut().find(|(_, group)| is_it(group))?;
        group.owner = Some(link);
        Some(*slot)
    }

    /// Takes out what entries with these keys, or any of `link`, stand in place of.
    pub fn take_replaced(&mut self, link: LinkId, flow: &Flow, ip4: [u8; 4], ip6: &Address) -> Vec<(u32, Group)> {
        let is_replaced = |group: &Group| {
            let by_flow =
                |(found, receiver): &(Flow, Receiver)| found == flow || receiver.ip4 == ip4 || receiver.ip6 == *ip6;
            group.owner == Some(link)
                || group.flows.iter().any(by_flow)
                || group.routes4.iter().any(|(destination, _)| *destination == ip4)
                || group.routes6.iter().any(|(destination, _)| destination == ip6)
        };
        self.take(is_replaced)
    }

    /// Takes out what `link` has claimed.
    pub fn take_of(&mut self, link: LinkId) -> Vec<(u32, Group)> {
        self.take(|group| group.owner == Some(link))
    }

    /// Takes out everything.
    pub fn take_all(&mut self) -> Vec<(u32, Group)> {
        self.take(|_| true)
    }

    fn take(&mut self, is_wanted: impl Fn(&Group) -> bool) -> Vec<(u32, Group)> {
        let slots: Vec<u32> = self.groups.iter().filter(|(_, group)| is_wanted(group)).map(|(slot, _)| *slot).collect();
        slots.into_iter().filter_map(|slot| Some((slot, self.groups.remove(&slot)?))).collect()
    }
}

impl Group {
    /// Whether its slot is nobody's once it is gone.
    pub fn is_free(&self) -> bool {
        self.owner.is_none()
    }
}
