//! The daemon's loop: the one place that knows both the node and the edges.
//!
//! Everything that happens arrives in one `select!`, is handed to the node, and what the node wants is carried out
//! before the next thing happens.

mod fast_path;
mod host;
mod liveness;
mod merging;
mod merging_veth;
mod outputs;
mod predecessor;
mod resume;
mod underlay;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::config::{DaemonConfig, LogControl};
use crate::daemon::fast_path::FastPath;
use crate::daemon::host::PortWish;
use crate::daemon::liveness::Liveness;
use crate::daemon::predecessor::Predecessor;
use crate::daemon::resume::{Found, Keeper};
use crate::daemon::underlay::Underlay;
use crate::dataplane::engine::{Engine, EngineConfig};
use crate::dataplane::port::Ports;
use crate::dataplane::{Command, EngineEvent};
use crate::dtls::Identity;
use crate::edge::ice::{IceConfig, IceEdge};
use crate::edge::netlink::Netlink;
use crate::edge::rpc::admission::Admission;
use crate::edge::rpc::udp::{UdpDoor, UdpInput};
use crate::edge::rpc::unix::{Reply, UnixCall, UnixDoor};
use crate::edge::xmpp::{XmppEdge, XmppEvent, XmppOptions};
use crate::ice::IceEvent;
use crate::node::{Node, ServiceState};
use crate::wire::answer::Answer;
use crate::wire::json_rpc::RpcMethod;
use crate::wire::request::Request;

/// Events that may wait between an edge and the loop; beyond it the sender counts a drop.
const EVENT_QUEUE: usize = 4096;

/// Events taken in one go before other inputs get their turn.
const EVENT_BURST: usize = 64;

/// A running daemon.
struct Daemon {
    config: DaemonConfig,
    log: LogControl,
    node: Node,
    engine: Engine,
    ice: IceEdge,
    netlink: Netlink,
    xmpp: XmppEdge,
    udp: UdpDoor,
    ports: Arc<Ports>,
    unix: UnixDoor,
    mac: [u8; 6],
    identity: Option<Identity>,
    /// Where notifications go (`set_cb_endpoint`).
    callback: Option<SocketAddr>,
    fast_path: FastPath,
    underlay: Underlay,
    liveness: Liveness,
    keeper: Keeper,
    counters: host::LoopCounters,
}

/// Runs until SIGTERM or SIGINT, then takes everything down.
pub async fn run(config: DaemonConfig, log: LogControl) -> anyhow::Result<()> {
    let (engine_events, mut engine_inbox) = mpsc::channel(EVENT_QUEUE);
    let (ice_events, mut ice_inbox) = mpsc::channel(EVENT_QUEUE);
    let (xmpp_events, mut xmpp_inbox) = mpsc::channel(EVENT_QUEUE);
    let (mut daemon, found) = Daemon::start(config, log, engine_events, ice_events, xmpp_events).await?;
    if let Some(found) = found {
        daemon.resume(found).await;
    }
    daemon.announce();
    let result = daemon.serve(&mut engine_inbox, &mut ice_inbox, &mut xmpp_inbox).await;
    // Who waits for room in these gets an error instead, and can end.
    drop((engine_inbox, ice_inbox, xmpp_inbox));
    daemon.stop().await;
    result
}

async fn wait_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Daemon {
    /// Opens every resource, in the order in which a failure is cheapest to report. Beside it, what a killed daemon left.
    async fn start(
        config: DaemonConfig,
        log: LogControl,
        engine_events: mpsc::Sender<EngineEvent>,
        ice_events: mpsc::Sender<IceEvent>,
        xmpp_events: mpsc::Sender<XmppEvent>,
    ) -> anyhow::Result<(Self, Option<Found>)> {
        let xmpp_options = XmppOptions {
            ca_file: config.xmpp_ca.clone(),
            pinned: config.xmpp_pin,
            direct_tls: config.xmpp_direct_tls,
        };
        xmpp_options.check().context("--xmpp-ca")?;
        host::prepare_state_dir(&config.state_dir)?;
        let unix = UnixDoor::bind(&config.socket)?;
        let udp = UdpDoor::bind(&config.rpc_addresses, config.rpc_port, Admission::new(config.rpc_group))?;
        let netlink = Netlink::new()?;
        let predecessor = Predecessor::look(&config.tap);
        let tap = predecessor.tap(&config.tap)?;
        let mac = tap.mac();
        let found = resume::find(&config);
        let port_before = found.as_ref().map(Found::plain_port).or_else(|| predecessor.plain_port());
        let wish = PortWish { fixed: config.plain_port, before: port_before };
        let mut fast_path = FastPath::start(&config, &netlink, &predecessor, &tap, wish).await?;
        let held = fast_path.held_port();
        let ports = host::bind_ports(&config, wish, held).map(Arc::new)?;
        let socket = ports.plain.local_port();
        fast_path.open(&netlink, socket).await;
        let ice = IceEdge::start(
            IceConfig {
                tap_name: config.tap.clone(),
                netlink: netlink.clone(),
                transmit: ports.clone(),
                secured_port: ports.secured.local_port(),
                plain_port: held.unwrap_or(socket),
                direct_plain_port: held.and(Some(socket)),
                lease: config.lease,
            },
            ice_events,
        );
        let engine = Engine::start(EngineConfig { tap, ports: ports.clone() }, engine_events)?;
        let node = Node::new(host::random_seed()?);
        let xmpp = XmppEdge::start(xmpp_options, xmpp_events);
        let keeper = Keeper::start(&config)?;
        let daemon = Self {
            config,
            log,
            node,
            engine,
            ice,
            netlink,
            xmpp,
            udp,
            ports,
            unix,
            mac,
            identity: None,
            callback: None,
            fast_path,
            underlay: Underlay::default(),
            liveness: Liveness::default(),
            keeper,
            counters: host::LoopCounters::default(),
        };
        Ok((daemon, found))
    }

    /// Until a signal, or until a part of the daemon failed.
    async fn serve(
        &mut self,
        engine_inbox: &mut mpsc::Receiver<EngineEvent>,
        ice_inbox: &mut mpsc::Receiver<IceEvent>,
        xmpp_inbox: &mut mpsc::Receiver<XmppEvent>,
    ) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
        let mut recheck = tokio::time::interval(underlay::RECHECK);
        recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = self.node.poll_timeout().map(tokio::time::Instant::from_std);
            let snapshot_due = self.keeper.deadline().map(tokio::time::Instant::from_std);
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                input = self.udp.recv() => self.handle_udp(input).await,
                call = self.unix.recv() => self.handle_unix(call).await,
                event = engine_inbox.recv() => {
                    self.handle_engine(event.context("the data plane is gone; its last words are in the log")?)?;
                    for _ in 0..EVENT_BURST {
                        let Ok(event) = engine_inbox.try_recv() else { break };
                        self.handle_engine(event)?;
                    }
                }
                event = ice_inbox.recv() => {
                    let event = event.context("the ICE task is gone; its last words are in the log")?;
                    self.node.handle_ice(Instant::now(), event);
                }
                event = xmpp_inbox.recv() => {
                    self.handle_xmpp(event.context("the XMPP session is gone; its last words are in the log")?);
                }
                _ = recheck.tick() => {
                    self.fast_path.recheck(&self.netlink).await;
                    self.underlay.recheck();
                    self.tell_traffic();
                }
                // More than fit in one go; other inputs had their turn.
                () = std::future::ready(()), if self.underlay.is_due() => {}
                () = wait_until(snapshot_due) => {}
                () = wait_until(deadline) => self.node.handle_timeout(Instant::now()),
            }
            self.carry_out_all();
            self.settle_underlay().await;
            self.keep_snapshot();
        }
    }

    fn announce(&self) {
        tracing::info!(
            tap = self.config.tap,
            rpc_port = self.config.rpc_port,
            socket = %self.config.socket.display(),
            fast_path = self.fast_path.describe(),
            "tincan is ready for its controller"
        );
    }

    async fn handle_udp(&mut self, input: UdpInput) {
        match input {
            UdpInput::Call { from, request } => {
                let answer = self.handle_request(Some(from), request).await;
                self.udp.answer(from, &answer);
            }
            UdpInput::Frame { packet } => self.engine.command(Command::Inject { frame: packet.frame }),
        }
    }

    async fn handle_unix(&mut self, call: UnixCall) {
        let reply = match call.method.clone() {
            RpcMethod::Node(request) => Reply::Answer(self.handle_request(None, request).await),
            RpcMethod::Status => match self.ask_node(Request::GetState { uid: None, stats: true }) {
                Answer::State(state) => Reply::Status { state, host: self.host_state(), counters: self.all_counters() },
                other @ (Answer::Done | Answer::Kept(_) | Answer::Echo(_) | Answer::Refused(_)) => Reply::Answer(other),
            },
            RpcMethod::Counters => Reply::Counters(self.all_counters()),
        };
        call.reply(reply);
    }

    /// Carries out a call; what it changed reaches the edges before its caller hears of it.
    async fn handle_request(&mut self, sender: Option<SocketAddr>, request: Request) -> Answer {
        if !matches!(request, Request::GetState { .. }) {
            self.keeper.changed();
        }
        let answer = if let Request::SetLocalIp(local) = request {
            self.set_local(local).await
        } else if let Request::SetCallbackEndpoint { ip, port } = &request {
            self.set_callback(sender, ip, *port)
        } else {
            self.ask_node(request)
        };
        self.carry_out_all();
        answer
    }

    fn ask_node(&mut self, request: Request) -> Answer {
        let source = host::EngineTraffic { engine: &self.engine, fast_path: &self.fast_path };
        match self.node.handle_request(Instant::now(), request, &source) {
            Answer::State(mut state) => {
                state.local.mac = self.mac;
                Answer::State(state)
            }
            answer @ (Answer::Done | Answer::Kept(_) | Answer::Echo(_) | Answer::Refused(_)) => answer,
        }
    }

    fn handle_engine(&mut self, event: EngineEvent) -> anyhow::Result<()> {
        let now = Instant::now();
        match event {
            EngineEvent::Control { flow, to, payload } => self.ice.handle_datagram(flow, to, payload),
            EngineEvent::Established { link } => tracing::debug!(%link, "DTLS handshake done"),
            EngineEvent::Authenticated { link } => self.node.handle_authenticated(now, link),
            EngineEvent::SessionTimedOut { link } => {
                tracing::info!(%link, "the DTLS handshake came to nothing; it is tried anew when there is a path");
                self.node.handle_session_timed_out(link);
            }
            EngineEvent::SessionEnded { link, reason } => {
                tracing::info!(%link, reason, "secured session ended");
                self.node.handle_session_ended(now, link, reason);
            }
            EngineEvent::Unrouted { source, destination, frame } => match self.callback {
                Some(callback) => self.udp.forward(callback, source, destination, &frame),
                None => self.counters.unrouted_without_controller += 1,
            },
            EngineEvent::Failed { reason } => anyhow::bail!("the data plane stopped: {reason}"),
        }
        Ok(())
    }

    fn handle_xmpp(&mut self, event: XmppEvent) {
        match event {
            XmppEvent::Online { jid } => {
                tracing::info!(jid, "logged in at the XMPP service");
                self.node.handle_service_state(ServiceState::Online { jid });
            }
            XmppEvent::Offline { reason } => {
                tracing::info!(reason, "not at the XMPP service; links do not need it, the login is tried again");
                self.node.handle_service_state(ServiceState::Offline { reason });
            }
            XmppEvent::Refused { reason } => {
                tracing::warn!(reason, "the XMPP login was refused");
                self.node.handle_service_state(ServiceState::Offline { reason });
            }
            XmppEvent::Present { uid, jid: _ } => self.node.handle_presence(Instant::now(), uid),
            XmppEvent::Gone { uid } => self.node.handle_absence(uid),
            XmppEvent::Message { from, kind, data } => self.node.handle_message(from, kind, data),
            XmppEvent::Undelivered { to, kind, reason } => {
                self.counters.undelivered_signals += 1;
                tracing::info!(%to, kind, reason, "a message to a peer was not delivered");
                self.node.handle_undelivered(to, &kind);
            }
        }
    }

    async fn stop(mut self) {
        tracing::info!("stopping");
        let stay = self.config.keep_links && self.fast_path.leave();
        if stay {
            tracing::info!(lease_s = self.config.lease.as_secs(), "plain links in the kernel go on for the lease");
        }
        self.end_snapshot(stay);
        self.node.trim_all();
        self.carry_out_all();
        self.fast_path.stop(&self.netlink).await;
    }
}
