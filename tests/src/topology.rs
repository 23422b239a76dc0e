//! Networks of namespaces: switches, cables that can be pulled, routers with the NAT kinds of RFC 4787.

use std::fs;

use anyhow::{Context, Result};

use crate::netns::Namespace;
use crate::scratch::Scratch;

/// An Ethernet switch: a bridge in a namespace of its own.
#[derive(Debug)]
pub struct Lan {
    switch: Namespace,
    ports: u32,
}

/// A cable between a host and a switch.
#[derive(Clone, Debug)]
pub struct Cable {
    switch: Namespace,
    port: String,
}

impl Lan {
    /// A switch without cables.
    pub fn new(role: &str) -> Result<Self> {
        let switch = Namespace::new(role)?;
        switch.exec("ip link add br0 type bridge forward_delay 0 mcast_snooping 0")?;
        switch.exec("ip link set br0 up")?;
        Ok(Self { switch, ports: 0 })
    }

    /// The switch's own namespace; servers of the whole network live here.
    pub fn namespace(&self) -> &Namespace {
        &self.switch
    }

    /// Gives the switch itself an address with prefix length.
    pub fn address(&self, address: &str) -> Result<()> {
        add_address(&self.switch, "br0", address)
    }

    /// Lays a cable to `host`, where it ends in `interface` with `addresses` (with prefix lengths, either family).
    pub fn plug(&mut self, host: &Namespace, interface: &str, addresses: &[&str]) -> Result<Cable> {
        self.ports += 1;
        let port = format!("port{}", self.ports);
        let (near, far) = (host.name(), self.switch.name());
        host.exec(&format!("ip link add {interface} netns {near} type veth peer name {port} netns {far}"))?;
        self.switch.exec(&format!("ip link set {port} master br0 up"))?;
        for address in addresses {
            add_address(host, interface, address)?;
        }
        host.exec(&format!("ip link set {interface} up"))?;
        Ok(Cable { switch: self.switch.clone(), port })
    }
}

impl Cable {
    /// Pulls the plug at the switch: the host sees its carrier go.
    pub fn pull(&self) -> Result<()> {
        self.switch.exec(&format!("ip link set {} down", self.port)).map(drop)
    }

    /// Puts it back.
    pub fn insert(&self) -> Result<()> {
        self.switch.exec(&format!("ip link set {} up", self.port)).map(drop)
    }
}

/// Which address families the network under the overlay has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    Ipv4,
    Ipv6,
    Dual,
}

/// Two hosts on one switch, `eth0` each: `192.0.2.1` and `.2`, `2001:db8:1::1` and `::2`.
#[derive(Debug)]
pub struct Pair {
    pub alice: Namespace,
    pub bob: Namespace,
    pub alice_cable: Cable,
    pub bob_cable: Cable,
    pub lan: Lan,
}

impl Pair {
    /// Builds the network.
    pub fn new(underlay: Underlay) -> Result<Self> {
        let mut lan = Lan::new("lan")?;
        let (alice, alice_cable) = plug_host(&mut lan, "alice", 1, underlay)?;
        let (bob, bob_cable) = plug_host(&mut lan, "bob", 2, underlay)?;
        Ok(Self { alice, bob, alice_cable, bob_cable, lan })
    }
}

/// Offloads of hosts' and switches' ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// As a veth is made: super-frames cross whole, nothing is merged on receive.
    Default,
    /// Single packets everywhere.
    Off,
    /// Single packets on the wire, merged on receive by hosts, as with an ordinary network card.
    Gro,
}

impl Pair {
    /// Switches the offloads of both hosts and of the switch.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<()> {
        if offloads == Offloads::Default {
            return Ok(());
        }
        let features = "tso off gso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off \
                        tx-udp-segmentation off";
        let gro = if offloads == Offloads::Gro { "on" } else { "off" };
        for host in [&self.alice, &self.bob] {
            host.exec(&format!("ethtool -K eth0 {features} gro {gro}"))?;
        }
        for port in ["port1", "port2"] {
            self.lan.namespace().exec(&format!("ethtool -K {port} tso off gso off gro off"))?;
        }
        Ok(())
    }
}

/// Makes a host on `lan` with `eth0`, the addresses that end in `number`.
pub fn plug_host(lan: &mut Lan, role: &str, number: u8, underlay: Underlay) -> Result<(Namespace, Cable)> {
    let (ip4, ip6) = (format!("192.0.2.{number}/24"), format!("2001:db8:1::{number:x}/64"));
    let addresses: &[&str] = match underlay {
        Underlay::Ipv4 => &[&ip4],
        Underlay::Ipv6 => &[&ip6],
        Underlay::Dual => &[&ip4, &ip6],
    };
    let host = Namespace::new(role)?;
    let cable = lan.plug(&host, "eth0", addresses)?;
    if underlay == Underlay::Ipv4 {
        host.exec("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1")?;
    }
    Ok((host, cable))
}

/// Two hosts with two routers between them: `eth0` of alice is `192.0.2.1`, `2001:db8:1::1`, of bob `198.51.100.1`,
/// `2001:db8:2::1`. The routers' link (`mid`) can be narrowed.
#[derive(Debug)]
pub struct Routed {
    pub alice: Namespace,
    pub bob: Namespace,
    pub alice_router: Namespace,
    pub bob_router: Namespace,
}

impl Routed {
    /// Builds the network.
    pub fn new(underlay: Underlay) -> Result<Self> {
        let [alice, alice_router] = plug_routed("alice", ["192.0.2", "2001:db8:1:"], 1, underlay)?;
        let [bob, bob_router] = plug_routed("bob", ["198.51.100", "2001:db8:2:"], 2, underlay)?;
        let (near, far) = (alice_router.name(), bob_router.name());
        alice_router.exec(&format!("ip link add mid netns {near} type veth peer name mid netns {far}"))?;
        for (router, number) in [(&alice_router, 1), (&bob_router, 2)] {
            add_address(router, "mid", &format!("203.0.113.{number}/24"))?;
            add_address(router, "mid", &format!("2001:db8:f::{number}/64"))?;
            router.exec("ip link set mid up")?;
        }
        for (router, other, subnets) in [
            (&alice_router, 2, ["198.51.100.0/24", "2001:db8:2::/64"]),
            (&bob_router, 1, ["192.0.2.0/24", "2001:db8:1::/64"]),
        ] {
            router.exec(&format!("ip route add {} via 203.0.113.{other}", subnets[0]))?;
            router.exec(&format!("ip route add {} via 2001:db8:f::{other}", subnets[1]))?;
        }
        Ok(Self { alice, bob, alice_router, bob_router })
    }
}

/// A host and its router, joined by a cable; of the network's addresses `.1` is the host's and `.254` the router's.
fn plug_routed(role: &str, networks: [&str; 2], number: u8, underlay: Underlay) -> Result<[Namespace; 2]> {
    let (host, router) = (Namespace::new(role)?, Namespace::new(&format!("{role}-router"))?);
    let (near, far) = (host.name(), router.name());
    host.exec(&format!("ip link add eth0 netns {near} type veth peer name lan{number} netns {far}"))?;
    let [ip4, ip6] = networks;
    for (namespace, interface, end4, end6) in [(&host, "eth0", 1, 1), (&router, &format!("lan{number}"), 254, 0xfe)] {
        if underlay != Underlay::Ipv6 {
            add_address(namespace, interface, &format!("{ip4}.{end4}/24"))?;
        }
        if underlay != Underlay::Ipv4 {
            add_address(namespace, interface, &format!("{ip6}:{end6:x}/64"))?;
        }
        namespace.exec(&format!("ip link set {interface} up"))?;
    }
    router.exec("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
    if underlay == Underlay::Ipv4 {
        host.exec("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1")?;
    } else {
        host.exec(&format!("ip route add default via {ip6}:fe"))?;
    }
    if underlay != Underlay::Ipv6 {
        host.exec(&format!("ip route add default via {ip4}.254"))?;
    }
    Ok([host, router])
}

/// How a home router translates (RFC 4787: mapping and filtering).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Endpoint-independent mapping, address- and port-dependent filtering: the common home router.
    PortRestricted,
    /// Address- and port-dependent mapping and filtering.
    Symmetric,
}

/// The address of the switch that stands for the internet: STUN and TURN servers listen here.
pub const SERVER: &str = "198.51.100.10";

/// Two homes behind routers: alice is 192.168.1.2 behind 198.51.100.1, bob 192.168.2.2 behind 198.51.100.2.
#[derive(Debug)]
pub struct Homes {
    pub alice: Namespace,
    pub bob: Namespace,
    pub alice_router: Namespace,
    pub bob_router: Namespace,
    pub internet: Lan,
}

impl Homes {
    /// Builds the network.
    pub fn new(alice_nat: Nat, bob_nat: Nat) -> Result<Self> {
        let mut internet = Lan::new("internet")?;
        internet.address(&format!("{SERVER}/24"))?;
        let (alice, alice_router) = plug_home(&mut internet, "alice", 1, alice_nat)?;
        let (bob, bob_router) = plug_home(&mut internet, "bob", 2, bob_nat)?;
        // Peers' private addresses are asked of the relay too: on a host without a default route its send fails, and
        // coturn 4.6 closes an allocation whose send failed.
        internet.namespace().exec("ip route add default via 198.51.100.1")?;
        Ok(Self { alice, bob, alice_router, bob_router, internet })
    }
}

/// A host with `eth0` behind a router with `lan` and `wan`.
fn plug_home(internet: &mut Lan, role: &str, number: u8, nat: Nat) -> Result<(Namespace, Namespace)> {
    let router = Namespace::new(&format!("{role}-router"))?;
    internet.plug(&router, "wan", &[&format!("198.51.100.{number}/24")])?;
    let host = Namespace::new(role)?;
    host.exec("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")?;
    let (near, far) = (host.name(), router.name());
    host.exec(&format!("ip link add eth0 netns {near} type veth peer name lan netns {far}"))?;
    add_address(&router, "lan", &format!("192.168.{number}.1/24"))?;
    router.exec("ip link set lan up")?;
    add_address(&host, "eth0", &format!("192.168.{number}.2/24"))?;
    host.exec("ip link set eth0 up")?;
    host.exec(&format!("ip route add default via 192.168.{number}.1"))?;
    router.exec("sysctl -qw net.ipv4.ip_forward=1")?;
    firewall(&router, &nat_rules(nat))?;
    Ok((host, router))
}

/// Loads nftables text into `namespace`, beside what is there.
pub fn firewall(namespace: &Namespace, rules: &str) -> Result<()> {
    let scratch = Scratch::new("nft")?;
    let file = scratch.path().join("rules.nft");
    fs::write(&file, rules).with_context(|| format!("writing {}", file.display()))?;
    namespace.exec(&format!("nft -f {}", file.display())).map(drop)
}

/// Without `nodad` an IPv6 address is useless for its first second.
fn add_address(namespace: &Namespace, interface: &str, address: &str) -> Result<()> {
    let flags = if address.contains(':') { " nodad" } else { "" };
    namespace.exec(&format!("ip addr add {address} dev {interface}{flags}")).map(drop)
}

fn nat_rules(nat: Nat) -> String {
    match nat {
        Nat::FullCone => FULL_CONE.to_owned(),
        Nat::AddressRestricted => [FULL_CONE, FILTER_BY_ADDRESS].concat(),
        Nat::PortRestricted => [masquerade("masquerade").as_str(), FILTER_BY_FLOW].concat(),
        Nat::Symmetric => [masquerade("masquerade fully-random").as_str(), FILTER_BY_FLOW].concat(),
    }
}

fn masquerade(how: &str) -> String {
    format!(
        "table ip nat {{\n chain post {{ type nat hook postrouting priority srcnat; oifname \"wan\" {how}; }}\n}}\n"
    )
}

/// A map from outer port to inner address, filled as flows leave.
const FULL_CONE: &str = r#"
table ip nat {
    map cone { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 300s; size 65535; }
    chain pre {
        type nat hook prerouting priority dstnat;
        iifname "wan" meta l4proto udp dnat to udp dport map @cone;
    }
    chain post {
        type nat hook postrouting priority srcnat;
        oifname "wan" meta l4proto udp update @cone { udp sport timeout 300s : ip saddr . udp sport };
        oifname "wan" masquerade;
    }
}
"#;

const FILTER_BY_ADDRESS: &str = r#"
table ip filter {
    set seen { type ipv4_addr; flags dynamic,timeout; timeout 300s; size 65535; }
    chain forward {
        type filter hook forward priority filter; policy accept;
        oifname "wan" update @seen { ip daddr timeout 300s };
        iifname "wan" ct state established,related accept;
        iifname "wan" ip saddr @seen accept;
        iifname "wan" drop;
    }
}
"#;

/// The input chain matters: a probe that arrives before ours leaves would otherwise be confirmed as a flow of the
/// router's own, take the reply tuple of our mapping, and push it to another port.
const FILTER_BY_FLOW: &str = r#"
table ip filter {
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname "wan" ct state established,related accept;
        iifname "wan" drop;
    }
    chain input {
        type filter hook input priority filter; policy accept;
        iifname "wan" meta l4proto udp ct state new drop;
    }
}
"#;
