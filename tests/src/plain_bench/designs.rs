//! The pairs of namespaces and what joins them.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Design, Setting};
use crate::controller::{LinkPlan, Node, connect};
use crate::daemon::DaemonOptions;
use crate::netns::Namespace;
use crate::wait;

/// MTU of what is inside a tunnel over an underlay of 1500 (VXLAN over IPv4 takes 50 bytes).
const INNER_MTU: u32 = 1450;
/// The far host's addresses.
const UNDERLAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OVERLAY: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
const SOON: Duration = Duration::from_secs(15);

/// Two hosts and a cable.
struct Hosts {
    near: Namespace,
    far: Namespace,
}

/// Where to measure.
pub struct Path<'a> {
    pub near: &'a Namespace,
    pub far: &'a Namespace,
    pub target: IpAddr,
}

/// Two daemons with a plain link.
struct Linked {
    hosts: Hosts,
    nodes: [Node; 2],
    engine: &'static str,
}

/// All designs that are compared.
pub struct Bench {
    plain: Option<Hosts>,
    kernel: Option<Linked>,
    user: Option<Linked>,
}

impl Hosts {
    fn new(role: &str) -> Result<Self> {
        let (near, far) = (Namespace::new(&format!("{role}-near"))?, Namespace::new(&format!("{role}-far"))?);
        near.exec(&format!("ip link add eth0 netns {} type veth peer name eth0 netns {}", near.name(), far.name()))?;
        for (host, number) in [(&near, 1), (&far, 2)] {
            host.exec(&format!("ip addr add 192.0.2.{number}/24 dev eth0"))?;
            host.exec("ip link set eth0 up")?;
        }
        Ok(Self { near, far })
    }

    fn add_vxlan(&self) -> Result<()> {
        for (host, own, other) in [(&self.near, 1, 2), (&self.far, 2, 1)] {
            host.exec(&format!(
                "ip link add vx0 type vxlan id 7 local 192.0.2.{own} remote 192.0.2.{other} dstport 4789 dev eth0"
            ))?;
            host.exec(&format!("ip addr add 10.7.0.{own}/24 dev vx0"))?;
            host.exec(&format!("ip link set vx0 mtu {INNER_MTU} up"))?;
        }
        Ok(())
    }
}

impl Linked {
    fn new(role: &str, fast_path: &str, engine: &'static str) -> Result<Self> {
        let hosts = Hosts::new(role)?;
        let more = ["--mtu", &INNER_MTU.to_string(), "--fast-path", fast_path].map(str::to_owned).to_vec();
        let options = DaemonOptions { more, log_at_end: false, ..DaemonOptions::default() };
        let mut near = Node::start_with(&hosts.near, 1, &options)?;
        let mut far = Node::start_with(&hosts.far, 2, &options)?;
        connect(&mut near, &mut far, &LinkPlan::plain())?;
        let linked = Self { hosts, nodes: [near, far], engine };
        wait::until(SOON, &format!("both ends to use the {engine} engine"), || linked.check_engines().is_ok())?;
        Ok(linked)
    }

    fn check_engines(&self) -> Result<()> {
        let [near, far] = &self.nodes;
        for (node, peer) in [(near, far), (far, near)] {
            let peer = node.peer(peer)?;
            let found = peer.text("engine");
            ensure!(found == self.engine, "the link is on the {found} engine, not on the {} one", self.engine);
        }
        Ok(())
    }

    /// Waits until the daemons have seen whether their uplinks merge.
    fn await_offloads(&self, merges: bool) -> Result<()> {
        for node in self.nodes.iter().filter(|_| self.engine == "kernel") {
            let has_seen = || says_veth(node).is_ok_and(|by_veth| by_veth != merges);
            wait::until(SOON, "the daemon to look at its uplink's offloads", has_seen)?;
        }
        self.check_engines()
    }
}

/// Whether a daemon merges by its veth.
fn says_veth(node: &Node) -> Result<bool> {
    let status = node.daemon.call("status", &json!({}))?;
    Ok(status["host"]["fast_path"].as_str().context("no fast_path in status")?.contains("behind uplinks without GRO"))
}

impl Bench {
    pub fn new(designs: &[Design]) -> Result<Self> {
        let wants = |design| designs.contains(&design);
        let plain = if wants(Design::Raw) || wants(Design::Vxlan) {
            let hosts = Hosts::new("bare")?;
            hosts.add_vxlan()?;
            Some(hosts)
        } else {
            None
        };
        let kernel = (wants(Design::Kernel) || wants(Design::Beside))
            .then(|| Linked::new("kernel", "on", "kernel"))
            .transpose()?;
        let user = wants(Design::User).then(|| Linked::new("user", "off", "user")).transpose()?;
        Ok(Self { plain, kernel, user })
    }

    /// Switches the underlay's offloads.
    pub fn set(&self, setting: Setting) -> Result<()> {
        let linked = [&self.kernel, &self.user].into_iter().flatten();
        for hosts in self.plain.iter().chain(linked.clone().map(|linked| &linked.hosts)) {
            for host in [&hosts.near, &hosts.far] {
                host.exec(&format!("ethtool -K eth0 {}", setting.features()))?;
            }
        }
        linked.into_iter().try_for_each(|linked| linked.await_offloads(setting == Setting::Gro))
    }

    pub fn check_engines(&self) -> Result<()> {
        [&self.kernel, &self.user].into_iter().flatten().try_for_each(Linked::check_engines)
    }

    /// Where a design is measured.
    pub fn path(&self, design: Design) -> Result<Path<'_>> {
        let (hosts, target) = match design {
            Design::Raw => (self.plain.as_ref(), UNDERLAY),
            Design::Vxlan => (self.plain.as_ref(), Ipv4Addr::new(10, 7, 0, 2)),
            Design::Kernel => (self.kernel.as_ref().map(|linked| &linked.hosts), OVERLAY),
            Design::User => (self.user.as_ref().map(|linked| &linked.hosts), OVERLAY),
            Design::Beside => (self.kernel.as_ref().map(|linked| &linked.hosts), UNDERLAY),
        };
        let Hosts { near, far } = hosts.context("this design was not set up")?;
        Ok(Path { near, far, target: target.into() })
    }
}
