//! Routing netlink: configures the TAP and lists the addresses of the underlay.
//!
//! The TAP lives and dies with its file descriptor (`edge::tap`); the kernel engine's helper devices are made here.

pub mod devices;
mod routes;
mod uplinks;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, anyhow};
use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, LinkUnspec};
use tracing::{debug, warn};

/// Most addresses one listing returns; each becomes a candidate with checks of its own.
const MAX_UNDERLAY_ADDRESSES: usize = 64;

/// Longest interface name (the kernel's `IFNAMSIZ` without the terminating zero).
const MAX_NAME_LEN: usize = 15;

/// The alias of a TAP that is the own or another overlay's: no overlay is offered as the way to itself or another.
const OVERLAY_ALIAS: &str = "tincan overlay";

/// Host-only networks of virtual machine monitors: nothing beyond this machine is reached by them.
const IGNORED_PREFIXES: [&str; 2] = ["vmnet", "vnic"];

/// A connection to the kernel's routing netlink; clones share it.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
}

/// An address of the underlay and the interface that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    pub interface: String,
    pub addr: IpAddr,
}

impl Netlink {
    /// Opens the socket and spawns the task that serves it, in the network namespace of the calling thread.
    pub fn new() -> anyhow::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a routing netlink socket")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Gives interface `name` its MTU in bytes, no ARP, the UP state and both addresses; again with the same values it
    /// changes nothing. The IPv6 address skips duplicate detection (RFC 4862 section 5.4), so it can be used at once.
    /// Where the kernel has IPv6 switched off, the IPv4 address stands alone and a warning says so.
    pub async fn configure_tap(
        &self,
        name: &str,
        ip4: Ipv4Addr,
        ip4_prefix: u8,
        ip6: Ipv6Addr,
        ip6_prefix: u8,
        mtu: u32,
    ) -> anyhow::Result<()> {
        let link = self
            .find(name)
            .await
            .map_err(|error| explain(&error, &format!("cannot look up interface {name}")))?
            .ok_or_else(|| anyhow!("there is no interface {name}: create the TAP first"))?;
        let index = link.header.index;

        let change = LinkUnspec::new_with_index(index).mtu(mtu).alias(OVERLAY_ALIAS).arp(false).up().build();
        let set = self.handle.link().set(change).execute().await;
        set.map_err(|error| explain(&error, &format!("cannot set MTU {mtu}, NOARP and UP on {name}")))?;

        let added = self.add_address(index, ip4.into(), ip4_prefix).await;
        added.map_err(|error| explain(&error, &format!("cannot add {ip4}/{ip4_prefix} to {name}")))?;

        match self.add_address(index, ip6.into(), ip6_prefix).await {
            Err(error) if is_ipv6_off(&error) => {
                warn!(interface = name, address = %ip6, "IPv6 is switched off on this host, the TAP has IPv4 only");
                Ok(())
            }
            other => other.map_err(|error| explain(&error, &format!("cannot add {ip6}/{ip6_prefix} to {name}"))),
        }
    }

    /// Takes an address off interface `name`; one that is not there is none to take.
    pub async fn remove_address(&self, name: &str, address: IpAddr, prefix: u8) -> anyhow::Result<()> {
        let what = || format!("cannot take {address}/{prefix} off {name}");
        let link = self.find(name).await.map_err(|error| explain(&error, &what()))?;
        let Some(link) = link else { return Ok(()) };
        let message = self.handle.address().add(link.header.index, address, prefix).message_mut().clone();
        match self.handle.address().del(message).execute().await {
            Err(error) if matches!(errno(&error), Some(Errno::EADDRNOTAVAIL)) || is_ipv6_off(&error) => Ok(()),
            other => other.map_err(|error| explain(&error, &what())),
        }
    }

    /// The addresses peers may be reached by: of interfaces that are up, without loopback, link-local IPv6, tentative
    /// and deprecated ones, host-only networks and overlays of this program; at most 64.
    pub async fn underlay_addresses(&self) -> anyhow::Result<Vec<InterfaceAddress>> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| explain(&error, "cannot list the interfaces"))?;
        let interfaces: HashMap<u32, String> = links.iter().filter_map(usable_interface).collect();

        let addresses: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| explain(&error, "cannot list the addresses"))?;
        let usable = addresses.iter().filter_map(|message| {
            let interface = interfaces.get(&message.header.index)?.clone();
            Some(InterfaceAddress { interface, addr: usable_address(message)? })
        });
        let mut found: Vec<_> = usable.take(MAX_UNDERLAY_ADDRESSES + 1).collect();
        if found.len() > MAX_UNDERLAY_ADDRESSES {
            found.truncate(MAX_UNDERLAY_ADDRESSES);
            debug!(limit = MAX_UNDERLAY_ADDRESSES, "this host has more addresses than are offered to peers");
        }
        Ok(found)
    }

    /// Whether the namespace has an interface of this name, up or down.
    pub async fn interface_exists(&self, name: &str) -> anyhow::Result<bool> {
        let found = self.find(name).await;
        let found = found.map_err(|error| explain(&error, &format!("cannot look up interface {name}")))?;
        Ok(found.is_some())
    }

    async fn find(&self, name: &str) -> Result<Option<LinkMessage>, rtnetlink::Error> {
        if name.is_empty() || name.len() > MAX_NAME_LEN {
            return Ok(None);
        }
        let request = self.handle.link().get().match_name(name).execute();
        match std::pin::pin!(request).try_next().await {
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            other => other,
        }
    }

    async fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<(), rtnetlink::Error> {
        let mut request = self.handle.address().add(index, address, prefix).replace();
        if address.is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        match request.execute().await {
            Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(()),
            other => other,
        }
    }
}

/// Index and name of an interface that is up and leads off this machine.
fn usable_interface(link: &LinkMessage) -> Option<(u32, String)> {
    let flags = link.header.flags;
    if !flags.contains(LinkFlags::Up) || flags.contains(LinkFlags::Loopback) {
        return None;
    }
    let name = link
        .attributes
        .iter()
        .find_map(|attribute| if let LinkAttribute::IfName(name) = attribute { Some(name.clone()) } else { None })?;
    let is_overlay =
        |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfAlias(alias) if alias == OVERLAY_ALIAS);
    let ignored =
        IGNORED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || link.attributes.iter().any(is_overlay);
    (!ignored).then_some((link.header.index, name))
}

/// The interface's own address in a message, unless nobody could answer it now.
fn usable_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let mut own = None;
    let mut peer_or_own = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(address) = attribute {
            own = Some(*address);
        } else if let AddressAttribute::Address(address) = attribute {
            peer_or_own = Some(*address);
        } else if let AddressAttribute::Flags(all) = attribute {
            flags = *all;
        }
    }
    if flags.intersects(AddressFlags::Tentative | AddressFlags::Deprecated | AddressFlags::Dadfailed) {
        return None;
    }
    // On point-to-point interfaces the Address attribute is the other end (rtnetlink(7)).
    let address = own.or(peer_or_own)?;
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let unusable = address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local;
    (!unusable).then_some(address)
}

/// The kernel answers EACCES while `disable_ipv6` is set, the others when it has no IPv6 at all.
fn is_ipv6_off(error: &rtnetlink::Error) -> bool {
    matches!(errno(error), Some(Errno::EACCES | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT))
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    let rtnetlink::Error::NetlinkError(message) = error else { return None };
    Some(Errno::from_raw(message.raw_code().wrapping_neg()))
}

/// Says what failed and, where it is the lack of a capability, what to do.
fn explain(error: &rtnetlink::Error, what: &str) -> anyhow::Error {
    match errno(error) {
        Some(Errno::EPERM) => {
            anyhow!("{what}: this needs CAP_NET_ADMIN; run as root or give the program that capability")
        }
        Some(errno) => anyhow!(io::Error::from(errno)).context(what.to_owned()),
        None => anyhow!("{what}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;
    use std::thread;

    use crate::link::UnderlayRoute;
    use nix::sched::{CloneFlags, unshare};
    use rtnetlink::packet_core::ErrorMessage;
    use rtnetlink::packet_route::address::CacheInfo;
    use rtnetlink::packet_route::route::{RouteAttribute, RouteMetric};
    use rtnetlink::{LinkVeth, RouteMessageBuilder, packet_route::link::LinkAttribute::Mtu};

    use super::*;

    /// Runs a test in a network namespace of its own, which goes with its thread.
    fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce(Netlink) -> F + Send + 'static) {
        let run = move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("the netlink tests need root");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { test(Netlink::new().unwrap()).await });
        };
        thread::spawn(run).join().unwrap();
    }

    async fn add_veth(netlink: &Netlink, name: &str, other: &str) {
        netlink.handle.link().add(LinkVeth::new(name, other).build()).execute().await.unwrap();
    }

    async fn bring_up(netlink: &Netlink, name: &str) {
        netlink.handle.link().set(LinkUnspec::new_with_name(name).up().build()).execute().await.unwrap();
    }

    async fn add_address(netlink: &Netlink, name: &str, address: &str) {
        let index = netlink.find(name).await.unwrap().unwrap().header.index;
        netlink.add_address(index, address.parse().unwrap(), 24).await.unwrap();
    }

    async fn configure(netlink: &Netlink, name: &str) -> anyhow::Result<()> {
        netlink.configure_tap(name, Ipv4Addr::new(172, 31, 0, 1), 24, "fd50:dbc::1".parse().unwrap(), 64, 1280).await
    }

    fn found(interface: &str, address: &str) -> InterfaceAddress {
        InterfaceAddress { interface: interface.to_owned(), addr: address.parse().unwrap() }
    }

    #[test]
    fn the_route_to_a_host_names_interface_source_and_mtu() {
        in_namespace(async |netlink| {
            add_veth(&netlink, "v0", "v1").await;
            bring_up(&netlink, "v0").await;
            bring_up(&netlink, "v1").await;
            bring_up(&netlink, "lo").await;
            add_address(&netlink, "v0", "192.0.2.1").await;
            let index = netlink.find("v0").await.unwrap().unwrap().header.index;
            let source = "192.0.2.1".parse().unwrap();
            let expected = UnderlayRoute { interface: index, is_ethernet: true, source, mtu: 1500 };
            let remote = "192.0.2.9".parse().unwrap();
            assert_eq!(netlink.route_to(remote, None).await.unwrap(), expected);
            assert_eq!(netlink.route_to(remote, Some(expected.source)).await.unwrap(), expected);
            for not_away in ["192.0.2.1", "127.0.0.1", "203.0.113.1", "2001:db8::1"] {
                assert!(netlink.route_to(not_away.parse().unwrap(), None).await.is_err(), "{not_away}");
            }
            let foreign = netlink.route_to(remote, Some("192.0.2.7".parse().unwrap())).await;
            assert!(foreign.is_err(), "{foreign:?}");
        });
    }

    #[test]
    fn the_mtu_of_a_route_is_the_least_that_is_known() {
        in_namespace(async |netlink| {
            add_veth(&netlink, "v0", "v1").await;
            bring_up(&netlink, "v0").await;
            bring_up(&netlink, "v1").await;
            let index = netlink.find("v0").await.unwrap().unwrap().header.index;
            for (address, remote, prefix) in [("192.0.2.1", "198.51.100.1", 24), ("2001:db8::1", "2001:db8:1::1", 64)] {
                let (address, remote): (IpAddr, IpAddr) = (address.parse().unwrap(), remote.parse().unwrap());
                netlink.add_address(index, address, prefix).await.unwrap();
                for (device, route, expected) in [(1500, 1400, 1400), (1300, 1400, 1300), (1500, 1280, 1280)] {
                    let change = LinkUnspec::new_with_index(index).mtu(device).build();
                    netlink.handle.link().set(change).execute().await.unwrap();
                    let mut message = RouteMessageBuilder::<IpAddr>::new()
                        .destination_prefix(remote, if remote.is_ipv4() { 32 } else { 128 })
                        .unwrap()
                        .output_interface(index)
                        .build();
                    message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route)]));
                    netlink.handle.route().add(message).replace().execute().await.unwrap();
                    let found = netlink.route_to(remote, Some(address)).await.unwrap();
                    assert_eq!(found.mtu, expected, "{remote}, device {device}, route {route}");
                }
            }
        });
    }

    #[test]
    fn ipv6_takes_the_mtu_that_routers_announced() {
        in_namespace(async |netlink| {
            add_veth(&netlink, "v0", "v1").await;
            bring_up(&netlink, "v0").await;
            bring_up(&netlink, "v1").await;
            let index = netlink.find("v0").await.unwrap().unwrap().header.index;
            netlink.add_address(index, "192.0.2.1".parse().unwrap(), 24).await.unwrap();
            netlink.add_address(index, "2001:db8::1".parse().unwrap(), 64).await.unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/v0/mtu", "1400").unwrap();
            for (remote, expected) in [("192.0.2.2", 1500), ("2001:db8::2", 1400)] {
                assert_eq!(netlink.route_to(remote.parse().unwrap(), None).await.unwrap().mtu, expected);
            }
        });
    }

    #[test]
    fn a_configured_interface_is_up_without_arp_and_both_addresses_work_at_once() {
        in_namespace(|netlink| async move {
            add_veth(&netlink, "tap0", "other0").await;
            for _ in 0..2 {
                configure(&netlink, "tap0").await.unwrap();
                let link = netlink.find("tap0").await.unwrap().unwrap();
                assert!(link.header.flags.contains(LinkFlags::Up | LinkFlags::Noarp));
                assert!(link.attributes.contains(&Mtu(1280)));
                assert_eq!(netlink.underlay_addresses().await.unwrap(), [], "an overlay is no underlay");
            }
            assert!(tokio::net::UdpSocket::bind("172.31.0.1:0").await.is_ok());
            tokio::net::UdpSocket::bind("[fd50:dbc::1]:0").await.unwrap();
            for _ in 0..2 {
                netlink.remove_address("tap0", "172.31.0.1".parse().unwrap(), 24).await.unwrap();
                netlink.remove_address("tap0", "fd50:dbc::1".parse().unwrap(), 64).await.unwrap();
                assert_eq!(netlink.underlay_addresses().await.unwrap(), []);
            }
        });
    }

    #[test]
    fn interfaces_that_are_down_loopback_or_host_only_offer_nothing() {
        in_namespace(|netlink| async move {
            for (name, other) in [("eth0", "peer0"), ("eth1", "peer1"), ("vmnet8", "vnic3")] {
                add_veth(&netlink, name, other).await;
            }
            for (name, address) in [
                ("lo", "10.9.9.9"),
                ("eth0", "192.0.2.1"),
                ("eth0", "fe80::5"),
                ("eth1", "192.0.2.2"),
                ("vmnet8", "192.0.2.3"),
                ("vnic3", "192.0.2.4"),
            ] {
                add_address(&netlink, name, address).await;
            }
            for name in ["lo", "eth0", "vmnet8", "vnic3"] {
                bring_up(&netlink, name).await;
            }
            assert_eq!(netlink.underlay_addresses().await.unwrap(), [found("eth0", "192.0.2.1")]);
        });
    }

    #[test]
    fn deprecated_and_tentative_addresses_are_not_offered() {
        in_namespace(|netlink| async move {
            add_veth(&netlink, "eth0", "peer0").await;
            bring_up(&netlink, "peer0").await;
            bring_up(&netlink, "eth0").await;
            add_address(&netlink, "eth0", "172.31.0.1").await;
            add_address(&netlink, "eth0", "fd50:dbc::1").await;
            let index = netlink.find("eth0").await.unwrap().unwrap().header.index;

            let mut deprecated = netlink.handle.address().add(index, "2001:db8::2".parse().unwrap(), 64);
            let mut lifetime = CacheInfo::default();
            lifetime.ifa_valid = u32::MAX;
            deprecated.message_mut().attributes.push(AddressAttribute::CacheInfo(lifetime));
            deprecated.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            deprecated.execute().await.unwrap();

            // Duplicate detection runs where ARP is on and takes a second: within it the address is tentative.
            let tentative = netlink.find("peer0").await.unwrap().unwrap().header.index;
            netlink.handle.address().add(tentative, "2001:db8::3".parse().unwrap(), 64).execute().await.unwrap();
            assert_eq!(
                netlink.underlay_addresses().await.unwrap(),
                [found("eth0", "172.31.0.1"), found("eth0", "fd50:dbc::1")]
            );
        });
    }

    #[test]
    fn at_most_64_addresses_are_listed() {
        in_namespace(|netlink| async move {
            add_veth(&netlink, "eth0", "peer0").await;
            bring_up(&netlink, "eth0").await;
            for last in 1..=70 {
                add_address(&netlink, "eth0", &format!("192.0.2.{last}")).await;
            }
            assert_eq!(netlink.underlay_addresses().await.unwrap().len(), MAX_UNDERLAY_ADDRESSES);
        });
    }

    #[test]
    fn interfaces_are_found_by_exact_name_and_a_missing_one_is_an_error_to_configure() {
        in_namespace(|netlink| async move {
            add_veth(&netlink, "tap0", "other0").await;
            assert!(netlink.interface_exists("tap0").await.unwrap());
            for name in ["tap", "tap1", "", "a-name-longer-than-the-kernel-allows"] {
                assert!(!netlink.interface_exists(name).await.unwrap(), "{name}");
            }
            let error = configure(&netlink, "tap1").await.unwrap_err();
            assert_eq!(error.to_string(), "there is no interface tap1: create the TAP first");
        });
    }

    #[test]
    fn without_ipv6_the_ipv4_address_is_configured_alone() {
        in_namespace(|netlink| async move {
            add_veth(&netlink, "tap0", "other0").await;
            std::fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "1").unwrap();
            configure(&netlink, "tap0").await.unwrap();
            assert!(tokio::net::UdpSocket::bind("172.31.0.1:0").await.is_ok());
            assert!(tokio::net::UdpSocket::bind("[fd50:dbc::1]:0").await.is_err());
        });
    }

    #[test]
    fn a_missing_capability_is_named() {
        let mut refusal = ErrorMessage::default();
        refusal.code = NonZeroI32::new(-(Errno::EPERM as i32));
        let error = explain(&rtnetlink::Error::NetlinkError(refusal), "cannot add 10.0.0.1/24 to ipop");
        assert_eq!(
            error.to_string(),
            "cannot add 10.0.0.1/24 to ipop: this needs CAP_NET_ADMIN; run as root or give the program that capability"
        );
    }
}
