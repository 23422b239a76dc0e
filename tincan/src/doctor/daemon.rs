//! A daemon of this configuration: is one running, and if not, could it open its doors and ports?

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use serde_json::Map;

use crate::client::Client;
use crate::config::DaemonConfig;
use crate::dataplane::port::UdpPort;
use crate::doctor::permissions::writable;
use crate::doctor::report::Check;
use crate::edge::rpc::admission::{Admission, ask_kernel};
use crate::edge::rpc::udp::UdpDoor;
use crate::link::PortKind;

const SOCKET: &str = "socket";

/// A daemon that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Name of its TAP.
    pub tap: String,
}

/// The check `socket`, and the daemon that answers there. Blocks for some seconds when a daemon hangs.
pub fn find(socket: &Path) -> (Check, Option<Running>) {
    let mut client = match Client::connect(socket.to_owned()) {
        Ok(client) => client,
        Err(error) => return (without_daemon(socket, &error), None),
    };
    match client.call("status", &Map::new()) {
        Ok(status) => {
            let tap = status["host"]["tap"].as_str().unwrap_or_default().to_owned();
            (
                Check::ok(SOCKET, format!("a daemon answers at {}, its TAP is {tap}", socket.display())),
                Some(Running { tap }),
            )
        }
        Err(error) => (Check::problem(SOCKET, format!("{error:#}"), "look at the daemon's log, and restart it"), None),
    }
}

/// Why nobody answers: nobody is there, which is fine where a daemon could be.
fn without_daemon(socket: &Path, error: &anyhow::Error) -> Check {
    let kind = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
    let shown = socket.display();
    match kind {
        Some(io::ErrorKind::PermissionDenied) => Check::problem(
            SOCKET,
            format!("{shown} exists or lies where this user may not look"),
            "run as root or as the daemon's own user",
        ),
        Some(io::ErrorKind::ConnectionRefused) if !is_socket(socket) => {
            Check::problem(SOCKET, format!("{shown} is no socket"), "remove it, or choose another path by --socket")
        }
        Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => free(socket),
        _ => Check::problem(SOCKET, format!("{error:#}"), "choose another path by --socket"),
    }
}

fn free(socket: &Path) -> Check {
    let shown = socket.display();
    match socket.parent().map(writable) {
        Some(Ok(Some(_))) => Check::ok(SOCKET, format!("{shown} is free: no daemon of this TAP runs")),
        Some(Ok(None)) | None => {
            Check::problem(SOCKET, format!("{shown} lies in no directory"), "choose another path by --socket")
        }
        Some(Err(reason)) => Check::problem(
            SOCKET,
            format!("{shown} cannot be made: {reason}"),
            "run as root, or choose another by --socket",
        ),
    }
}

fn is_socket(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|entry| entry.file_type().is_socket())
}

/// The check `rpc-port`. Binds as the daemon does, so it needs a tokio runtime.
pub fn rpc_port(config: &DaemonConfig, running: Option<&Running>) -> Check {
    const NAME: &str = "rpc-port";
    let port = config.rpc_port;
    match (UdpDoor::bind(&config.rpc_addresses, port, Admission::new(config.rpc_group)), running) {
        (Err(_), Some(_)) => Check::ok(NAME, format!("UDP port {port} is taken, as it is while the daemon runs")),
        (Err(error), None) => {
            Check::problem(NAME, format!("{error:#}"), format!("see who has it: ss -lunp 'sport = :{port}'"))
        }
        (Ok(_), Some(_)) => {
            let found = format!("UDP port {port} is free though a daemon runs: it uses another");
            Check::warning(NAME, found, "give this command the daemon's --rpc-port or --config")
        }
        (Ok(door), None) => match ask_kernel(own_address(&door, port)) {
            Ok(()) => Check::ok(NAME, format!("UDP port {port} is free for the controller API")),
            Err(error) => Check::warning(
                NAME,
                format!("UDP port {port} is free, but the kernel does not tell whose sockets are whose: {error}"),
                "load udp_diag (CONFIG_INET_UDP_DIAG), or use the Unix socket: calls over UDP are refused",
            ),
        },
    }
}

fn own_address(door: &UdpDoor, port: u16) -> SocketAddr {
    let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    door.local_addrs().first().copied().unwrap_or(local)
}

/// The check `uplink-ports`: those the configuration names.
pub fn uplink_ports(config: &DaemonConfig, running: Option<&Running>) -> Check {
    const NAME: &str = "uplink-ports";
    for (kind, port, option) in [
        (PortKind::Secured, config.secured_port, "--secured-port"),
        (PortKind::Plain, config.plain_port, "--plain-port"),
    ] {
        if port == 0 || running.is_some() {
            continue;
        }
        if let Err(error) = UdpPort::bind(kind, port) {
            let advice =
                format!("choose another with {option}, or 0 for any; see who has it: ss -lunp 'sport = :{port}'");
            return Check::problem(NAME, format!("UDP port {port} cannot be bound: {error}"), advice);
        }
    }
    match (config.secured_port, config.plain_port, running) {
        (0, 0, _) => Check::ok(NAME, "any two UDP ports will do"),
        (secured, plain, None) => Check::ok(NAME, format!("UDP ports {secured} and {plain} are free (0: any)")),
        (secured, plain, Some(_)) => {
            Check::ok(NAME, format!("UDP ports {secured} and {plain} are the running daemon's"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::doctor::report::State;

    fn scratch(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("tincan-doctor-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_free_socket_and_a_dead_daemons_are_fine_and_a_file_in_the_way_is_not() {
        let (free, dead, file) = (scratch("free"), scratch("dead"), scratch("file"));
        drop(UnixListener::bind(&dead).unwrap());
        std::fs::write(&file, "").unwrap();
        let states = [&free, &dead, &file].map(|path| find(path).0.state);
        for path in [&dead, &file] {
            std::fs::remove_file(path).unwrap();
        }
        assert_eq!(states, [State::Ok, State::Ok, State::Problem]);
        assert_eq!(find(Path::new("/proc/self/status/s")).0.state, State::Problem);
    }

    #[test]
    fn a_daemon_that_hangs_up_is_a_problem() {
        let path = scratch("hangs");
        let listener = UnixListener::bind(&path).unwrap();
        let daemon = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let (check, running) = find(&path);
        daemon.join().unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!((check.state, running), (State::Problem, None));
    }
}
