//! ICE (RFC 8445): one agent per link and generation, gathering, checks, consent.
//!
//! ```text
//!   IceCommand, datagrams      +------ core (pure) -------+     StartAgent, Deliver     +-- agent (webrtc-ice) --+
//!  --------------------------> | links, generations,      | --------------------------> | pairs, checks,         |
//!   IceEvent, Transmit         | paths, consent, gather,  | <-------------------------- | nominates, in a world  |
//!  <-------------------------- | turn, reflexive          |     Sent, Selected          | of made-up addresses   |
//!                              +--------------------------+                             +------------------------+
//! ```
//!
//! This file owns the words of the edge, the task and the look-ups. It owns no socket: datagrams come in through
//! [`IceEdge::handle_datagram`] and go out through [`Transmit`].

mod agent;
mod consent;
mod core;
mod credentials;
mod gather;
mod generation;
pub mod message;
mod paths;
mod reflexive;
mod turn;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::dataplane::Transmit;
use crate::edge::ice::agent::{AgentId, AgentOutput, RunningAgent};
use crate::edge::ice::core::{Core, CoreConfig, Output};
use crate::edge::ice::gather::{HostAddress, Survey, SurveyRequest};
use crate::edge::ice::message::looks_like_stun;
pub use crate::edge::ice::turn::{TurnClient, TurnEvent};
use crate::edge::netlink::Netlink;
use crate::ice::{IceCommand, IceEvent};
use crate::link::{FlowKey, LinkId};

/// Pauses before the interfaces are looked at again.
const SECOND_LOOKS: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(80)];

/// Datagrams waiting for the edge: some 20 ms of a flood that the edge keeps up with.
const DATAGRAM_QUEUE: usize = 4096;
/// Messages of agents waiting for the edge.
const AGENT_QUEUE: usize = 4096;
/// A name that is not resolved within this leaves no time to ask the server.
const LOOKUP_PATIENCE: Duration = Duration::from_millis(1200);
/// The port of a server named without one (RFC 8489 section 18.4).
const STUN_PORT: u16 = 3478;

/// What the ICE edge is made with.
pub struct IceConfig {
    /// Our TAP, whose addresses are never offered.
    pub tap_name: String,
    pub netlink: Netlink,
    /// The sockets of both ports.
    pub transmit: Arc<dyn Transmit>,
    /// Port numbers as peers know them.
    pub secured_port: u16,
    pub plain_port: u16,
    /// The number the plain socket itself has, where that is another.
    pub direct_plain_port: Option<u16>,
    /// How long frames hold a plain link whose checks are not answered.
    pub lease: Duration,
}

/// The running ICE edge; it ends when this is dropped.
pub struct IceEdge {
    commands: mpsc::UnboundedSender<IceCommand>,
    datagrams: mpsc::Sender<(FlowKey, Option<IpAddr>, Vec<u8>)>,
}

impl IceEdge {
    /// Starts the edge on the current tokio runtime.
    pub fn start(config: IceConfig, events: mpsc::Sender<IceEvent>) -> Self {
        let IceConfig { tap_name, netlink, transmit, secured_port, plain_port, direct_plain_port, lease } = config;
        let core = Core::new(CoreConfig { tap_name, secured_port, plain_port, direct_plain_port, lease });
        Self::launch(core, Interfaces::Kernel(netlink), transmit, events)
    }

    /// Takes a command; what comes of it is told in events.
    pub fn command(&self, command: IceCommand) {
        // Fails only when the edge's task is gone, with the runtime.
        let _ = self.commands.send(command);
    }

    /// Takes a datagram that may be STUN or TURN; anything else is dropped, as is what exceeds the queue.
    pub fn handle_datagram(&self, flow: FlowKey, to: Option<IpAddr>, payload: Vec<u8>) {
        if looks_like_stun(&payload) && self.datagrams.try_send((flow, to, payload)).is_err() {
            tracing::trace!("more STUN than can be handled; a datagram is lost");
        }
    }

    fn launch(core: Core, interfaces: Interfaces, transmit: Arc<dyn Transmit>, events: mpsc::Sender<IceEvent>) -> Self {
        let (commands, command_queue) = mpsc::unbounded_channel();
        let (datagrams, datagram_queue) = mpsc::channel(DATAGRAM_QUEUE);
        let (agent_outputs, agent_queue) = mpsc::channel(AGENT_QUEUE);
        let (surveys, survey_queue) = mpsc::unbounded_channel();
        let inputs =
            Inputs { commands: command_queue, datagrams: datagram_queue, agents: agent_queue, surveys: survey_queue };
        let hands = Hands { interfaces, transmit, events, agent_outputs, surveys, agents: HashMap::new() };
        tokio::spawn(run(core, inputs, hands));
        Self { commands, datagrams }
    }
}

/// Where interface addresses come from.
#[derive(Clone)]
enum Interfaces {
    Kernel(Netlink),
    /// A list that stays as it is, so that tests can offer loopback.
    #[cfg(test)]
    Fixed(Vec<HostAddress>),
}

struct Inputs {
    commands: mpsc::UnboundedReceiver<IceCommand>,
    datagrams: mpsc::Receiver<(FlowKey, Option<IpAddr>, Vec<u8>)>,
    agents: mpsc::Receiver<AgentOutput>,
    surveys: mpsc::UnboundedReceiver<(LinkId, Survey)>,
}

/// What carries the core's outputs out.
struct Hands {
    interfaces: Interfaces,
    transmit: Arc<dyn Transmit>,
    events: mpsc::Sender<IceEvent>,
    agent_outputs: mpsc::Sender<AgentOutput>,
    surveys: mpsc::UnboundedSender<(LinkId, Survey)>,
    agents: HashMap<AgentId, RunningAgent>,
}

async fn run(mut core: Core, mut inputs: Inputs, mut hands: Hands) {
    loop {
        let deadline = core.deadline().map(tokio::time::Instant::from_std);
        let wake = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            command = inputs.commands.recv() => match command {
                Some(command) => core.handle_command(now(), command),
                None => return,
            },
            Some((link, survey)) = inputs.surveys.recv() => core.handle_survey(now(), link, survey),
            Some(output) = inputs.agents.recv() => core.handle_agent(now(), output),
            Some((flow, to, payload)) = inputs.datagrams.recv() => {
                core.handle_datagram(now(), flow, to, &payload);
            }
            () = wake => core.handle_timeout(now()),
        }
        while let Some(output) = core.poll_output() {
            hands.carry_out(output).await;
        }
    }
}

impl Hands {
    async fn carry_out(&mut self, output: Output) {
        match output {
            // Fails only when nobody listens any more.
            Output::Event(event) => drop(self.events.send(event).await),
            Output::Transmit { port, path, datagram } => self.transmit.transmit(port, &path, &datagram),
            Output::Survey(request) => {
                let (interfaces, surveys) = (self.interfaces.clone(), self.surveys.clone());
                tokio::spawn(async move {
                    let link = request.link;
                    // Fails only when the edge is gone.
                    let _ = surveys.send((link, survey(&interfaces, request).await));
                });
            }
            Output::StartAgent(setup) => {
                let id = setup.agent;
                self.agents.insert(id, RunningAgent::start(setup, self.agent_outputs.clone()));
            }
            Output::Deliver { agent, handle, datagram } => {
                if let Some(agent) = self.agents.get(&agent) {
                    agent.deliver(datagram, handle);
                }
            }
            Output::AddRemote { agent, remote } => {
                if let Some(agent) = self.agents.get(&agent) {
                    agent.add_remote(remote);
                }
            }
            Output::StopAgent(agent) => drop(self.agents.remove(&agent)),
        }
    }
}

/// Looks up interfaces and server names, all at once.
async fn survey(interfaces: &Interfaces, request: SurveyRequest) -> Survey {
    let SurveyRequest { link: _, stun, turn } = request;
    let (hosts, stun, turn) = tokio::join!(find_interfaces(interfaces), resolve("STUN", stun), resolve("TURN", turn));
    let mut survey = Survey::default();
    match hosts {
        Ok(hosts) => survey.hosts = hosts,
        Err(error) => survey.problems.push(format!("the interfaces could not be listed: {error:#}")),
    }
    for (result, target) in [(stun, &mut survey.stun), (turn, &mut survey.turn)] {
        match result {
            Ok(addresses) => *target = addresses,
            Err(problem) => survey.problems.push(problem),
        }
    }
    survey
}

/// A host without any address may just be changing them: it is looked at again after a moment.
async fn find_interfaces(interfaces: &Interfaces) -> anyhow::Result<Vec<HostAddress>> {
    for pause in SECOND_LOOKS {
        match list_interfaces(interfaces).await {
            Ok(hosts) if !hosts.is_empty() => return Ok(hosts),
            Ok(_) => tracing::debug!("no usable address; looking again"),
            Err(error) => tracing::info!("the interfaces could not be listed, trying again: {error:#}"),
        }
        tokio::time::sleep(pause).await;
    }
    list_interfaces(interfaces).await
}

async fn list_interfaces(interfaces: &Interfaces) -> anyhow::Result<Vec<HostAddress>> {
    match interfaces {
        Interfaces::Kernel(netlink) => {
            let all = netlink.underlay_addresses().await?;
            Ok(all
                .into_iter()
                .map(|address| HostAddress { interface: address.interface, addr: address.addr })
                .collect())
        }
        #[cfg(test)]
        Interfaces::Fixed(hosts) => Ok(hosts.clone()),
    }
}

/// Addresses of a server; `Err` is a sentence for a person.
pub async fn resolve(kind: &str, name: Option<String>) -> Result<Vec<SocketAddr>, String> {
    let Some(name) = name else { return Ok(Vec::new()) };
    let with_port = if name.contains(':') { name.clone() } else { format!("{name}:{STUN_PORT}") };
    match tokio::time::timeout(LOOKUP_PATIENCE, tokio::net::lookup_host(with_port)).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(error)) => Err(format!("{kind} server {name}: its name could not be resolved ({error})")),
        Err(_) => Err(format!("{kind} server {name}: its name was not resolved in time")),
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
