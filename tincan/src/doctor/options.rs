//! The options of `tincan doctor`: the daemon's, the servers to try, and where their passwords are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;

use crate::config::{DaemonConfig, DaemonOptions};
use crate::edge::xmpp::DEFAULT_PORT;
use crate::wire::request::Secret;

/// Environment variables with passwords, which unlike options other users do not see.
const XMPP_PASSWORD: &str = "TINCAN_XMPP_PASSWORD";
const TURN_PASSWORD: &str = "TINCAN_TURN_PASSWORD";

/// What is looked at.
#[derive(Args, Clone, Debug, Default)]
pub struct DoctorOptions {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// XMPP account to log in with, once; its password is in `TINCAN_XMPP_PASSWORD` or --xmpp-password-file
    #[arg(long, value_name = "USER@DOMAIN[:PORT]")]
    pub xmpp: Option<String>,
    /// Name or address of the XMPP server [default: the account's domain]
    #[arg(long, value_name = "HOST", requires = "xmpp")]
    pub xmpp_host: Option<String>,
    /// File with the XMPP password
    #[arg(long, value_name = "FILE", requires = "xmpp")]
    pub xmpp_password_file: Option<PathBuf>,
    /// STUN server to ask for this host's address and the kind of its NAT
    #[arg(long, value_name = "HOST:PORT")]
    pub stun: Option<String>,
    /// TURN server to allocate at; its password is in `TINCAN_TURN_PASSWORD` or --turn-password-file
    #[arg(long, value_name = "HOST:PORT", requires = "turn_user")]
    pub turn: Option<String>,
    /// User at the TURN server
    #[arg(long, value_name = "NAME", requires = "turn")]
    pub turn_user: Option<String>,
    /// File with the TURN password
    #[arg(long, value_name = "FILE", requires = "turn")]
    pub turn_password_file: Option<PathBuf>,
    /// Host of a peer: the path's MTU to it is looked at, as to the servers
    #[arg(long = "peer", value_name = "ADDRESS")]
    pub peers: Vec<String>,
    #[command(flatten)]
    pub daemon: DaemonOptions,
}

/// An account as it stands in `--xmpp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XmppTarget {
    /// A bare jid.
    pub jid: String,
    /// Where its server is.
    pub host: String,
    pub port: u16,
    /// The password, or why it is not known.
    pub password: Result<Secret, String>,
}

/// A TURN server and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnTarget {
    /// `host:port`.
    pub address: String,
    pub username: String,
    /// The password, or why it is not known.
    pub password: Result<Secret, String>,
}

/// The options, read and checked.
#[derive(Clone, Debug)]
pub struct Plan {
    pub config: DaemonConfig,
    pub xmpp: Option<XmppTarget>,
    pub stun: Option<String>,
    pub turn: Option<TurnTarget>,
    pub peers: Vec<String>,
}

impl DoctorOptions {
    /// Reads file, flags and environment; the error names what is wrong with them.
    pub fn resolve(self) -> anyhow::Result<Plan> {
        let Self {
            json: _,
            xmpp,
            xmpp_host,
            xmpp_password_file,
            stun,
            turn,
            turn_user,
            turn_password_file,
            peers,
            daemon,
        } = self;
        let config = daemon.resolve()?;
        let xmpp = xmpp
            .map(|account| {
                let (jid, domain, port) = parse_account(&account)?;
                let password = password(XMPP_PASSWORD, xmpp_password_file.as_deref(), "--xmpp-password-file");
                anyhow::Ok(XmppTarget { jid, host: xmpp_host.unwrap_or(domain), port, password })
            })
            .transpose()?;
        let turn = turn.map(|address| {
            let password = password(TURN_PASSWORD, turn_password_file.as_deref(), "--turn-password-file");
            TurnTarget { address, username: turn_user.unwrap_or_default(), password }
        });
        Ok(Plan { config, xmpp, stun, turn, peers })
    }
}

/// Bare jid, domain and port of `user@domain[:port]`.
fn parse_account(text: &str) -> anyhow::Result<(String, String, u16)> {
    let wanted = || format!("--xmpp is {text:?}: give user@domain or user@domain:port");
    let (user, place) = text.split_once('@').with_context(wanted)?;
    let (domain, port) = match place.rsplit_once(':') {
        Some((domain, port)) => (domain, port.parse().ok().filter(|port| *port != 0).with_context(wanted)?),
        None => (place, DEFAULT_PORT),
    };
    ensure!(!user.is_empty() && !domain.is_empty() && !domain.contains(['@', '/', ':']), wanted());
    Ok((format!("{user}@{domain}"), domain.to_owned(), port))
}

/// The file's first line, else the variable.
fn password(variable: &str, file: Option<&Path>, option: &str) -> Result<Secret, String> {
    let text = match file {
        Some(path) => {
            let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            text.lines().next().unwrap_or_default().to_owned()
        }
        None => env::var(variable).map_err(|_| format!("no password: set {variable}, or name a file by {option}"))?,
    };
    if text.is_empty() { Err(format!("the password is empty: set {variable} or {option}")) } else { Ok(Secret(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_a_user_a_domain_and_perhaps_a_port() {
        let parsed = |text| parse_account(text).ok();
        let account = |jid: &str, domain: &str, port| Some((jid.to_owned(), domain.to_owned(), port));
        assert_eq!(parsed("a@example.org"), account("a@example.org", "example.org", 5222));
        assert_eq!(parsed("a@example.org:5223"), account("a@example.org", "example.org", 5223));
        for wrong in ["", "a", "@b", "a@", "a@b@c", "a@b/r", "a@b:", "a@b:0", "a@b:65536", "a@b:x", "a@:5222", "a@::1"]
        {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_password_is_the_first_line_of_its_file() {
        let path = env::temp_dir().join(format!("tincan-doctor-password-{}", std::process::id()));
        fs::write(&path, "geheim\nmore\n").unwrap();
        let read = password("TINCAN_NO_SUCH_VARIABLE", Some(&path), "--x");
        fs::write(&path, "\n").unwrap();
        let empty = password("TINCAN_NO_SUCH_VARIABLE", Some(&path), "--x");
        fs::remove_file(&path).unwrap();
        assert_eq!(read, Ok(Secret("geheim".to_owned())));
        assert!(empty.unwrap_err().contains("empty"));
        let gone = password("TINCAN_NO_SUCH_VARIABLE", Some(&path), "--x").unwrap_err();
        assert!(gone.contains("cannot read"), "{gone}");
        let missing = password("TINCAN_NO_SUCH_VARIABLE", None, "--x").unwrap_err();
        assert!(missing.contains("TINCAN_NO_SUCH_VARIABLE") && missing.contains("--x"), "{missing}");
    }
}
