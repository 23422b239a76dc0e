//! The XMPP session against a server that does what it likes: a script over TLS, on the loopback of a namespace.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tincan::edge::xmpp::{Account, XmppEdge, XmppEvent, XmppOptions};
use tincan::wire::request::Secret;
use tincan::wire::uid::Uid;
use tincan_tests::netns::Namespace;
use tincan_tests::prosody::{DOMAIN, make_certificates};
use tincan_tests::scratch::Scratch;
use tincan_tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

const SOON: Duration = Duration::from_secs(10);
const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
                      xmlns:stream='http://etherx.jabber.org/streams' id='1' from='tincan.test' version='1.0'>";
const BIND: &str = "<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features>";
const ROSTER: &str = "<iq type='result' id='roster'><query xmlns='jabber:iq:roster'>\
                      <item jid='eve@tincan.test' subscription='both'/></query></iq>";
const OWN: Uid = Uid::new([0xa1; 20]);
const EVE: Uid = Uid::new([0xe0; 20]);

/// The scripted end of one connection.
struct Script {
    tls: TlsStream<TcpStream>,
    unread: String,
}

impl Script {
    /// Reads until `needle` was read; returns what came before it.
    async fn read_until(&mut self, needle: &str) -> Result<String> {
        loop {
            if let Some(at) = self.unread.find(needle) {
                let before = self.unread[..at].to_owned();
                self.unread.drain(..at + needle.len());
                return Ok(before);
            }
            let mut buffer = [0; 4096];
            let length = timeout(SOON, self.tls.read(&mut buffer)).await.context("the client is silent")??;
            ensure!(length > 0, "the client closed before {needle}");
            self.unread.push_str(std::str::from_utf8(&buffer[..length]).context("no UTF-8")?);
        }
    }

    async fn write(&mut self, text: &str) -> Result<()> {
        self.tls.write_all(text.as_bytes()).await.context("writing to the client")?;
        self.tls.flush().await.context("writing to the client")
    }

    /// Takes the stream's beginning and offers these mechanisms.
    async fn offer(&mut self, mechanism: &str) -> Result<()> {
        self.read_until("<stream:stream").await?;
        let mechanisms = "<mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>";
        self.write(&format!(
            "{HEADER}<stream:features>{mechanisms}<mechanism>{mechanism}</mechanism></mechanisms></stream:features>"
        ))
        .await
    }

    /// Answers the login by PLAIN; returns what the client sent.
    async fn answer_login(&mut self, answer: &str) -> Result<String> {
        self.offer("PLAIN").await?;
        self.read_until("<auth").await?;
        let sent = self.read_until("</auth>").await?;
        self.write(&format!("<{answer}")).await?;
        Ok(sent)
    }

    /// Lets the client bind `resource`.
    async fn bind(&mut self, resource: &str) -> Result<()> {
        self.answer_login("success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>").await?;
        self.read_until("<stream:stream").await?;
        self.write(&format!("{HEADER}{BIND}")).await?;
        self.read_until("</iq>").await?;
        let jid = format!("alice@{DOMAIN}/{resource}");
        let bind = format!("<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid>{jid}</jid></bind>");
        self.write(&format!("<iq type='result' id='bind'>{bind}</iq>")).await
    }

    /// Brings the client online; eve is in its roster.
    async fn bring_online(&mut self) -> Result<()> {
        self.bring_online_with(ROSTER).await
    }

    async fn bring_online_with(&mut self, roster: &str) -> Result<()> {
        self.bind(&format!("tincan{OWN}")).await?;
        self.read_until("</iq>").await?;
        self.write(roster).await?;
        self.read_until("</presence>").await.map(drop)
    }
}

/// The client's end.
struct Client {
    edge: XmppEdge,
    events: Receiver<XmppEvent>,
}

impl Client {
    async fn next(&mut self) -> Result<XmppEvent> {
        timeout(SOON, self.events.recv()).await.context("no event")?.context("the session ended")
    }

    async fn online(&mut self) -> Result<()> {
        let event = self.next().await?;
        ensure!(matches!(event, XmppEvent::Online { .. }), "{event:?}");
        Ok(())
    }

    async fn offline(&mut self) -> Result<String> {
        let event = self.next().await?;
        let XmppEvent::Offline { reason } = event else { anyhow::bail!("{event:?}") };
        Ok(reason)
    }

    async fn message(&mut self, data: &str) -> Result<()> {
        let event = self.next().await?;
        let expected = XmppEvent::Message { from: EVE, kind: "send_msg".to_owned(), data: data.to_owned() };
        ensure!(event == expected, "{event:?}");
        Ok(())
    }

    fn counter(&self, name: &str) -> u64 {
        self.edge.counters().iter().find(|(counter, _)| *counter == name).map_or(0, |(_, value)| *value)
    }

    fn counts(&self, name: &str, number: u64) -> Result<()> {
        wait::until(SOON, name, || self.counter(name) == number)
    }
}

/// Lets a client connect and runs `test` with both ends.
fn with_script<F>(test: impl FnOnce(Script, Client) -> F + Send) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let namespace = Namespace::new("hostile")?;
    let scratch = Scratch::new("hostile")?;
    make_certificates(scratch.path(), DOMAIN)?;
    let file = |name: &str| scratch.path().join(name);
    let certificate = CertificateDer::from_pem_file(file("server.crt"))?;
    let key = PrivateKeyDer::from_pem_file(file("server.key"))?;
    let config =
        ServerConfig::builder_with_provider(default_provider().into()).with_safe_default_protocol_versions()?;
    let config = config.with_no_client_auth().with_single_cert(vec![certificate], key)?;
    let options = XmppOptions { ca_file: Some(file("ca.crt")), direct_tls: true, ..XmppOptions::default() };
    namespace.enter(move || {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().context("a runtime")?;
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let (sender, events) = channel(4096);
            let edge = XmppEdge::start(options, sender);
            edge.login(Account {
                username: format!("alice@{DOMAIN}"),
                password: Secret("secret".to_owned()),
                host: "127.0.0.1".to_owned(),
                port: listener.local_addr()?.port(),
                uid: OWN,
            });
            let (tcp, _) = timeout(SOON, listener.accept()).await.context("nobody connects")??;
            let tls = TlsAcceptor::from(std::sync::Arc::new(config)).accept(tcp).await.context("TLS")?;
            test(Script { tls, unread: String::new() }, Client { edge, events }).await
        })
    })
}

fn message(from: &str, data: &str) -> String {
    format!(
        "<iq type='get' id='1' from='{from}@{DOMAIN}/tincan{EVE}'><query xmlns='jabber:iq:tincan'>\
         <data>{data}</data><type>send_msg</type></query></iq>"
    )
}

#[test]
fn plain_is_used_inside_tls_when_the_server_has_nothing_better() -> Result<()> {
    with_script(async |mut script, mut client| {
        script.bring_online().await?;
        client.online().await
    })
}

#[test]
fn a_server_that_takes_anybody_gets_nobody() -> Result<()> {
    with_script(async |mut script, mut client| {
        script.offer("ANONYMOUS").await?;
        let event = client.next().await?;
        ensure!(matches!(&event, XmppEvent::Refused { reason } if reason.contains("mechanism")), "{event:?}");
        Ok(())
    })
}

#[test]
fn a_server_that_cannot_check_passwords_now_is_asked_again() -> Result<()> {
    with_script(async |mut script, mut client| {
        let failure = "failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><temporary-auth-failure/></failure>";
        script.answer_login(failure).await?;
        client.offline().await.map(drop)
    })
}

#[test]
fn a_resource_that_is_not_ours_is_a_conflict() -> Result<()> {
    with_script(async |mut script, mut client| {
        script.bind("something-else").await?;
        let reason = client.offline().await?;
        ensure!(reason.contains("something-else"), "{reason}");
        Ok(())
    })
}

#[test]
fn odd_stanzas_are_counted_and_the_session_goes_on() -> Result<()> {
    with_script(async |mut script, mut client| {
        script.bring_online().await?;
        client.online().await?;
        let from = format!("from='eve@{DOMAIN}/tincan{EVE}'");
        let odd = [
            "<iq/>".to_owned(),
            format!("<iq id='1' {from}/>"),
            format!("<iq type='get' id='1' {from}/>"),
            format!("<iq type='odd' id='1' {from}><query xmlns='jabber:iq:tincan'/></iq>"),
            format!("<iq type='get' id='1' {from}><query xmlns='jabber:iq:tincan'/></iq>"),
            "<iq type='get' id='1' from='@@@'><query xmlns='jabber:iq:tincan'/></iq>".to_owned(),
            "<iq type='get' id='1'><query xmlns='jabber:iq:tincan'/></iq>".to_owned(),
            format!("<presence type='odd' {from}/>"),
        ];
        script.write(&odd.concat()).await?;
        script.write(&format!("<presence type='error' {from}/><presence/><message {from}/>")).await?;
        script.write(&message("eve", "after")).await?;
        client.message("after").await?;
        let malformed = client.counter("malformed");
        ensure!(malformed == 8, "{malformed} of 8 were counted");
        Ok(())
    })
}

#[test]
fn a_roster_item_that_cannot_be_read_hides_nobody() -> Result<()> {
    with_script(async |mut script, mut client| {
        let odd =
            "<item jid='@@@' subscription='both'/><item jid='a@b' subscription='odd'/><query xmlns='x'/><item jid='eve";
        script.bring_online_with(&ROSTER.replace("<item jid='eve", odd)).await?;
        client.online().await?;
        script.write(&message("eve", "heard")).await?;
        client.message("heard").await?;
        client.counts("malformed", 3)
    })
}

#[test]
fn a_peer_cannot_pose_as_the_daemon() -> Result<()> {
    with_script(async |mut script, mut client| {
        script.bring_online().await?;
        client.online().await?;
        for kind in ["local_state", "peer_state", "con_stat", "echo_request", "echo_reply"] {
            script.write(&message("eve", "online").replace("send_msg", kind)).await?;
        }
        script.write(&message("eve", "after")).await?;
        client.message("after").await?;
        client.counts("forged", 5)
    })
}

#[test]
fn a_stanza_of_10_megabytes_ends_the_stream() -> Result<()> {
    with_script(async |mut script, mut client| {
        script.bring_online().await?;
        client.online().await?;
        // The client closes in the middle.
        script.write(&message("eve", &"x".repeat(10_000_000))).await.ok();
        let reason = client.offline().await?;
        ensure!(reason.contains("bytes or"), "{reason}");
        Ok(())
    })
}

#[test]
fn deep_nesting_ends_the_stream_and_not_the_program() -> Result<()> {
    with_script(async |mut script, mut client| {
        script.bring_online().await?;
        client.online().await?;
        script.write(&"<iq>".repeat(100_000)).await.ok();
        let reason = client.offline().await?;
        ensure!(reason.contains("levels"), "{reason}");
        Ok(())
    })
}

#[test]
fn ten_thousand_messages_of_a_peer_become_a_burst() -> Result<()> {
    with_script(async |mut script, mut client| {
        script.bring_online().await?;
        client.online().await?;
        let start = Instant::now();
        script.write(&message("eve", "flood").repeat(10_000)).await?;
        script.write("<iq type='get' id='end' from='tincan.test'><ping xmlns='urn:xmpp:ping'/></iq>").await?;
        script.read_until("end").await?;
        let excess = client.counter("excess");
        let allowed = 100 + 20 * (start.elapsed().as_secs() + 1);
        ensure!(excess >= 10_000 - allowed, "only {excess} were dropped in {:?}", start.elapsed());
        client.message("flood").await
    })
}

#[test]
fn strangers_are_counted_and_change_nothing() -> Result<()> {
    with_script(async |mut script, mut client| {
        script.bring_online().await?;
        client.online().await?;
        let push = "<query xmlns='jabber:iq:roster'><item jid='stranger@tincan.test' subscription='both'/></query>";
        script.write(&format!("<iq type='set' id='1' from='stranger@{DOMAIN}/x'>{push}</iq>")).await?;
        script.write(&format!("<iq type='result' id='roster' from='stranger@{DOMAIN}/x'>{push}</iq>")).await?;
        script.write(&format!("<presence from='stranger@{DOMAIN}/tincan{EVE}'/>")).await?;
        script.write(&message("stranger", "forged")).await?;
        script.write(&message("eve", "true")).await?;
        client.message("true").await?;
        client.counts("strangers", 3)
    })
}
