//! The XMPP password goes to the account's own server inside TLS, or nowhere: what was on the wire is looked at.
//!
//! ```text
//!   alice eth0 --- switch: prosody, 192.0.2.100
//! ```

use anyhow::{Result, ensure};
use tincan_tests::capture::Capture;
use tincan_tests::controller::Node;
use tincan_tests::daemon::DaemonOptions;
use tincan_tests::prosody::{Prosody, ProsodyOptions, password};
use tincan_tests::signalling::{LOGIN_DEADLINE, register, service, trusting};
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::wait;

const SERVER: &str = "192.0.2.100";
/// What every login that begins in the clear would show: the SASL element, the password, and PLAIN's message, in Base64
/// (RFC 4616: NUL "alice" NUL "pw-alice").
const SECRETS: [&[u8]; 3] = [b"<auth", b"pw-alice", b"AGFsaWNlAHB3LWFsaWNl"];
/// Prosody's words in its log for a login it checked, well or badly.
const CHECKED: [&str; 2] = ["Authenticated as", "Authentication failed"];

struct Attempt {
    service: String,
    server_log: String,
    in_the_clear: [usize; SECRETS.len()],
}

/// Logs in at a server with these options; `trust` says whether its authority is given to the daemon.
fn attempt(options: &ProsodyOptions, trust: bool) -> Result<Attempt> {
    let pair = Pair::new(Underlay::Ipv4)?;
    pair.lan.address(&format!("{SERVER}/24"))?;
    let server = Prosody::start(pair.lan.namespace(), SERVER, options)?;
    let more = if trust { trusting(&server) } else { Vec::new() };
    let capture = Capture::start(&pair.alice, "eth0", |_, _| true)?;
    let alice = Node::start_with(&pair.alice, 1, &DaemonOptions { more, ..DaemonOptions::default() })?;
    register(&alice, &server, "alice", &password("alice"))?;
    let service = wait::until_some(LOGIN_DEADLINE, "an end of the login", || {
        let service = service(&alice).ok()?;
        (service.starts_with("offline") || service.starts_with("online")).then_some(service)
    })?;
    // The capture saw the conversation: its beginning is always in the clear.
    wait::until(LOGIN_DEADLINE, "the stream's beginning in the capture", || {
        capture.count_holding(b"<stream:stream") > 0
    })?;
    let in_the_clear = SECRETS.map(|secret| capture.count_holding(secret));
    Ok(Attempt { service, server_log: server.log(), in_the_clear })
}

fn gave_nothing_away(attempt: &Attempt, reason: &str) -> Result<()> {
    let Attempt { service, server_log, in_the_clear } = attempt;
    ensure!(service.starts_with("offline") && service.contains(reason), "the reason does not say {reason}: {service}");
    ensure!(in_the_clear.iter().all(|count| *count == 0), "on the wire: {in_the_clear:?}");
    ensure!(!CHECKED.iter().any(|words| server_log.contains(words)), "the server was given a login: {server_log}");
    Ok(())
}

#[test]
fn a_good_server_gets_the_password_inside_tls_only() -> Result<()> {
    let attempt = attempt(&ProsodyOptions::default(), true)?;
    ensure!(attempt.service.starts_with("online"), "{}", attempt.service);
    ensure!(attempt.in_the_clear.iter().all(|count| *count == 0), "on the wire: {:?}", attempt.in_the_clear);
    ensure!(attempt.server_log.contains(CHECKED[0]), "the log does not show logins: {}", attempt.server_log);
    Ok(())
}

#[test]
fn a_stream_without_starttls_gets_no_password_though_it_offers_plain() -> Result<()> {
    let options = ProsodyOptions { encryption: false, ..ProsodyOptions::default() };
    gave_nothing_away(&attempt(&options, true)?, "TLS")
}

#[test]
fn a_server_whose_authority_is_not_trusted_gets_no_password() -> Result<()> {
    gave_nothing_away(&attempt(&ProsodyOptions::default(), false)?, "certificate")
}

#[test]
fn a_server_with_a_certificate_for_another_name_gets_no_password() -> Result<()> {
    let options = ProsodyOptions { certificate_for: "other.test".to_owned(), ..ProsodyOptions::default() };
    gave_nothing_away(&attempt(&options, true)?, "certificate")
}
