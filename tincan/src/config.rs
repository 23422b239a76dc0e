//! The daemon's options: defaults, under a TOML file, under flags.

use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use nix::unistd::{Gid, Group};
use serde::Deserialize;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::link::LEASE;
use crate::wire::fingerprint::{Fingerprint, FingerprintKind};

/// The file that is read when none is named.
const DEFAULT_FILE: &str = "/etc/tincan/tincan.toml";

/// Longest interface name (`IFNAMSIZ` less the final zero).
const LONGEST_INTERFACE_NAME: usize = 15;

/// How long links may go on without their daemon, seconds: longer than the daemon's own pauses, and short of what a peer
/// that is gone would have to bear.
const LEASE_SECONDS: std::ops::RangeInclusive<u64> = 5..=3600;
/// Everything the daemon can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub struct DaemonConfig {
    /// UDP port of the 2014 controller API.
    pub rpc_port: u16,
    /// Addresses it listens on.
    pub rpc_addresses: Vec<IpAddr>,
    /// The group whose users may use it, beside root and the daemon's own user.
    pub rpc_group: Option<Gid>,
    /// The Unix socket with JSON-RPC 2.0.
    pub socket: PathBuf,
    /// Name of the TAP device.
    pub tap: String,
    /// MTU of the TAP in bytes.
    pub mtu: u16,
    /// Where the certificate key is kept.
    pub state_dir: PathBuf,
    /// How much is logged.
    pub log: LogLevel,
    /// UDP port of secured links; 0 lets the kernel choose.
    pub secured_port: u16,
    /// UDP port of plain links; 0 lets the kernel choose.
    pub plain_port: u16,
    /// Whether kernel programs are used.
    pub fast_path: FastPath,
    /// Whether plain frames are taken in the uplinks' drivers.
    pub xdp: XdpUse,
    /// How kernel programs are attached.
    pub attach: AttachBy,
    /// How long plain links go on without their daemon, or without an answer of the peer's.
    pub lease: Duration,
    /// Whether they outlive one that was stopped, too.
    pub keep_links: bool,
    /// Digest of certificate fingerprints.
    pub fingerprint: FingerprintKind,
    /// Make a new certificate at every start.
    pub fresh_certificate: bool,
    /// Let `set_cb_endpoint` name another host.
    pub allow_remote_controller: bool,
    /// Authorities that sign the XMPP server's certificate, in place of the system's.
    pub xmpp_ca: Option<PathBuf>,
    /// The XMPP server's certificate itself.
    pub xmpp_pin: Option<Fingerprint>,
    /// TLS from the first byte (XEP-0368) in place of STARTTLS.
    pub xmpp_direct_tls: bool,
}

/// Use of the kernel engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FastPath {
    /// Where the host allows it.
    #[default]
    Auto,
    /// Always: where the host does not allow it, the daemon does not start.
    On,
    /// Never.
    Off,
}

/// Use of the uplinks' drivers by the kernel engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpUse {
    /// Never.
    #[default]
    Off,
    /// Plain frames are taken in the driver (native XDP); for network cards whose drivers have it, slower on veth.
    Native,
}

/// How the kernel engine's programs come onto interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachBy {
    /// By TCX where the kernel has it, otherwise by clsact.
    #[default]
    Auto,
    /// As links of their own (Linux 6.6).
    Tcx,
    /// As filters of a clsact qdisc.
    Clsact,
}

impl AttachBy {
    /// Whether it means clsact on a kernel that has TCX or not.
    #[must_use]
    pub fn is_clsact(self, has_tcx: impl FnOnce() -> bool) -> bool {
        match self {
            Self::Auto => !has_tcx(),
            Self::Tcx => false,
            Self::Clsact => true,
        }
    }
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What needs someone.
    Error,
    /// Links up and down, logins.
    #[default]
    Info,
    /// Odd but handled.
    Debug,
    /// Every packet.
    Trace,
}

/// The options of `tincan daemon`; what is not given comes from the file, then from the defaults.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct DaemonOptions {
    /// TOML file with the same names [default: /etc/tincan/tincan.toml if it exists]
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// UDP port of the 2014 controller API [default: 5800]
    #[arg(long, value_name = "PORT")]
    pub rpc_port: Option<u16>,
    /// Loopback address the controller API listens on, one of a family at most [default: both localhosts]
    #[arg(long = "rpc-address", value_name = "ADDRESS")]
    #[serde(rename = "rpc-address")]
    pub rpc_addresses: Option<Vec<IpAddr>>,
    /// Group whose users may use the controller API over UDP [default: only root and the daemon's own user]
    #[arg(long, value_name = "NAME|GID")]
    pub rpc_group: Option<String>,
    /// Unix socket with JSON-RPC 2.0 [default: named after the TAP, in /run/tincan]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Name of the TAP device [default: ipop]
    #[arg(long, value_name = "NAME")]
    pub tap: Option<String>,
    /// MTU of the TAP in bytes, 1280 to 9000 [default: 1280]
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,
    /// Where the certificate key is kept [default: named after the TAP, in /var/lib/tincan]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// How much is logged [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<LogLevel>,
    /// Uplink UDP port of secured links, 0 = any [default: 0]
    #[arg(long, value_name = "PORT")]
    pub secured_port: Option<u16>,
    /// Uplink UDP port of plain links, 0 = any [default: 0]
    #[arg(long, value_name = "PORT")]
    pub plain_port: Option<u16>,
    /// Use of kernel programs [default: auto]
    #[arg(long, value_name = "WHEN")]
    pub fast_path: Option<FastPath>,
    /// Take plain frames in the drivers of the uplinks: for network cards with native XDP [default: off]
    #[arg(long, value_name = "MODE")]
    pub xdp: Option<XdpUse>,
    /// How kernel programs are attached; clsact leaves room for tools that know nothing else [default: auto]
    #[arg(long, value_name = "WAY")]
    pub attach: Option<AttachBy>,
    /// How long plain links in the kernel go on without their daemon, 5 to 3600 seconds [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub lease: Option<u64>,
    /// Leave plain links in the kernel when the daemon is stopped, for the lease
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub keep_links: Option<bool>,
    /// Digest of certificate fingerprints; sha1 only where every node of a network must have 2014's [default: sha256]
    #[arg(long, value_name = "DIGEST")]
    pub fingerprint: Option<Digest>,
    /// Make a new certificate at every start, as in 2014
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub fresh_certificate: Option<bool>,
    /// Let the callback endpoint be another host: frames and notifications then leave this one
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub allow_remote_controller: Option<bool>,
    /// PEM file of the authorities that sign the XMPP server's certificate [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub xmpp_ca: Option<PathBuf>,
    /// SHA-256 fingerprint of the XMPP server's certificate: exactly this one is trusted
    #[arg(long, value_name = "FINGERPRINT")]
    pub xmpp_pin: Option<String>,
    /// Speak TLS to the XMPP server from the first byte instead of STARTTLS
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub xmpp_direct_tls: Option<bool>,
}

/// A fingerprint's digest, as an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Digest {
    /// 95 characters.
    Sha256,
    /// 59 characters.
    Sha1,
}

impl DaemonOptions {
    /// Flags over file over defaults, checked.
    pub fn resolve(self) -> anyhow::Result<DaemonConfig> {
        let file = match &self.config {
            Some(path) => read_file(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read_file(Path::new(DEFAULT_FILE))?,
            None => Self::default(),
        };
        self.over(file).checked()
    }

    fn over(self, file: Self) -> Self {
        Self {
            config: self.config,
            rpc_port: self.rpc_port.or(file.rpc_port),
            rpc_addresses: self.rpc_addresses.or(file.rpc_addresses),
            rpc_group: self.rpc_group.or(file.rpc_group),
            socket: self.socket.or(file.socket),
            tap: self.tap.or(file.tap),
            mtu: self.mtu.or(file.mtu),
            state_dir: self.state_dir.or(file.state_dir),
            log: self.log.or(file.log),
            secured_port: self.secured_port.or(file.secured_port),
            plain_port: self.plain_port.or(file.plain_port),
            fast_path: self.fast_path.or(file.fast_path),
            xdp: self.xdp.or(file.xdp),
            attach: self.attach.or(file.attach),
            lease: self.lease.or(file.lease),
            keep_links: self.keep_links.or(file.keep_links),
            fingerprint: self.fingerprint.or(file.fingerprint),
            fresh_certificate: self.fresh_certificate.or(file.fresh_certificate),
            allow_remote_controller: self.allow_remote_controller.or(file.allow_remote_controller),
            xmpp_ca: self.xmpp_ca.or(file.xmpp_ca),
            xmpp_pin: self.xmpp_pin.or(file.xmpp_pin),
            xmpp_direct_tls: self.xmpp_direct_tls.or(file.xmpp_direct_tls),
        }
    }

    fn checked(self) -> anyhow::Result<DaemonConfig> {
        let tap = self.tap.unwrap_or_else(|| "ipop".to_owned());
        check_interface_name(&tap)?;
        let mtu = self.mtu.unwrap_or(1280);
        anyhow::ensure!((1280..=9000).contains(&mtu), "mtu is {mtu}: give 1280 (IPv6's minimum) to 9000 bytes");
        let (secured_port, plain_port) = (self.secured_port.unwrap_or(0), self.plain_port.unwrap_or(0));
        let lease = self.lease.map_or(LEASE, Duration::from_secs);
        let shown = lease.as_secs();
        anyhow::ensure!(LEASE_SECONDS.contains(&shown), "lease is {shown}: give 5 to 3600 seconds");
        let rpc_port = self.rpc_port.unwrap_or(5800);
        check_ports([("rpc-port", rpc_port), ("secured-port", secured_port), ("plain-port", plain_port)])?;
        let rpc_addresses =
            self.rpc_addresses.unwrap_or_else(|| vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        check_rpc_addresses(&rpc_addresses)?;
        Ok(DaemonConfig {
            rpc_port,
            rpc_addresses,
            rpc_group: self.rpc_group.as_deref().map(find_group).transpose()?,
            socket: self.socket.unwrap_or_else(|| default_socket(&tap)),
            mtu,
            state_dir: self.state_dir.unwrap_or_else(|| Path::new("/var/lib/tincan").join(&tap)),
            tap,
            log: self.log.unwrap_or_default(),
            secured_port,
            plain_port,
            fast_path: self.fast_path.unwrap_or_default(),
            xdp: self.xdp.unwrap_or_default(),
            attach: self.attach.unwrap_or_default(),
            lease,
            keep_links: self.keep_links.unwrap_or(false),
            fingerprint: match self.fingerprint {
                None | Some(Digest::Sha256) => FingerprintKind::Sha256,
                Some(Digest::Sha1) => FingerprintKind::Sha1,
            },
            fresh_certificate: self.fresh_certificate.unwrap_or(false),
            allow_remote_controller: self.allow_remote_controller.unwrap_or(false),
            xmpp_ca: self.xmpp_ca,
            xmpp_pin: self.xmpp_pin.map(|text| parse_pin(&text)).transpose()?,
            xmpp_direct_tls: self.xmpp_direct_tls.unwrap_or(false),
        })
    }
}

fn parse_pin(text: &str) -> anyhow::Result<Fingerprint> {
    text.parse()
        .ok()
        .filter(|pin: &Fingerprint| pin.kind() == FingerprintKind::Sha256)
        .with_context(|| format!("xmpp-pin {text:?} is no SHA-256 fingerprint: give 32 hex pairs joined by ':'"))
}

/// Where the daemon of a TAP listens unless told otherwise.
#[must_use]
pub fn default_socket(tap: &str) -> PathBuf {
    Path::new("/run/tincan").join(format!("{tap}.sock"))
}

fn check_interface_name(name: &str) -> anyhow::Result<()> {
    let fits = (1..=LONGEST_INTERFACE_NAME).contains(&name.len());
    let readable = name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte));
    anyhow::ensure!(
        fits && readable && name != "." && name != ".." && name != "lo",
        "{name:?} is no name for a TAP: give 1 to {LONGEST_INTERFACE_NAME} printable characters without / : %"
    );
    Ok(())
}

/// The uplink ports are bound on every address, so none may be the controllers'.
fn check_ports(ports: [(&str, u16); 3]) -> anyhow::Result<()> {
    for (index, (name, port)) in ports.iter().enumerate() {
        let taken = ports[..index].iter().find(|(_, other)| *port != 0 && other == port);
        if let Some((other, _)) = taken {
            anyhow::bail!("{other} and {name} are both {port}: they must differ");
        }
    }
    Ok(())
}

/// Only loopback, because calls carry passwords in clear; one of a family, because a reply must come from the address
/// that was called.
fn check_rpc_addresses(addresses: &[IpAddr]) -> anyhow::Result<()> {
    let ip4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    anyhow::ensure!(
        !addresses.is_empty() && ip4 <= 1 && addresses.len() - ip4 <= 1,
        "give rpc-address once or twice: at most one IPv4 and one IPv6 address"
    );
    if let Some(address) = addresses.iter().find(|address| !address.is_loopback()) {
        anyhow::bail!("rpc-address {address} is not a loopback address: give one of 127.0.0.0/8, or ::1");
    }
    Ok(())
}

/// By name first, since a name may be digits.
fn find_group(text: &str) -> anyhow::Result<Gid> {
    let group = Group::from_name(text).with_context(|| format!("cannot look up the rpc-group {text}"))?;
    match (group, text.parse()) {
        (Some(group), _) => Ok(group.gid),
        (None, Ok(number)) => Ok(Gid::from_raw(number)),
        (None, Err(_)) => anyhow::bail!("rpc-group {text} does not exist: make it (groupadd), or give a number"),
    }
}

fn read_file(path: &Path) -> anyhow::Result<DaemonOptions> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not a tincan configuration", path.display()))
}

/// Changes what is logged while the daemon runs.
#[derive(Clone)]
pub struct LogControl {
    handle: reload::Handle<LevelFilter, tracing_subscriber::Registry>,
}

impl LogControl {
    /// Sends logs to standard error from now on.
    pub fn start(level: LogLevel) -> anyhow::Result<Self> {
        use tracing_subscriber::layer::SubscriberExt as _;
        let (filter, handle) = reload::Layer::new(filter_of(level));
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false);
        tracing_subscriber::registry().with(filter).with(lines).try_init().context("logs cannot be set up")?;
        Ok(Self { handle })
    }

    /// `set_logging`: 0 none, 1 errors, 2 info, 3 everything.
    pub fn set(&self, level: u8) {
        let level = match level {
            0 => LogLevel::Off,
            1 => LogLevel::Error,
            2 => LogLevel::Info,
            _ => LogLevel::Trace,
        };
        if let Err(error) = self.handle.reload(filter_of(level)) {
            tracing::debug!(%error, "log level not changed");
        }
    }
}

fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn file(text: &str) -> DaemonOptions {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn without_file_and_flags_the_daemon_is_the_one_of_2014_but_safe() {
        let config = DaemonOptions::default().checked().unwrap();
        assert_eq!((config.rpc_port, config.tap.as_str(), config.mtu), (5800, "ipop", 1280));
        assert_eq!(config.socket, Path::new("/run/tincan/ipop.sock"));
        assert_eq!(config.fingerprint, FingerprintKind::Sha256);
        assert!(!config.allow_remote_controller);
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let flags = DaemonOptions { rpc_port: Some(6000), ..DaemonOptions::default() };
        let config = flags.over(file("rpc-port = 7000\ntap = \"blue\"\nlog = \"error\"")).checked().unwrap();
        assert_eq!((config.rpc_port, config.tap.as_str(), config.log), (6000, "blue", LogLevel::Error));
        assert_eq!(config.socket, Path::new("/run/tincan/blue.sock"));
        assert_eq!(config.state_dir, Path::new("/var/lib/tincan/blue"));
    }

    #[test]
    fn the_file_has_the_names_of_the_flags() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: DaemonOptions,
        }
        let flags = Line::parse_from([
            "daemon",
            "--rpc-address",
            "127.0.0.2",
            "--rpc-address",
            "::1",
            "--rpc-group=4321",
            "--socket=/tmp/s",
            "--mtu=1400",
            "--state-dir=/tmp/d",
            "--secured-port=4000",
            "--plain-port=4001",
            "--fast-path=off",
            "--attach=clsact",
            "--lease=30",
            "--keep-links",
            "--fingerprint=sha1",
            "--fresh-certificate",
            "--allow-remote-controller=false",
        ]);
        let file = file(
            "rpc-address = [\"127.0.0.2\", \"::1\"]\nrpc-group = \"4321\"\nsocket = \"/tmp/s\"\n\
             mtu = 1400\nstate-dir = \"/tmp/d\"\nsecured-port = 4000\nplain-port = 4001\n\
             fast-path = \"off\"\nattach = \"clsact\"\nlease = 30\nkeep-links = true\nfingerprint = \"sha1\"\n\
             fresh-certificate = true\nallow-remote-controller = false",
        );
        let config = flags.options.checked().unwrap();
        assert_eq!((config.rpc_addresses.len(), config.rpc_group), (2, Some(Gid::from_raw(4321))));
        assert!(config.fresh_certificate && config.fast_path == FastPath::Off);
        assert_eq!(config, file.checked().unwrap());
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let error = toml::from_str::<DaemonOptions>("rcp-port = 7000").unwrap_err();
        assert!(error.to_string().contains("rcp-port"), "{error}");
    }

    #[test]
    fn the_log_level_follows_set_logging() {
        let (_layer, handle) = reload::Layer::new(filter_of(LogLevel::Debug));
        let log = LogControl { handle };
        for (level, filter) in
            [(0, LevelFilter::OFF), (1, LevelFilter::ERROR), (2, LevelFilter::INFO), (3, LevelFilter::TRACE)]
        {
            log.set(level);
            assert_eq!(log.handle.clone_current(), Some(filter));
        }
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        for text in [
            "mtu = 1279",
            "mtu = 9001",
            "lease = 4",
            "lease = 3601",
            "tap = \"\"",
            "tap = \"a name too long\"",
            "tap = \"a/b\"",
            "tap = \"lo\"",
            "secured-port = 4000\nplain-port = 4000",
            "plain-port = 5800",
            "rpc-group = \"no such group\"",
            "rpc-address = []",
            "rpc-address = [\"0.0.0.0\"]",
            "rpc-address = [\"127.0.0.1\", \"10.0.0.1\"]",
            "rpc-address = [\"127.0.0.1\", \"127.0.0.2\"]",
        ] {
            assert!(file(text).checked().is_err(), "{text}");
        }
    }
}
