//! What the daemon does to its host: identity, TAP addresses, the callback endpoint, the kernel engine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::Context;
use tincan_common::counters::{FrameKind, Tally};

use crate::config::FastPath;
use crate::daemon::Daemon;
use crate::dataplane::Command;
use crate::dataplane::engine::Engine;
use crate::dataplane::kernel::KernelEngine;
use crate::dataplane::table::Local;
use crate::dtls::Identity;
use crate::link::{LinkId, Traffic};
use crate::node::TrafficSource;
use crate::wire::answer::Answer;
use crate::wire::request::LocalIp;
use crate::wire::state::HostState;

/// What the loop itself had to leave undone.
#[derive(Debug, Default)]
pub(super) struct LoopCounters {
    pub(super) unrouted_without_controller: u64,
    pub(super) notifications_without_controller: u64,
    pub(super) undelivered_signals: u64,
}

/// Whether kernel programs are loaded, and why not.
pub(super) enum FastPathState {
    /// Attached to the TAP; detached when dropped.
    Attached(KernelEngine),
    /// The operator switched it off.
    Off,
    /// Asked for, but this host does not allow it.
    Unavailable(String),
}

impl FastPathState {
    /// One phrase for the log and `status`.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Attached(_) => "attached".to_owned(),
            Self::Off => "off".to_owned(),
            Self::Unavailable(reason) => format!("unavailable: {reason}"),
        }
    }

    fn counters(&self) -> Vec<(String, u64)> {
        match self {
            Self::Attached(engine) => {
                let tallies = engine.counters().unwrap_or_default();
                let named = |(kind, tally): (FrameKind, Tally)| {
                    let name = kind.name();
                    [(format!("kernel_{name}_frames"), tally.frames), (format!("kernel_{name}_bytes"), tally.bytes)]
                };
                tallies.into_iter().flat_map(named).collect()
            }
            Self::Off | Self::Unavailable(_) => Vec::new(),
        }
    }
}

/// Loads the kernel programs as the option says; only `on` makes a refusal an error.
pub(super) fn start_fast_path(wanted: FastPath, tap: &str) -> anyhow::Result<FastPathState> {
    if wanted == FastPath::Off {
        return Ok(FastPathState::Off);
    }
    let attached = KernelEngine::load().and_then(|mut engine| engine.attach(tap).map(|()| engine));
    match attached {
        Ok(engine) => Ok(FastPathState::Attached(engine)),
        Err(error) if wanted == FastPath::On => {
            Err(error.context("the kernel engine was asked for (--fast-path on) and cannot run; use auto or off"))
        }
        Err(error) => {
            tracing::warn!("the kernel engine cannot run, user space carries everything: {error:#}");
            Ok(FastPathState::Unavailable(format!("{error:#}")))
        }
    }
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

/// The engine's figures, as the node asks for them.
pub(super) struct EngineTraffic<'a> {
    pub(super) engine: &'a Engine,
}

impl TrafficSource for EngineTraffic<'_> {
    fn traffic(&self, link: LinkId) -> Traffic {
        self.engine.traffic(link).unwrap_or_default()
    }

    fn engine(&self, _link: LinkId) -> &'static str {
        "user"
    }
}

impl Daemon {
    /// `set_local_ip`: the certificate, the TAP's addresses, then the node; nothing is kept when one of them fails.
    pub(super) async fn set_local(&mut self, local: LocalIp) -> Answer {
        if self.node.has_local() {
            return Answer::Kept("the node has its identity; the first set_local_ip wins");
        }
        let identity = if self.config.fresh_certificate {
            Identity::create(local.uid)
        } else {
            Identity::load_or_create(&self.config.state_dir, local.uid)
        };
        let identity = match identity {
            Ok(identity) => identity,
            Err(error) => return Answer::Refused(error.to_string()),
        };
        let configured = self
            .netlink
            .configure_tap(
                &self.config.tap,
                local.ip4,
                local.ip4_mask,
                local.ip6,
                local.ip6_mask,
                u32::from(self.config.mtu),
            )
            .await;
        if let Err(error) = configured {
            return Answer::Refused(format!("cannot configure {}: {error:#}", self.config.tap));
        }
        self.engine.command(Command::SetLocal(Local {
            uid: local.uid,
            ip4: local.ip4,
            ip4_prefix: local.ip4_mask,
            ip6: local.ip6,
            router_prefix: local.subnet_mask,
        }));
        self.node.set_local(local, identity.fingerprint(self.config.fingerprint));
        self.identity = Some(identity);
        Answer::Done
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

    /// What this daemon uses of its host, for `status`.
    pub(super) fn host_state(&self) -> HostState {
        HostState {
            tap: self.config.tap.clone(),
            secured_port: self.ports.secured.local_port(),
            plain_port: self.ports.plain.local_port(),
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
