//! The XMPP session against a real server, all inside one namespace.
//!
//! ```text
//!   alice ---+
//!   bob   ---+--- prosody 127.0.0.1:5222        (alice and bob are in each other's roster, mallory in nobody's)
//!   mallory -+
//! ```

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tincan::edge::xmpp::{Account, XmppEdge, XmppEvent, XmppOptions};
use tincan::wire::request::Secret;
use tincan::wire::uid::Uid;
use tincan_tests::netns::Namespace;
use tincan_tests::prosody::{DIRECT_PORT, DOMAIN, PORT, Prosody, ProsodyOptions, password};
use tincan_tests::wait;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;

/// For what should take milliseconds.
const SOON: Duration = Duration::from_secs(10);

/// A session and what it tells.
struct Client {
    edge: XmppEdge,
    events: Receiver<XmppEvent>,
    uid: Uid,
    account: Account,
}

impl Client {
    /// Logs in as `name`; node `number` has a uid of that byte.
    fn start(name: &str, number: u8, options: XmppOptions) -> Self {
        let (sender, events) = channel(1024);
        let edge = XmppEdge::start(options, sender);
        let uid = Uid::new([number; 20]);
        let account = Account {
            username: format!("{name}@{DOMAIN}"),
            password: Secret(password(name)),
            host: "127.0.0.1".to_owned(),
            port: PORT,
            uid,
        };
        Self { edge, events, uid, account }
    }

    fn login(self) -> Self {
        self.edge.login(self.account.clone());
        self
    }

    /// The next event that `wanted` accepts; others are skipped.
    async fn event(&mut self, deadline: Duration, wanted: impl Fn(&XmppEvent) -> bool) -> Result<XmppEvent> {
        let mut skipped = Vec::new();
        let found = async {
            while let Some(event) = self.events.recv().await {
                if wanted(&event) {
                    return Some(event);
                }
                skipped.push(event);
            }
            None
        };
        match timeout(deadline, found).await {
            Ok(event) => event.context("the session ended"),
            Err(_) => bail!("{} waited {deadline:?} in vain, saw {skipped:?}", self.account.username),
        }
    }

    async fn online(&mut self) -> Result<String> {
        let event = self.event(SOON, |event| matches!(event, XmppEvent::Online { .. })).await?;
        let XmppEvent::Online { jid } = event else { bail!("{event:?}") };
        Ok(jid)
    }

    async fn sees(&mut self, uid: Uid, deadline: Duration) -> Result<()> {
        let present = |event: &XmppEvent| matches!(event, XmppEvent::Present { uid: seen, .. } if *seen == uid);
        self.event(deadline, present).await.map(drop)
    }

    async fn message(&mut self) -> Result<XmppEvent> {
        self.event(SOON, |event| matches!(event, XmppEvent::Message { .. })).await
    }

    /// The first event of all, and that no other follows while `time` passes.
    async fn only_event(&mut self, time: Duration) -> Result<XmppEvent> {
        let first = timeout(SOON, self.events.recv()).await.context("no event")?.context("the session ended")?;
        if let Ok(second) = timeout(time, self.events.recv()).await {
            bail!("{first:?} was followed by {second:?}");
        }
        Ok(first)
    }

    fn counter(&self, name: &str) -> u64 {
        self.edge.counters().iter().find(|(counter, _)| *counter == name).map_or(0, |(_, value)| *value)
    }
}

/// Runs `test` in a namespace with a server.
fn with_server<F>(options: &ProsodyOptions, test: impl FnOnce(Prosody) -> F + Send) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let namespace = Namespace::new("xmpp")?;
    let server = Prosody::start(&namespace, "127.0.0.1", options)?;
    namespace.enter(move || {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().context("a runtime")?;
        runtime.block_on(test(server))
    })
}

fn trusting(server: &Prosody) -> XmppOptions {
    XmppOptions { ca_file: Some(server.authority()), ..XmppOptions::default() }
}

async fn alice_and_bob(server: &Prosody) -> Result<(Client, Client)> {
    let mut alice = Client::start("alice", 0xa1, trusting(server)).login();
    alice.online().await?;
    let mut bob = Client::start("bob", 0xb0, trusting(server)).login();
    bob.online().await?;
    alice.sees(bob.uid, SOON).await?;
    bob.sees(alice.uid, SOON).await?;
    Ok((alice, bob))
}

#[test]
fn two_accounts_see_each_other_and_messages_cross_both_ways() -> Result<()> {
    with_server(&ProsodyOptions::default(), async |server| {
        let (mut alice, mut bob) = alice_and_bob(&server).await?;
        let data = "14:15 <&> é".repeat(1000);
        alice.edge.send(bob.uid, "con_req".to_owned(), data.clone());
        let expected = XmppEvent::Message { from: alice.uid, kind: "con_req".to_owned(), data };
        ensure!(bob.message().await? == expected);
        bob.edge.send(alice.uid, "con_resp".to_owned(), String::new());
        let expected = XmppEvent::Message { from: bob.uid, kind: "con_resp".to_owned(), data: String::new() };
        ensure!(alice.message().await? == expected);

        let bob_uid = bob.uid;
        drop(bob);
        alice.event(SOON, |event| *event == XmppEvent::Gone { uid: bob_uid }).await?;
        alice.edge.send(bob_uid, "send_msg".to_owned(), "x".to_owned());
        alice.event(SOON, |event| matches!(event, XmppEvent::Undelivered { to, .. } if *to == bob_uid)).await?;
        Ok(())
    })
}

#[test]
fn the_resource_is_tincan_and_the_uid_and_further_nodes_of_the_account_are_peers() -> Result<()> {
    with_server(&ProsodyOptions::default(), async |server| {
        let mut first = Client::start("alice", 0x01, trusting(&server)).login();
        ensure!(first.online().await? == format!("alice@{DOMAIN}/tincan{}", "01".repeat(20)));
        let mut second = Client::start("alice", 0x02, trusting(&server)).login();
        second.sees(first.uid, SOON).await?;
        first.sees(second.uid, SOON).await?;
        first.edge.send(second.uid, "send_msg".to_owned(), "hello".to_owned());
        second.message().await?;
        Ok(())
    })
}

#[test]
fn a_wrong_password_is_told_once_and_not_tried_again_soon() -> Result<()> {
    with_server(&ProsodyOptions::default(), async |server| {
        let mut alice = Client::start("alice", 0xa1, trusting(&server));
        alice.account.password = Secret("wrong".to_owned());
        let mut alice = alice.login();
        // The controller may say it again: the same account is no reason to try.
        alice.edge.login(alice.account.clone());
        let event = alice.only_event(Duration::from_secs(5)).await?;
        ensure!(matches!(&event, XmppEvent::Refused { reason } if reason.contains("password")), "{event:?}");
        ensure!(alice.counter("connects") == 1);
        // Another password is.
        alice.account.password = Secret(password("alice"));
        alice.edge.login(alice.account.clone());
        alice.online().await?;
        Ok(())
    })
}

#[test]
fn certificates_that_are_not_trusted_are_refused() -> Result<()> {
    with_server(&ProsodyOptions::default(), async |server| {
        let pinned = |text: &str| XmppOptions { pinned: text.parse().ok(), ..XmppOptions::default() };
        let wrong_pin = pinned(&["00"; 32].join(":"));
        for options in [XmppOptions::default(), wrong_pin] {
            let mut alice = Client::start("alice", 0xa1, options).login();
            let event = alice.only_event(Duration::from_secs(2)).await?;
            ensure!(matches!(event, XmppEvent::Refused { .. }), "{event:?}");
        }
        let mut alice = Client::start("alice", 0xa1, pinned(&server.fingerprint()?)).login();
        alice.online().await?;
        let log = server.log();
        ensure!(
            log.contains("<auth ") && !log.contains("<auth mechanism='PLAIN"),
            "PLAIN although SCRAM was offered: {log}"
        );
        Ok(())
    })
}

#[test]
fn a_certificate_for_another_name_is_refused() -> Result<()> {
    let options = ProsodyOptions { certificate_for: "other.test".to_owned(), ..ProsodyOptions::default() };
    with_server(&options, async |server| {
        let mut alice = Client::start("alice", 0xa1, trusting(&server)).login();
        let event = alice.only_event(Duration::from_secs(2)).await?;
        ensure!(matches!(&event, XmppEvent::Refused { reason } if reason.contains("other.test")), "{event:?}");
        Ok(())
    })
}

#[test]
fn a_server_without_tls_never_sees_a_login() -> Result<()> {
    let options = ProsodyOptions { encryption: false, ..ProsodyOptions::default() };
    with_server(&options, async |server| {
        let mut alice = Client::start("alice", 0xa1, trusting(&server)).login();
        let event = alice.only_event(Duration::from_secs(2)).await?;
        ensure!(matches!(&event, XmppEvent::Refused { reason } if reason.contains("STARTTLS")), "{event:?}");
        ensure!(!server.log().contains("<auth "), "something was authenticated: {}", server.log());
        Ok(())
    })
}

#[test]
fn tls_from_the_first_byte_works_too() -> Result<()> {
    with_server(&ProsodyOptions::default(), async |server| {
        let mut alice = Client::start("alice", 0xa1, XmppOptions { direct_tls: true, ..trusting(&server) });
        alice.account.port = DIRECT_PORT;
        alice.login().online().await?;
        Ok(())
    })
}

#[test]
fn strangers_are_neither_seen_nor_heard() -> Result<()> {
    with_server(&ProsodyOptions::default(), async |server| {
        let (mut alice, mut bob) = alice_and_bob(&server).await?;
        let mut mallory = Client::start("mallory", 0xee, trusting(&server)).login();
        mallory.online().await?;
        mallory.edge.send(alice.uid, "con_req".to_owned(), "x".to_owned());
        mallory.event(SOON, |event| matches!(event, XmppEvent::Undelivered { .. })).await?;
        alice.edge.send(mallory.uid, "con_req".to_owned(), "x".to_owned());
        alice.event(SOON, |event| matches!(event, XmppEvent::Undelivered { .. })).await?;
        alice.edge.send(bob.uid, "con_req".to_owned(), "x".to_owned());
        bob.message().await?;
        Ok(())
    })
}

#[test]
fn a_uid_that_another_account_holds_is_refused() -> Result<()> {
    let mut options = ProsodyOptions::default();
    options.group.push("mallory".to_owned());
    with_server(&options, async |server| {
        let (mut alice, bob) = alice_and_bob(&server).await?;
        let mut mallory = Client::start("mallory", 0xb0, trusting(&server)).login();
        mallory.online().await?;
        mallory.sees(alice.uid, SOON).await?;
        mallory.edge.send(alice.uid, "con_req".to_owned(), "forged".to_owned());
        wait::until(SOON, "presence and message of the other account", || alice.counter("claimed_uids") == 2)?;
        bob.edge.send(alice.uid, "con_req".to_owned(), "true".to_owned());
        let expected = XmppEvent::Message { from: bob.uid, kind: "con_req".to_owned(), data: "true".to_owned() };
        ensure!(alice.message().await? == expected, "the forged message came through");
        Ok(())
    })
}

#[test]
fn a_restarted_server_has_everybody_back() -> Result<()> {
    with_server(&ProsodyOptions::default(), async |mut server| {
        let (mut alice, mut bob) = alice_and_bob(&server).await?;
        server.stop()?;
        for client in [&mut alice, &mut bob] {
            client.event(SOON, |event| matches!(event, XmppEvent::Offline { .. })).await?;
        }
        alice.edge.send(bob.uid, "con_req".to_owned(), "x".to_owned());
        alice.event(SOON, |event| matches!(event, XmppEvent::Undelivered { .. })).await?;
        server.resume()?;
        let (alice_uid, bob_uid) = (alice.uid, bob.uid);
        alice.sees(bob_uid, Duration::from_secs(30)).await?;
        bob.sees(alice_uid, Duration::from_secs(30)).await?;
        Ok(())
    })
}

#[test]
fn a_silent_server_is_noticed_within_20_seconds() -> Result<()> {
    with_server(&ProsodyOptions::default(), async |server| {
        let (mut alice, _bob) = alice_and_bob(&server).await?;
        let start = Instant::now();
        server.freeze()?;
        alice.event(Duration::from_secs(25), |event| matches!(event, XmppEvent::Offline { .. })).await?;
        let noticed = start.elapsed();
        server.thaw()?;
        ensure!(noticed < Duration::from_secs(20), "noticed after {noticed:?}");
        alice.event(Duration::from_secs(30), |event| matches!(event, XmppEvent::Online { .. })).await?;
        Ok(())
    })
}

#[test]
fn two_sessions_with_one_uid_do_not_kick_each_other_in_a_loop() -> Result<()> {
    with_server(&ProsodyOptions::default(), async |server| {
        let mut first = Client::start("alice", 0xa1, trusting(&server)).login();
        first.online().await?;
        let mut second = Client::start("alice", 0xa1, trusting(&server)).login();
        second.online().await?;
        let kicked = |event: &XmppEvent| matches!(event, XmppEvent::Offline { reason } if reason.contains("conflict"));
        first.event(SOON, kicked).await?;
        ensure!(timeout(Duration::from_secs(10), first.events.recv()).await.is_err(), "the first came back at once");
        ensure!((first.counter("connects"), second.counter("connects")) == (1, 1));
        Ok(())
    })
}
