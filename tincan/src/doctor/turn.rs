//! One allocation at a TURN server, given back at once: the client of the ICE edge on a socket of its own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::doctor::options::TurnTarget;
use crate::doctor::place::{any_of_family, explain, find};
use crate::doctor::report::Check;
use crate::edge::ice::message::Incoming;
use crate::edge::ice::{TurnClient, TurnEvent};
use crate::wire::request::TurnServer;

const NAME: &str = "turn";

/// For the server to take the allocation back.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer read, bytes.
const MAX_ANSWER: usize = 2048;

/// What came of the allocation.
#[derive(Debug)]
enum Outcome {
    Allocated { relayed: SocketAddr, is_released: bool },
    Refused(String),
}

/// The check `turn`.
pub async fn check(target: Option<&TurnTarget>) -> Check {
    let Some(TurnTarget { address, username, password }) = target else {
        return Check::skipped(NAME, "no server named", "add --turn HOST:PORT --turn-user NAME");
    };
    let password = match password {
        Ok(password) => password.clone(),
        Err(problem) => return Check::problem(NAME, problem, ""),
    };
    let server = match find("TURN", address).await {
        Ok(server) => server,
        Err(problem) => return Check::problem(NAME, problem, "correct the name, or look at this host's resolver"),
    };
    let account = TurnServer { address: address.clone(), username: username.clone(), password };
    match allocate(server, &account).await {
        Ok(Outcome::Allocated { relayed, is_released }) => judge(server, relayed, is_released),
        Ok(Outcome::Refused(reason)) => Check::problem(NAME, &reason, advice(&reason)),
        Err(error) => Check::problem(
            NAME,
            format!("TURN server {server}: {}", explain(&error)),
            "check its address and port, and the firewall",
        ),
    }
}

fn judge(server: SocketAddr, relayed: SocketAddr, is_released: bool) -> Check {
    if is_inner(relayed.ip()) && !is_inner(server.ip()) {
        return Check::warning(
            NAME,
            format!("TURN server {server} relays at {relayed}, which peers elsewhere cannot reach"),
            "tell the server its public address (coturn: external-ip)",
        );
    }
    let end = if is_released { "given back" } else { "its end was not confirmed" };
    Check::ok(NAME, format!("TURN server {server} relays at {relayed}; the allocation worked and is {end}"))
}

/// By the TURN client's words.
fn advice(reason: &str) -> &'static str {
    if reason.contains("password") {
        "check --turn-user and TINCAN_TURN_PASSWORD against the server's users and realm"
    } else if reason.contains("did not answer") {
        ""
    } else {
        "look at the server's log"
    }
}

fn is_inner(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified(),
    }
}

/// Errors are those of the network; what the server says is in the outcome.
async fn allocate(server: SocketAddr, account: &TurnServer) -> io::Result<Outcome> {
    let socket = UdpSocket::bind(any_of_family(server)).await?;
    socket.connect(server).await?;
    let mut client = TurnClient::new(Instant::now().into_std(), server, account);
    let relayed = loop {
        match next_event(&socket, &mut client).await? {
            TurnEvent::Allocated { relayed, mapped: _ } => break relayed,
            TurnEvent::Failed { reason } => return Ok(Outcome::Refused(reason)),
            TurnEvent::Over => return Ok(Outcome::Refused("the allocation ended before it began".to_owned())),
            TurnEvent::Bound { .. } | TurnEvent::Data { .. } => {}
        }
    };
    client.release(Instant::now().into_std());
    let deadline = Instant::now() + RELEASE_PATIENCE;
    let released = async {
        while next_event(&socket, &mut client).await? != TurnEvent::Over {}
        io::Result::Ok(())
    };
    let is_released = matches!(timeout_at(deadline, released).await, Ok(Ok(())));
    Ok(Outcome::Allocated { relayed, is_released })
}

async fn next_event(socket: &UdpSocket, client: &mut TurnClient) -> io::Result<TurnEvent> {
    let mut buffer = [0; MAX_ANSWER];
    loop {
        let now = Instant::now().into_std();
        client.handle_timeout(now);
        while let Some(datagram) = client.poll_transmit(now) {
            socket.send(&datagram).await?;
        }
        if let Some(event) = client.poll_event() {
            return Ok(event);
        }
        let Some(deadline) = client.deadline() else { return Ok(TurnEvent::Over) };
        if let Ok(received) = timeout_at(deadline.into(), socket.recv(&mut buffer)).await
            && let Some(mut incoming) = Incoming::parse(&buffer[..received?])
        {
            client.handle_message(Instant::now().into_std(), &mut incoming);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;
    use crate::wire::request::Secret;

    #[test]
    fn a_relay_at_an_inner_address_of_a_public_server_is_a_warning() {
        let check = |server: &str, relayed: &str| judge(server.parse().unwrap(), relayed.parse().unwrap(), true).state;
        assert_eq!(check("198.51.100.10:3478", "198.51.100.10:50000"), State::Ok);
        assert_eq!(check("198.51.100.10:3478", "10.0.0.3:50000"), State::Warning);
        assert_eq!(check("[2001:db8::1]:3478", "[fd00::1]:50000"), State::Warning);
        assert_eq!(check("10.0.0.3:3478", "10.0.0.3:50000"), State::Ok);
    }

    #[tokio::test]
    async fn a_closed_port_is_named() {
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let password = Ok(Secret("x".to_owned()));
        let check = check(Some(&TurnTarget { address: closed, username: "u".to_owned(), password })).await;
        assert_eq!(check.state, State::Problem);
        assert!(check.found.contains("ICMP port unreachable"), "{}", check.found);
    }

    #[tokio::test]
    async fn without_a_password_nothing_is_sent() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let password = Err("no password: set it".to_owned());
        let check = check(Some(&TurnTarget { address, username: "u".to_owned(), password })).await;
        assert_eq!((check.state, check.found.as_str()), (State::Problem, "no password: set it"));
        assert!(server.try_recv(&mut [0; 9]).is_err());
    }
}
