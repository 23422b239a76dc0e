//! One login at the XMPP server with the daemon's own connector, and the words for what came of it.

use crate::config::DaemonConfig;
use crate::doctor::options::XmppTarget;
use crate::doctor::report::Check;
use crate::edge::xmpp::{Account, Failure, Rehearsal, XmppOptions, rehearse};
use crate::wire::uid::{UID_LEN, Uid};

const NAME: &str = "xmpp";

/// The check `xmpp`, and the server's clock less ours in milliseconds if it told.
pub async fn check(target: Option<&XmppTarget>, config: &DaemonConfig) -> (Check, Option<i64>) {
    let Some(XmppTarget { jid, host, port, password }) = target else {
        return (Check::skipped(NAME, "no account named", "add --xmpp USER@DOMAIN"), None);
    };
    let password = match password {
        Ok(password) => password.clone(),
        Err(problem) => return (Check::problem(NAME, problem, ""), None),
    };
    // A resource of its own: a daemon with this account stays logged in.
    let mut uid = [0; UID_LEN];
    if let Err(error) = getrandom::fill(&mut uid) {
        return (Check::problem(NAME, format!("the kernel gives no random numbers: {error}"), ""), None);
    }
    let account = Account { username: jid.clone(), password, host: host.clone(), port: *port, uid: Uid::new(uid) };
    let options =
        XmppOptions { ca_file: config.xmpp_ca.clone(), pinned: config.xmpp_pin, direct_tls: config.xmpp_direct_tls };
    match rehearse(&options, &account).await {
        Ok(Rehearsal { jid, took, clock_difference_ms }) => {
            let found = format!("logged in at {host} port {port} as {jid} in {} ms, and out again", took.as_millis());
            (Check::ok(NAME, found), clock_difference_ms)
        }
        Err(failure) => (judge(jid, host, *port, &failure), None),
    }
}

fn judge(jid: &str, host: &str, port: u16, failure: &Failure) -> Check {
    let (reason, advice) = match failure {
        Failure::Refused(reason) => (reason, refusal_advice(reason)),
        Failure::Conflict(reason) => (reason, "look at the server's limit of resources for one account"),
        Failure::Lost(reason) => {
            (reason, "check host and port, that TCP is let through, and whether the server wants --xmpp-direct-tls")
        }
    };
    Check::problem(NAME, format!("no login as {jid} at {host} port {port}: {reason}"), advice)
}

/// By the connector's words.
fn refusal_advice(reason: &str) -> &'static str {
    if reason.contains("password") {
        "correct TINCAN_XMPP_PASSWORD or the account"
    } else if reason.contains("not valid yet") || reason.contains("expired") {
        "look at this host's clock, then at the server's certificate"
    } else if reason.contains("certificate") {
        "name its authority by --xmpp-ca, or the certificate itself by --xmpp-pin, if this is the right server"
    } else if reason.contains("STARTTLS") {
        "try --xmpp-direct-tls, or have the server offer TLS"
    } else {
        "look at the account and the server's log"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_gets_its_next_step() {
        for (failure, advice) in [
            (Failure::Refused("the server does not accept this user name with this password".into()), "PASSWORD"),
            (Failure::Refused("the certificate of the server for a is not trusted: UnknownIssuer".into()), "--xmpp-ca"),
            (Failure::Refused("the certificate ... is not trusted: certificate not valid yet".into()), "clock"),
            (Failure::Refused("the server offers no STARTTLS, or ...".into()), "--xmpp-direct-tls"),
            (Failure::Refused("no usable mechanism".into()), "log"),
            (Failure::Conflict("conflict".into()), "resources"),
            (Failure::Lost("example.org port 5222: connection refused".into()), "TCP"),
        ] {
            let check = judge("a@example.org", "example.org", 5222, &failure);
            assert!(check.advice.contains(advice), "{failure:?}: {}", check.advice);
            assert!(check.found.contains("a@example.org"), "{}", check.found);
        }
    }
}
