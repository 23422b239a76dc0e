//! By which interface, and from which address, this host reaches another.

use std::net::IpAddr;

use anyhow::{Context, anyhow, ensure};
use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteType};

use super::{Netlink, explain};
use crate::link::UnderlayRoute;

impl Netlink {
    /// The route to `remote`, from `source` where that is given; an error where it is not a way for Ethernet frames.
    pub async fn route_to(&self, remote: IpAddr, source: Option<IpAddr>) -> anyhow::Result<UnderlayRoute> {
        let all_bits = if remote.is_ipv4() { 32 } else { 128 };
        let mut message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(remote, all_bits)
            .with_context(|| format!("cannot ask for the route to {remote}"))?
            .build();
        if let Some(source) = source {
            message.header.source_prefix_length = all_bits;
            message.attributes.push(RouteAttribute::Source(source.into()));
        }
        let answer = self.handle.route().get(message).execute();
        let found = std::pin::pin!(answer).try_next().await;
        let found = found.map_err(|error| explain(&error, &format!("no route to {remote}")))?;
        let route = found.with_context(|| format!("the kernel did not answer for the route to {remote}"))?;
        ensure!(route.header.kind == RouteType::Unicast, "{remote} is not reached through a network");
        let mut interface = None;
        let mut chosen = None;
        for attribute in &route.attributes {
            if let RouteAttribute::Oif(index) = attribute {
                interface = Some(*index);
            } else if let RouteAttribute::PrefSource(address) = attribute {
                chosen = ip(address);
            }
        }
        let interface = interface.with_context(|| format!("the route to {remote} names no interface"))?;
        let source = source.or(chosen).with_context(|| format!("the route to {remote} names no source address"))?;
        Ok(UnderlayRoute { interface, source, mtu: self.ethernet_mtu(interface).await? })
    }

    /// The MTU of an interface that carries Ethernet frames to other machines.
    async fn ethernet_mtu(&self, interface: u32) -> anyhow::Result<u32> {
        let answer = self.handle.link().get().match_index(interface).execute();
        let found = std::pin::pin!(answer).try_next().await;
        let found = found.map_err(|error| explain(&error, &format!("cannot look up interface {interface}")))?;
        let link = found.with_context(|| format!("there is no interface {interface}"))?;
        let flags = link.header.flags;
        ensure!(flags.contains(LinkFlags::Up), "interface {interface} is down");
        let is_ethernet = link.header.link_layer_type == LinkLayerType::Ether;
        ensure!(is_ethernet && !flags.contains(LinkFlags::Loopback), "interface {interface} is not Ethernet");
        let mtu = link
            .attributes
            .iter()
            .find_map(|attribute| if let LinkAttribute::Mtu(mtu) = attribute { Some(*mtu) } else { None });
        mtu.ok_or_else(|| anyhow!("interface {interface} has no MTU"))
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        RouteAddress::Mpls(_) | RouteAddress::Other(_) | _ => None,
    }
}
