//! By which interface, from which address, and with how long packets this host reaches another.

use std::net::IpAddr;

use anyhow::{Context, ensure};
use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMetric, RouteType};

use super::{Netlink, explain};
use crate::link::UnderlayRoute;

impl Netlink {
    /// The route to `remote`, from `source` where that is given; an error where it leads through no interface that is up.
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
        let mut learnt_mtu = u32::MAX;
        for attribute in &route.attributes {
            if let RouteAttribute::Oif(index) = attribute {
                interface = Some(*index);
            } else if let RouteAttribute::PrefSource(address) = attribute {
                chosen = ip(address);
            } else if let RouteAttribute::Metrics(metrics) = attribute {
                learnt_mtu = metrics.iter().find_map(mtu_of_metric).unwrap_or(learnt_mtu);
            }
        }
        let interface = interface.with_context(|| format!("the route to {remote} names no interface"))?;
        let source = source.or(chosen).with_context(|| format!("the route to {remote} names no source address"))?;
        let link = self.link_that_is_up(interface).await?;
        let device_mtu = device_mtu(&link, remote.is_ipv6()).with_context(|| format!("{interface} has no MTU"))?;
        let is_loopback = link.header.flags.contains(LinkFlags::Loopback);
        let is_ethernet = link.header.link_layer_type == LinkLayerType::Ether && !is_loopback;
        Ok(UnderlayRoute { interface, is_ethernet, source, mtu: device_mtu.min(learnt_mtu) })
    }

    async fn link_that_is_up(&self, interface: u32) -> anyhow::Result<LinkMessage> {
        let answer = self.handle.link().get().match_index(interface).execute();
        let found = std::pin::pin!(answer).try_next().await;
        let found = found.map_err(|error| explain(&error, &format!("cannot look up interface {interface}")))?;
        let link = found.with_context(|| format!("there is no interface {interface}"))?;
        ensure!(link.header.flags.contains(LinkFlags::Up), "interface {interface} is down");
        Ok(link)
    }
}

/// The MTU the administrator set for a route, or that of an exception: what a router said of this destination (RFC 1191,
/// RFC 8201).
fn mtu_of_metric(metric: &RouteMetric) -> Option<u32> {
    if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None }
}

/// The interface's MTU; for IPv6 not more than routers of the network announced (RFC 4861 section 4.6.4).
fn device_mtu(link: &LinkMessage, is_ipv6: bool) -> Option<u32> {
    let mut device = None;
    let mut announced = None;
    for attribute in &link.attributes {
        if let LinkAttribute::Mtu(mtu) = attribute {
            device = Some(*mtu);
        } else if let LinkAttribute::AfSpecUnspec(families) = attribute {
            announced = families.iter().find_map(mtu_of_ipv6);
        }
    }
    let device = device?;
    Some(announced.filter(|_| is_ipv6).map_or(device, |announced| device.min(announced)))
}

fn mtu_of_ipv6(family: &AfSpecUnspec) -> Option<u32> {
    let AfSpecUnspec::Inet6(settings) = family else { return None };
    settings.iter().find_map(|setting| {
        if let AfSpecInet6::DevConf(configured) = setting { u32::try_from(configured.mtu6).ok() } else { None }
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        RouteAddress::Mpls(_) | RouteAddress::Other(_) | _ => None,
    }
}
