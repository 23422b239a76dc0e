//! Where a server or peer is: from a name to the address that this host would use.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::edge::ice::resolve;

/// The first address with a route, IPv4 before IPv6 as NATs are its matter; the error is a sentence for a person.
pub async fn find(kind: &str, name: &str) -> Result<SocketAddr, String> {
    let mut addresses = resolve(kind, Some(name.to_owned())).await?;
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let routed = addresses.iter().find(|address| local_toward(**address).is_ok());
    routed.or(addresses.first()).copied().ok_or_else(|| format!("{kind} server {name}: its name has no address"))
}

/// The local address the kernel would send from; nothing is sent.
pub fn local_toward(remote: SocketAddr) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind(any_of_family(remote))?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

/// The unspecified address of `remote`'s family, any port.
pub fn any_of_family(remote: SocketAddr) -> SocketAddr {
    match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// Why nothing came back, in a person's words.
pub fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "the host refuses (ICMP port unreachable): no server listens there".to_owned(),
        Some(libc::EHOSTUNREACH) => "the host cannot be reached (ICMP host unreachable)".to_owned(),
        Some(libc::ENETUNREACH) => "this host has no route there".to_owned(),
        Some(libc::EPERM | libc::EACCES) => "a firewall forbids it".to_owned(),
        _ => error.to_string(),
    }
}
