//! What the daemon does to its host: identity, TAP addresses, the callback endpoint, the kernel engine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::Context;

use crate::config::DaemonConfig;
use crate::daemon::Daemon;
use crate::daemon::fast_path::FastPath;
use crate::dataplane::Command;
use crate::dataplane::engine::Engine;
use crate::dataplane::port::{Ports, UdpPort};
use crate::dataplane::table::Local;
use crate::dtls::Identity;
use crate::link::{LinkId, PortKind, Traffic};
use crate::node::{Confirmation, TrafficSource};
use crate::wire::answer::Answer;
use crate::wire::fingerprint::Fingerprint;
use crate::wire::request::LocalIp;
use crate::wire::state::HostState;

/// What the loop itself had to leave undone.
#[derive(Debug, Default)]
pub(super) struct LoopCounters {
    pub(super) unrouted_without_controller: u64,
    pub(super) notifications_without_controller: u64,
    pub(super) undelivered_signals: u64,
}

/// The state directory exists and only its owner may look inside.
pub(super) fn prepare_state_dir(path: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the state directory {}: choose another with --state-dir", path.display()))
}

/// A seed for tags and jitter.
pub(super) fn random_seed() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("the kernel gives no random numbers: {error}"))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Which plain port is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortWish {
    /// The operator's word; 0 for any.
    pub(super) fixed: u16,
    /// The one that peers of resumed links send to.
    pub(super) before: Option<u16>,
}

impl PortWish {
    /// The port to try first.
    pub(super) fn favourite(self) -> Option<u16> {
        self.before.filter(|_| self.fixed == 0)
    }
}

/// Binds the two UDP ports; the plain socket gets any port where a VXLAN device holds the one peers know.
pub(super) fn bind_ports(config: &DaemonConfig, wish: PortWish, held: Option<u16>) -> anyhow::Result<Ports> {
    let bind = |kind, port: u16, option| {
        UdpPort::bind(kind, port)
            .with_context(|| format!("cannot bind UDP port {port}: choose another with {option}, or 0 for any"))
    };
    let secured = bind(PortKind::Secured, config.secured_port, "--secured-port")?;
    let plain = if held.is_some() {
        bind(PortKind::Plain, 0, "--plain-port")?
    } else if let Some(plain) = wish.favourite().and_then(|port| UdpPort::bind(PortKind::Plain, port).ok()) {
        plain
    } else {
        bind(PortKind::Plain, wish.fixed, "--plain-port")?
    };
    Ok(Ports { secured, plain })
}

/// The engines' figures, as the node asks for them.
pub(super) struct EngineTraffic<'a> {
    pub(super) engine: &'a Engine,
    pub(super) fast_path: &'a FastPath,
}

impl TrafficSource for EngineTraffic<'_> {
    fn traffic(&self, link: LinkId) -> Traffic {
        let Traffic { sent_bytes, received_bytes, sent_frames, received_frames, dropped } =
            self.engine.traffic(link).unwrap_or_default();
        let kernel = self.fast_path.forwarder().map_or_else(Traffic::default, |forwarder| forwarder.traffic(link));
        Traffic {
            sent_bytes: sent_bytes + kernel.sent_bytes,
            received_bytes: received_bytes + kernel.received_bytes,
            sent_frames: sent_frames + kernel.sent_frames,
            received_frames: received_frames + kernel.received_frames,
            dropped: dropped + kernel.dropped,
        }
    }

    fn engine(&self, link: LinkId) -> &'static str {
        let is_in_kernel = self.fast_path.forwarder().is_some_and(|forwarder| forwarder.is_installed(link));
        if is_in_kernel { "kernel" } else { "user" }
    }
}

impl Daemon {
    /// `set_local_ip`: the first one wins; nothing is kept when it fails. One that says other than a resumed one did begins
    /// afresh.
    pub(super) async fn set_local(&mut self, local: LocalIp) -> Answer {
        match self.node.confirm_local(&local) {
            Confirmation::Same => return Answer::Done,
            Confirmation::Settled if self.node.has_local() => {
                return Answer::Kept("the node has its identity; the first set_local_ip wins");
            }
            Confirmation::Settled => {}
            Confirmation::Other(before) => {
                if let Err(reason) = self.leave_local(&before).await {
                    return Answer::Refused(reason);
                }
            }
        }
        match self.adopt_local(&local).await {
            Ok(fingerprint) => self.node.set_local(local, fingerprint),
            Err(reason) => return Answer::Refused(reason),
        }
        Answer::Done
    }

    /// What `set_local_ip` does to the host: the certificate, the TAP's addresses, the engines. The own fingerprint, or why
    /// it cannot be.
    pub(super) async fn adopt_local(&mut self, local: &LocalIp) -> Result<Fingerprint, String> {
        let identity = if self.config.fresh_certificate {
            Identity::create(local.uid)
        } else {
            Identity::load_or_create(&self.config.state_dir, local.uid)
        };
        let identity = identity.map_err(|error| error.to_string())?;
        let (tap, mtu) = (&self.config.tap, u32::from(self.config.mtu));
        self.netlink
            .configure_tap(tap, local.ip4, local.ip4_mask, local.ip6, local.ip6_mask, mtu)
            .await
            .map_err(|error| format!("cannot configure {tap}: {error:#}"))?;
        let addresses = Local {
            uid: local.uid,
            ip4: local.ip4,
            ip4_prefix: local.ip4_mask,
            ip6: local.ip6,
            router_prefix: local.subnet_mask,
        };
        self.engine.command(Command::SetLocal(addresses));
        self.fast_path.set_local(addresses);
        let fingerprint = identity.fingerprint(self.config.fingerprint);
        self.identity = Some(identity);
        Ok(fingerprint)
    }

    /// Takes back a resumed identity: its links, its peers, its addresses.
    async fn leave_local(&mut self, local: &LocalIp) -> Result<(), String> {
        tracing::info!("the controller names another node than the one that was resumed: its links are taken down");
        self.node.forget_local();
        self.carry_out_all();
        let tap = &self.config.tap;
        for (address, prefix) in [(local.ip4.into(), local.ip4_mask), (local.ip6.into(), local.ip6_mask)] {
            let removed = self.netlink.remove_address(tap, address, prefix).await;
            removed.map_err(|error| format!("cannot configure {tap}: {error:#}"))?;
        }
        Ok(())
    }

    /// `set_cb_endpoint`: an unspecified address means the sender (this host, over the Unix socket), and other hosts need
    /// the operator's consent.
    pub(super) fn set_callback(&mut self, sender: Option<SocketAddr>, ip: &str, port: u16) -> Answer {
        let given: Option<IpAddr> = match ip {
            "" => None,
            text => match text.parse::<IpAddr>() {
                Ok(ip) if ip.is_unspecified() => None,
                Ok(ip) => Some(ip.to_canonical()),
                Err(_) => return Answer::Refused(format!("ip is not an IP address: {text:?}")),
            },
        };
        let endpoint = match (given, sender) {
            (Some(ip), _) => SocketAddr::new(ip, port),
            (None, Some(sender)) => sender,
            (None, None) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
        };
        if endpoint.port() == 0 {
            return Answer::Refused("port must be 1 to 65535".to_owned());
        }
        if !endpoint.ip().is_loopback() && !self.config.allow_remote_controller {
            return Answer::Refused(format!(
                "{endpoint} is not on this host: start the daemon with --allow-remote-controller to allow it"
            ));
        }
        self.callback = Some(endpoint);
        Answer::Done
    }

    /// The plain port as peers know it.
    pub(super) fn plain_port(&self) -> u16 {
        self.fast_path.held_port().unwrap_or_else(|| self.ports.plain.local_port())
    }

    /// What this daemon uses of its host, for `status`.
    pub(super) fn host_state(&self) -> HostState {
        HostState {
            tap: self.config.tap.clone(),
            secured_port: self.ports.secured.local_port(),
            plain_port: self.plain_port(),
            fast_path: self.fast_path.describe(),
            service: self.node.service_state().to_string(),
        }
    }

    /// Every counter of the daemon by name, for `status`.
    pub(super) fn all_counters(&self) -> Vec<(String, u64)> {
        let LoopCounters { unrouted_without_controller, notifications_without_controller, undelivered_signals } =
            &self.counters;
        let mut all: Vec<(String, u64)> = vec![
            ("unrouted_without_controller".to_owned(), *unrouted_without_controller),
            ("notifications_without_controller".to_owned(), *notifications_without_controller),
            ("undelivered_signals".to_owned(), *undelivered_signals),
        ];
        all.extend(self.engine.counters().into_iter().map(|(name, count)| (name.to_owned(), count)));
        all.extend(self.udp.counters().into_iter().map(|(name, count)| (format!("rpc_{name}"), count)));
        all.extend(self.xmpp.counters().into_iter().map(|(name, count)| (format!("xmpp_{name}"), count)));
        all.extend(self.fast_path.counters());
        all
    }
}
