//! One webrtc-ice agent in a world of its own: one local address, remote addresses that are handles of paths.
//!
//! The agent pairs, checks and nominates. It never sees a socket or an interface: what it sends comes out as
//! [`AgentOutput::Sent`], what is delivered to it was translated before. Liveness after the selection, round trips and
//! pacing are not its business (see `consent` and `generation`), so its own timeouts are switched off. The crate logs
//! the remote password through `log`, which nothing of ours listens to.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, mpsc};
use webrtc_ice::agent::Agent;
use webrtc_ice::agent::agent_config::AgentConfig;
use webrtc_ice::candidate::CandidateType;
use webrtc_ice::candidate::candidate_base::CandidateBaseConfig;
use webrtc_ice::candidate::candidate_host::CandidateHostConfig;
use webrtc_ice::mdns::MulticastDnsMode;
use webrtc_ice::network_type::NetworkType;
use webrtc_ice::udp_mux::UDPMux;
use webrtc_ice::udp_network::UDPNetwork;
use webrtc_util::vnet::interface::Interface;
use webrtc_util::vnet::net::Net;
use webrtc_util::{Conn, Error as UtilError};

use crate::edge::ice::credentials::Credentials;
use crate::link::{LinkId, Role};

/// The agent's only local address; of no meaning.
const LOCAL: (Ipv4Addr, u16) = (Ipv4Addr::new(240, 1, 0, 1), 1);
/// The crate ends checking after this; when to give up is decided elsewhere. Far longer than any step of the wall clock
/// it measures with.
const NEVER: Duration = Duration::from_secs(1000 * 365 * 24 * 3600);
/// Datagrams kept for a busy agent.
const INBOX: usize = 64;

/// Names one agent for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentId(pub u64);

/// A peer address for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    pub handle: SocketAddr,
    pub priority: u32,
}

/// All an agent begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    pub link: LinkId,
    pub agent: AgentId,
    pub role: Role,
    pub local: Credentials,
    pub remote: Credentials,
    pub remotes: Vec<Remote>,
    /// Pause between rounds of checks while no pair is selected; at most 200 ms, which the crate takes for more. Rounds
    /// are thinned out per path as time goes by.
    pub check_interval: Duration,
}

/// What an agent does.
#[derive(Debug)]
pub enum AgentOutput {
    /// It sends a STUN message to a handle.
    Sent { link: LinkId, agent: AgentId, handle: SocketAddr, datagram: Vec<u8> },
    /// It selected the pair with this handle.
    Selected { link: LinkId, agent: AgentId, handle: SocketAddr },
}

/// A running agent; it ends when this is dropped.
#[derive(Debug)]
pub struct RunningAgent {
    inbox: mpsc::Sender<(Vec<u8>, SocketAddr)>,
    /// Its end stops the agent's task.
    remotes: mpsc::UnboundedSender<Remote>,
}

impl RunningAgent {
    /// Starts an agent that begins its checks at once; what it does comes out of `outputs`.
    pub fn start(setup: Setup, outputs: mpsc::Sender<AgentOutput>) -> Self {
        let (inbox, arrived) = mpsc::channel(INBOX);
        let (remotes, more) = mpsc::unbounded_channel();
        let conn = AgentConn { link: setup.link, agent: setup.agent, arrived: Mutex::new(arrived), outputs };
        tokio::spawn(async move {
            if let Err(error) = run(setup, Arc::new(conn), more).await {
                tracing::warn!(%error, "an ICE agent could not be run");
            }
        });
        Self { inbox, remotes }
    }

    /// Hands the agent a STUN message; it is lost when the agent is far behind.
    pub fn deliver(&self, datagram: Vec<u8>, handle: SocketAddr) {
        if self.inbox.try_send((datagram, handle)).is_err() {
            tracing::debug!("an ICE agent does not keep up; a check is lost");
        }
    }

    /// Gives the agent one more address to try.
    pub fn add_remote(&self, remote: Remote) {
        // It fails only when the agent's task ended, which is no news.
        let _ = self.remotes.send(remote);
    }
}

async fn run(setup: Setup, conn: Arc<AgentConn>, mut more: mpsc::UnboundedReceiver<Remote>) -> anyhow::Result<()> {
    let agent = Agent::new(config(&setup, &conn)?).await?;
    let result = check(&agent, &setup, &conn, &mut more).await;
    agent.close().await?;
    result
}

/// Runs until nobody can add remotes any more.
async fn check(
    agent: &Agent,
    setup: &Setup,
    conn: &AgentConn,
    more: &mut mpsc::UnboundedReceiver<Remote>,
) -> anyhow::Result<()> {
    gather(agent).await?;
    for remote in &setup.remotes {
        add(agent, *remote)?;
    }
    let Credentials { ufrag, pwd } = setup.remote.clone();
    // Cancelling is done by dropping the future.
    let (_never, cancel) = mpsc::channel(1);
    let selected = async {
        match setup.role {
            Role::Controlling => agent.dial(cancel, ufrag, pwd).await.map(|_| ()),
            Role::Controlled => agent.accept(cancel, ufrag, pwd).await.map(|_| ()),
        }
    };
    tokio::pin!(selected);
    let mut is_selected = false;
    loop {
        tokio::select! {
            result = &mut selected, if !is_selected => {
                result?;
                is_selected = true;
                let Some(pair) = agent.get_selected_candidate_pair() else { continue };
                let (link, agent) = (setup.link, setup.agent);
                // Fails only when the edge as a whole is gone.
                let _ = conn.outputs.send(AgentOutput::Selected { link, agent, handle: pair.remote.addr() }).await;
            }
            remote = more.recv() => match remote {
                Some(remote) => add(agent, remote)?,
                None => return Ok(()),
            },
        }
    }
}

fn config(setup: &Setup, conn: &Arc<AgentConn>) -> anyhow::Result<AgentConfig> {
    let address = Interface::convert(LOCAL.into(), None)?;
    let net = Net::Ifs(vec![Interface::new("tincan".to_owned(), vec![address])]);
    Ok(AgentConfig {
        udp_network: UDPNetwork::Muxed(Arc::new(SingleMux(Arc::clone(conn)))),
        local_ufrag: setup.local.ufrag.clone(),
        local_pwd: setup.local.pwd.clone(),
        multicast_dns_mode: MulticastDnsMode::Disabled,
        disconnected_timeout: Some(Duration::ZERO),
        failed_timeout: Some(NEVER),
        keepalive_interval: Some(Duration::ZERO),
        network_types: vec![NetworkType::Udp4],
        candidate_types: vec![CandidateType::Host],
        check_interval: setup.check_interval,
        max_binding_requests: Some(u16::MAX),
        is_controlling: setup.role == Role::Controlling,
        host_acceptance_min_wait: Some(Duration::ZERO),
        prflx_acceptance_min_wait: Some(Duration::ZERO),
        net: Some(Arc::new(net)),
        ..AgentConfig::default()
    })
}

/// Makes the agent find its one local address.
async fn gather(agent: &Agent) -> anyhow::Result<()> {
    let (done, mut ended) = mpsc::channel(1);
    agent.on_candidate(Box::new(move |candidate| {
        let done = done.clone();
        Box::pin(async move {
            if candidate.is_none() {
                // The other end is gone once gathering was waited for.
                let _ = done.send(()).await;
            }
        })
    }));
    agent.gather_candidates()?;
    ended.recv().await;
    Ok(())
}

fn add(agent: &Agent, remote: Remote) -> anyhow::Result<()> {
    let base_config = CandidateBaseConfig {
        network: "udp".to_owned(),
        address: remote.handle.ip().to_string(),
        port: remote.handle.port(),
        component: 1,
        priority: remote.priority,
        ..CandidateBaseConfig::default()
    };
    let candidate = CandidateHostConfig { base_config, ..CandidateHostConfig::default() }.new_candidate_host()?;
    let candidate: Arc<dyn webrtc_ice::candidate::Candidate + Send + Sync> = Arc::new(candidate);
    Ok(agent.add_remote_candidate(&candidate)?)
}

/// The mux of one agent: always the same connection.
struct SingleMux(Arc<AgentConn>);

#[async_trait]
impl UDPMux for SingleMux {
    async fn close(&self) -> Result<(), UtilError> {
        Ok(())
    }

    async fn get_conn(self: Arc<Self>, _ufrag: &str) -> Result<Arc<dyn Conn + Send + Sync>, UtilError> {
        let conn: Arc<dyn Conn + Send + Sync> = Arc::clone(&self.0) as _;
        Ok(conn)
    }

    async fn remove_conn_by_ufrag(&self, _ufrag: &str) {}
}

/// What the agent takes for its socket.
struct AgentConn {
    link: LinkId,
    agent: AgentId,
    arrived: Mutex<mpsc::Receiver<(Vec<u8>, SocketAddr)>>,
    outputs: mpsc::Sender<AgentOutput>,
}

#[async_trait]
impl Conn for AgentConn {
    async fn connect(&self, _: SocketAddr) -> Result<(), UtilError> {
        Err(unsupported())
    }

    async fn recv(&self, _: &mut [u8]) -> Result<usize, UtilError> {
        Err(unsupported())
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr), UtilError> {
        loop {
            let Some((datagram, handle)) = self.arrived.lock().await.recv().await else {
                return Err(UtilError::ErrClosedListener);
            };
            if let Some(target) = buffer.get_mut(..datagram.len()) {
                target.copy_from_slice(&datagram);
                return Ok((datagram.len(), handle));
            }
        }
    }

    async fn send(&self, _: &[u8]) -> Result<usize, UtilError> {
        Err(unsupported())
    }

    async fn send_to(&self, datagram: &[u8], handle: SocketAddr) -> Result<usize, UtilError> {
        let (link, agent) = (self.link, self.agent);
        let sent = AgentOutput::Sent { link, agent, handle, datagram: datagram.to_vec() };
        // A check lost here is repeated like one lost on the way.
        let _ = self.outputs.try_send(sent);
        Ok(datagram.len())
    }

    fn local_addr(&self) -> Result<SocketAddr, UtilError> {
        Ok(LOCAL.into())
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        None
    }

    async fn close(&self) -> Result<(), UtilError> {
        Ok(())
    }

    fn as_any(&self) -> &(dyn std::any::Any + Send + Sync) {
        self
    }
}

fn unsupported() -> UtilError {
    UtilError::Other("an ICE agent only sends to and receives from handles".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::ice::paths::handle;

    #[tokio::test]
    async fn a_dropped_agent_ends_all_its_tasks() {
        for role in [Role::Controlling, Role::Controlled] {
            let setup = Setup {
                link: LinkId(1),
                agent: AgentId(1),
                role,
                local: Credentials::random().unwrap(),
                remote: Credentials::random().unwrap(),
                remotes: vec![Remote { handle: handle(0), priority: 1 }],
                check_interval: Duration::from_millis(20),
            };
            let (outputs, mut sent) = mpsc::channel(16);
            let agent = RunningAgent::start(setup, outputs);
            for _ in 0..3 {
                assert!(matches!(sent.recv().await, Some(AgentOutput::Sent { handle: to, .. }) if to == handle(0)));
            }
            drop(agent);
            // Every task of the agent holds the sending end.
            let rest = async { while sent.recv().await.is_some() {} };
            tokio::time::timeout(Duration::from_secs(5), rest).await.expect("the agent's tasks end");
        }
    }
}
