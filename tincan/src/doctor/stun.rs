//! Binding requests to a STUN server: which address it sees, how far it is, how a NAT between behaves (RFC 5780).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use stun::agent::TransactionId;
use stun::attributes::ATTR_CHANGE_REQUEST;
use stun::message::{BINDING_REQUEST, Setter};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::doctor::nat::{self, Came, Observations, Seen};
use crate::doctor::place::{any_of_family, explain, find, local_toward};
use crate::doctor::report::Check;
use crate::edge::ice::message::{Class, Incoming, build, raw};

const NAME: &str = "stun";

/// When a request is sent, after the first; each has an id of its own, so every answer gives a round-trip time.
const SENDS_AT: [Duration; 3] = [Duration::ZERO, Duration::from_millis(250), Duration::from_millis(750)];
/// After the first request; five such after one another still end before the command's deadline.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer read, bytes.
const MAX_ANSWER: usize = 2048;

/// From where the server shall answer (CHANGE-REQUEST, RFC 5780 section 7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    Port,
    AddressAndPort,
}

impl Change {
    fn attributes(self) -> Vec<Box<dyn Setter>> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Port => vec![raw(ATTR_CHANGE_REQUEST, [0, 0, 0, 0x02])],
            Self::AddressAndPort => vec![raw(ATTR_CHANGE_REQUEST, [0, 0, 0, 0x06])],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    from: SocketAddr,
    mapped: SocketAddr,
    other: Option<SocketAddr>,
    rtt: Duration,
}

#[derive(Debug)]
enum Failure {
    Silent,
    Unreachable(io::Error),
    /// In the server's words.
    Rejected(String),
}

/// The checks `stun` and `nat`.
pub async fn check(server: Option<&str>) -> [Check; 2] {
    let not_known = |why: &str| Check::skipped("nat", why, "");
    let Some(name) = server else {
        let skipped = Check::skipped(NAME, "no server named", "add --stun HOST:PORT");
        return [skipped, not_known("this takes a STUN server")];
    };
    let server = match find("STUN", name).await {
        Ok(server) => server,
        Err(problem) => {
            let advice = "correct the name, or look at this host's resolver";
            return [Check::problem(NAME, problem, advice), not_known("no STUN server to ask")];
        }
    };
    match look(server).await {
        Ok((answer, seen)) => [judge(name, server, &answer), nat::judge(&seen)],
        Err(failure) => [refused(name, server, &failure), not_known("the STUN server does not answer")],
    }
}

fn judge(name: &str, server: SocketAddr, answer: &Answer) -> Check {
    let milliseconds = answer.rtt.as_secs_f64() * 1000.0;
    Check::ok(NAME, format!("{} sees this host as {}, RTT {milliseconds:.2} ms", called(name, server), answer.mapped))
}

fn refused(name: &str, server: SocketAddr, failure: &Failure) -> Check {
    let called = called(name, server);
    match failure {
        Failure::Silent => Check::problem(
            NAME,
            format!("{called} is silent: no answer in {} s", PATIENCE.as_secs()),
            "check its address and port, and that UDP is let through",
        ),
        Failure::Unreachable(error) => Check::problem(
            NAME,
            format!("{called}: {}", explain(error)),
            "check its address and port, and the firewall",
        ),
        Failure::Rejected(words) => {
            Check::problem(NAME, format!("{called} answers, but not with our address: {words}"), "name another server")
        }
    }
}

/// A server by its name, and by its address where that says more.
fn called(name: &str, server: SocketAddr) -> String {
    let address = server.to_string();
    if name == address { address } else { format!("{name} ({address})") }
}

/// Asks everything that the server can tell.
async fn look(server: SocketAddr) -> Result<(Answer, Observations), Failure> {
    let asker = Asker::open(server).map_err(Failure::Unreachable)?;
    let first = asker.ask(server, Change::Nothing).await?;
    let mut seen = Observations {
        local: asker.local(server).map_err(Failure::Unreachable)?,
        mapped: first.mapped,
        other_address: Seen::NotAsked,
        other_port: Seen::NotAsked,
        from_other_address: Came::NotAsked,
        from_other_port: Came::NotAsked,
    };
    if let Some(other) = first.other.filter(|other| is_other(server, *other)) {
        // Filtering first: what is sent to the other address opens the way for what comes from it.
        (seen.from_other_address, seen.from_other_port) = asker.filtering(server, other).await;
        (seen.other_address, seen.other_port) = asker.mapping(server, other, first.mapped).await;
    }
    Ok((first, seen))
}

/// Whether a server may truly have this second address (RFC 5780 section 7.4), and we may ask it.
fn is_other(server: SocketAddr, other: SocketAddr) -> bool {
    let broadcast = matches!(other, SocketAddr::V4(other) if other.ip().is_broadcast());
    let (here, there) = (server.ip(), other.ip());
    here.is_ipv4() == there.is_ipv4()
        && here != there
        && server.port() != other.port()
        && other.port() != 0
        && !(there.is_unspecified() || there.is_multicast() || broadcast)
        && (here.is_loopback() || !there.is_loopback())
}

fn came(answer: &Result<Answer, Failure>, as_asked: impl FnOnce(SocketAddr) -> bool) -> Came {
    match answer {
        Ok(answer) if as_asked(answer.from) => Came::Through,
        Ok(_) | Err(Failure::Rejected(_)) => Came::Ignored,
        Err(Failure::Silent | Failure::Unreachable(_)) => Came::NotThrough,
    }
}

/// A fresh socket, whose mapping in a NAT is fresh too.
struct Asker {
    socket: UdpSocket,
}

impl Asker {
    fn open(server: SocketAddr) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind(any_of_family(server))?;
        socket.set_nonblocking(true)?;
        // Without a connection the kernel tells of ICMP errors only when asked to (ip(7)).
        match server {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
        }
        Ok(Self { socket: UdpSocket::from_std(socket)? })
    }

    fn local(&self, server: SocketAddr) -> io::Result<SocketAddr> {
        Ok(SocketAddr::new(local_toward(server)?, self.socket.local_addr()?.port()))
    }

    async fn filtering(&self, server: SocketAddr, other: SocketAddr) -> (Came, Came) {
        let answer = self.ask(server, Change::AddressAndPort).await;
        let from_address = came(&answer, |from| from.ip() == other.ip());
        if from_address != Came::NotThrough {
            return (from_address, Came::NotAsked);
        }
        let answer = self.ask(server, Change::Port).await;
        (from_address, came(&answer, |from| from.ip() == server.ip() && from.port() != server.port()))
    }

    async fn mapping(&self, server: SocketAddr, other: SocketAddr, mapped: SocketAddr) -> (Seen, Seen) {
        let seen = |answer: Result<Answer, Failure>| answer.map_or(Seen::Silent, |answer| Seen::As(answer.mapped));
        let second = seen(self.ask(SocketAddr::new(other.ip(), server.port()), Change::Nothing).await);
        match second {
            Seen::As(second_mapped) if second_mapped != mapped => {
                (second, seen(self.ask(other, Change::Nothing).await))
            }
            Seen::As(_) | Seen::Silent | Seen::NotAsked => (second, Seen::NotAsked),
        }
    }

    async fn ask(&self, to: SocketAddr, change: Change) -> Result<Answer, Failure> {
        let start = Instant::now();
        let mut sent = Vec::with_capacity(SENDS_AT.len());
        for next in SENDS_AT.iter().skip(1).chain([&PATIENCE]) {
            let id = TransactionId::new();
            let request = build(BINDING_REQUEST, id, change.attributes(), None);
            self.socket.send_to(&request, to).await.map_err(Failure::Unreachable)?;
            sent.push((id, Instant::now()));
            if let Ok(outcome) = timeout_at(start + *next, self.receive(&sent)).await {
                return outcome;
            }
        }
        Err(Failure::Silent)
    }

    /// The first answer to one of our requests; everything else is somebody else's.
    async fn receive(&self, sent: &[(TransactionId, Instant)]) -> Result<Answer, Failure> {
        let mut buffer = [0; MAX_ANSWER];
        loop {
            let (length, from) = self.socket.recv_from(&mut buffer).await.map_err(Failure::Unreachable)?;
            if let Some(outcome) = read(&buffer[..length], from, sent) {
                return outcome;
            }
        }
    }
}

/// The outcome if this datagram answers one of the requests.
fn read(datagram: &[u8], from: SocketAddr, sent: &[(TransactionId, Instant)]) -> Option<Result<Answer, Failure>> {
    let incoming = Incoming::parse(datagram)?;
    let (_, sent_at) = sent.iter().find(|(id, _)| *id == incoming.transaction())?;
    match incoming.class() {
        Class::Success => {
            let usable = |mapped: &SocketAddr| mapped.port() != 0 && !mapped.ip().is_unspecified();
            let Some(mapped) = incoming.mapped().filter(usable) else {
                return Some(Err(Failure::Rejected("no XOR-MAPPED-ADDRESS in its answer".to_owned())));
            };
            Some(Ok(Answer { from, mapped, other: incoming.other_address(), rtt: sent_at.elapsed() }))
        }
        Class::Error => {
            let words = incoming.error().map_or_else(|| "an error without a code".to_owned(), |(_, text)| text);
            Some(Err(Failure::Rejected(words)))
        }
        Class::Request | Class::Indication => None,
    }
}

#[cfg(test)]
mod tests;
