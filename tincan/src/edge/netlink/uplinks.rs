//! The Ethernet interfaces by which peers are reached, and the own addresses on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage};

use super::{Netlink, explain, usable_interface};

impl Netlink {
    /// Index and own addresses of every Ethernet interface that has usable ones, without interface `tap`.
    pub async fn ethernet_uplinks(&self, tap: &str) -> anyhow::Result<BTreeMap<u32, BTreeSet<IpAddr>>> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| explain(&error, "cannot list the interfaces"))?;
        let is_ethernet = |link: &&LinkMessage| {
            link.header.link_layer_type == LinkLayerType::Ether
                && !link
                    .attributes
                    .iter()
                    .any(|attribute| matches!(attribute, LinkAttribute::IfName(name) if name == tap))
        };
        let ethernet: BTreeMap<String, u32> =
            links.iter().filter(is_ethernet).filter_map(usable_interface).map(|(index, name)| (name, index)).collect();
        let mut uplinks: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
        for found in self.underlay_addresses().await? {
            if let Some(index) = ethernet.get(&found.interface) {
                uplinks.entry(*index).or_default().insert(found.addr);
            }
        }
        Ok(uplinks)
    }
}
