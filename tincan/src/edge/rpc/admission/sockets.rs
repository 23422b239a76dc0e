//! The UDP sockets of this host at a port, as the kernel lists them (`sock_diag(7)`).
//!
//! Every question opens a netlink socket of its own, so an answer never belongs to an earlier question.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::message::SockDiagMessage;
use nix::unistd::Uid;
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;

/// Sockets of a family at one port: their list fits into one message of a page, which the kernel writes under the lock
/// of the port, so none can hide by moving meanwhile.
const MAX_SOCKETS: usize = 16;

/// A UDP socket as far as it matters for who may have sent with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSocket {
    /// The user who made it.
    pub owner: Uid,
    /// Where it is bound; mapped addresses are IPv4.
    pub local: IpAddr,
    /// Where it is connected to; `None` when it is not.
    pub remote: Option<SocketAddr>,
}

/// Every socket that can send datagrams of the family of `sender` from its port.
pub fn at_port_of(sender: SocketAddr) -> io::Result<Vec<OpenSocket>> {
    let mut found = list(AF_INET6, sender.port())?;
    if sender.is_ipv4() {
        found.retain(|response| !response.nlas.contains(&Nla::SkV6Only(true)));
        found.append(&mut list(AF_INET, sender.port())?);
    }
    // Without an inode a socket is half closed, and its owner is no longer known.
    Ok(found.iter().filter(|response| response.header.inode != 0).map(open_socket).collect())
}

fn open_socket(response: &InetResponse) -> OpenSocket {
    let SocketId { source_address, destination_address, destination_port, .. } = &response.header.socket_id;
    let remote = SocketAddr::new(destination_address.to_canonical(), *destination_port);
    OpenSocket {
        owner: Uid::from_raw(response.header.uid),
        local: source_address.to_canonical(),
        remote: (remote.port() != 0).then_some(remote),
    }
}

fn list(family: u8, port: u16) -> io::Result<Vec<InetResponse>> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    // The kernel answers within the call that asks: an answer that is not there will never come.
    socket.set_non_blocking(true)?;
    socket.send(&request(family, port), 0)?;
    let mut found = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        if read_answer(&answer, &mut found)? {
            return Ok(found);
        }
    }
}

fn request(family: u8, port: u16) -> Vec<u8> {
    let any = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = InetRequest {
        family,
        protocol: IPPROTO_UDP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId { source_port: port, ..any },
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Adds what one datagram of the kernel lists; true when it ends the list.
fn read_answer(mut answer: &[u8], found: &mut Vec<InetResponse>) -> io::Result<bool> {
    while !answer.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(answer).map_err(io::Error::other)?;
        let length = usize::try_from(message.header.length).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => found.push(*response),
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | NetlinkPayload::InnerMessage(_) | _ => {
                return Err(io::Error::other("an answer that is no list of sockets"));
            }
        }
        if found.len() > MAX_SOCKETS {
            return Err(io::Error::other(format!("more than {MAX_SOCKETS} sockets share the port")));
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

    use socket2::{Domain, Socket as RawSocket, Type};

    use super::*;

    fn listed(socket: &UdpSocket, sender: IpAddr) -> Vec<OpenSocket> {
        at_port_of(SocketAddr::new(sender, socket.local_addr().unwrap().port())).unwrap()
    }

    fn own(local: IpAddr, remote: Option<SocketAddr>) -> OpenSocket {
        OpenSocket { owner: Uid::effective(), local, remote }
    }

    #[test]
    fn a_bound_socket_is_listed_with_its_owner_until_it_is_closed() {
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into(), Ipv4Addr::UNSPECIFIED.into()] {
            let socket = UdpSocket::bind((address, 0)).unwrap();
            let sender = SocketAddr::new(address, socket.local_addr().unwrap().port());
            assert_eq!(at_port_of(sender).unwrap(), [own(address, None)]);
            drop(socket);
            assert_eq!(at_port_of(sender).unwrap(), []);
        }
    }

    #[test]
    fn a_connected_socket_is_listed_with_its_remote_end() {
        let (one, other) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let remote = other.local_addr().unwrap();
        one.connect(remote).unwrap();
        let local = Ipv4Addr::LOCALHOST.into();
        assert_eq!(listed(&one, local), [own(local, Some(remote))]);
    }

    #[test]
    fn a_dual_stack_socket_is_listed_for_both_families_and_one_of_ipv6_only_for_ipv6() {
        for (only_v6, of_ipv4) in [(false, 1), (true, 0)] {
            let socket = RawSocket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
            socket.set_only_v6(only_v6).unwrap();
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
            let socket = UdpSocket::from(socket);
            assert_eq!(listed(&socket, Ipv4Addr::LOCALHOST.into()).len(), of_ipv4);
            assert_eq!(listed(&socket, Ipv6Addr::LOCALHOST.into()).len(), 1);
        }
    }

    #[test]
    fn the_mapped_address_of_a_dual_stack_socket_is_listed_as_ipv4() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0)).unwrap();
        let local = Ipv4Addr::LOCALHOST.into();
        assert_eq!(listed(&socket, local), [own(local, None)]);
    }

    #[test]
    fn a_port_with_more_sockets_than_anyone_needs_is_an_error() {
        let first = UdpSocket::bind("127.0.1.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let _more: Vec<_> =
            (2..=17).map(|last| UdpSocket::bind((Ipv4Addr::new(127, 0, 1, last), port)).unwrap()).collect();
        assert!(at_port_of(first.local_addr().unwrap()).unwrap_err().to_string().contains("share the port"));
    }

    #[test]
    fn damaged_answers_are_errors() {
        let whole = request(AF_INET6, 1);
        for length in 1..whole.len() {
            assert!(read_answer(&whole[..length], &mut Vec::new()).is_err(), "{length} bytes");
        }
    }
}
