//! coturn: a STUN and TURN server in a namespace.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Namespace;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait;

/// The user every server knows.
pub const USER: &str = "tincan";
/// Its password.
pub const PASSWORD: &str = "overlay";
/// RFC 8489: the default port.
const PORT: u16 = 3478;
/// A STUN binding request (RFC 8489 section 5) without attributes: type, length, magic cookie, transaction id.
const BINDING_REQUEST: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// A running server; stopped on drop.
#[derive(Debug)]
pub struct Coturn {
    process: Process,
    address: SocketAddr,
    _scratch: Scratch,
}

impl Coturn {
    /// Starts a server on `ip` of `namespace` and waits until it answers.
    pub fn start(namespace: &Namespace, ip: &str) -> Result<Self> {
        Self::start_on(namespace, ip, None)
    }

    /// Starts a server on two addresses: then it tells of NATs (RFC 5780). The first relays.
    pub fn start_with_other(namespace: &Namespace, ip: &str, other: &str) -> Result<Self> {
        Self::start_on(namespace, ip, Some(other))
    }

    fn start_on(namespace: &Namespace, ip: &str, other: Option<&str>) -> Result<Self> {
        let scratch = Scratch::new("coturn")?;
        let path = |name: &str| scratch.path().join(name).display().to_string();
        let options = format!(
            "-n --listening-ip {ip} --relay-ip {ip} --listening-port {PORT} --lt-cred-mech --user {USER}:{PASSWORD} \
             --realm tincan.test --no-tls --no-dtls --no-cli --log-file stdout --simple-log --userdb {} --pidfile {}",
            path("turndb"),
            path("pid"),
        );
        let mut arguments: Vec<String> = options.split_whitespace().map(str::to_owned).collect();
        arguments.extend(other.into_iter().flat_map(|other| ["--listening-ip".to_owned(), other.to_owned()]));
        let process = Process::start(namespace, Path::new("turnserver"), &arguments, &scratch.path().join("log"))?;
        let address = SocketAddr::new(ip.parse().context("coturn's address")?, PORT);
        let coturn = Self { process, address, _scratch: scratch };
        namespace.enter(|| coturn.wait_until_ready()).with_context(|| coturn.process.output())?;
        Ok(coturn)
    }

    /// `ip:port`, for `create_link`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    fn wait_until_ready(&self) -> Result<()> {
        let socket = UdpSocket::bind((self.address.ip(), 0)).context("a socket for STUN")?;
        socket.set_read_timeout(Some(Duration::from_millis(50))).context("setting a deadline")?;
        wait::until(Duration::from_secs(10), "coturn's answer", || {
            let mut answer = [0; 256];
            socket.send_to(&BINDING_REQUEST, self.address).is_ok() && socket.recv(&mut answer).is_ok()
        })
    }
}
