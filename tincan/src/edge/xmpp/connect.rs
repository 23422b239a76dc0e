//! From nothing to a bound session: TCP, TLS, authentication, resource. The password goes nowhere but inside TLS.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use sasl::common::{ChannelBinding, Credentials};
use tokio::io::BufStream;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ProtocolVersion};
use tokio_xmpp::error::AuthError;
use tokio_xmpp::xmlstream::{
    FallibleStreamElement, PendingFeaturesRecv, ReadError, StreamHeader, Timeouts, XmppStream, XmppStreamElement,
    initiate_stream,
};
use tokio_xmpp::{Error, Stanza, client_login};
use xmpp_parsers::bind::{BindQuery, BindResponse};
use xmpp_parsers::iq::Iq;
use xmpp_parsers::jid::{BareJid, FullJid, Jid};
use xmpp_parsers::minidom::Element;
use xmpp_parsers::ns;
use xmpp_parsers::sasl::DefinedCondition as AuthCondition;
use xmpp_parsers::sasl_cb::Type as BindingType;
use xmpp_parsers::stanza_error::DefinedCondition as StanzaCondition;
use xmpp_parsers::starttls::{Nonza, Request};
use xmpp_parsers::stream_error::DefinedCondition as StreamCondition;
use xmpp_parsers::stream_features::StreamFeatures;

use super::guard::{Guarded, Renewal};
use super::trust::client_config;
use super::{Account, Failure, XmppOptions};
use crate::wire::stanza::{resource_of, uid_of};

/// From the first packet to the bound resource. Two lost SYNs (1 s, 2 s) still fit.
const CONNECT_DEADLINE: Duration = Duration::from_secs(12);
/// To one of a name's addresses.
const TCP_DEADLINE: Duration = Duration::from_secs(4);
/// Silence after which the server is asked for a sign of life, and how long that may take: 18 s in all.
const TIMEOUTS: Timeouts = Timeouts { read_timeout: Duration::from_secs(10), response_timeout: Duration::from_secs(8) };
/// What we know, strongest first. Never ANONYMOUS, which the library would fall back to.
const MECHANISMS: [&str; 5] = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN"];
/// RFC 9266.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";
/// RFC 3921 section 3; obsolete, but servers of 2014 insist.
const SESSION_NAMESPACE: &str = "urn:ietf:params:xml:ns:xmpp-session";

type Transport = BufStream<Guarded<TlsStream<TcpStream>>>;
/// Stanzas over TLS.
pub(super) type StanzaChannel = XmppStream<Transport>;

/// Logs in and binds the node's resource.
pub(super) async fn connect(options: &XmppOptions, account: &Account) -> Result<(StanzaChannel, FullJid), Failure> {
    let steps = async {
        let jid = bare_jid(account)?;
        let host = if account.host.is_empty() { jid.domain().as_str() } else { account.host.as_str() };
        let tcp = open_tcp(host, account.port).await?;
        let tls = open_tls(options, &jid, tcp).await?;
        let (features, mut channel) = authenticate(account, &jid, tls).await?;
        let bound = bind(&mut channel, &features, account).await?;
        Ok((channel, bound))
    };
    timeout(CONNECT_DEADLINE, steps).await.unwrap_or_else(|_| {
        Err(Failure::Lost(format!("no login to {} within {} s", account.host, CONNECT_DEADLINE.as_secs())))
    })
}

fn bare_jid(account: &Account) -> Result<BareJid, Failure> {
    let Account { username, host, .. } = account;
    let text = if username.contains('@') { username.clone() } else { format!("{username}@{host}") };
    let jid = Jid::new(&text).map_err(|error| Failure::Refused(format!("{text} is no jid: {error}")))?;
    match jid.node() {
        Some(_) => Ok(jid.into_bare()),
        None => Err(Failure::Refused(format!("{text} names no user"))),
    }
}

async fn open_tcp(host: &str, port: u16) -> Result<TcpStream, Failure> {
    let at = |error: io::Error| Failure::Lost(format!("{host} port {port}: {error}"));
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in lookup_host((host, port)).await.map_err(at)? {
        match timeout(TCP_DEADLINE, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                tcp.set_nodelay(true).map_err(at)?;
                return Ok(tcp);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "no answer"),
        }
    }
    Err(at(last))
}

async fn open_tls(options: &XmppOptions, jid: &BareJid, tcp: TcpStream) -> Result<TlsStream<TcpStream>, Failure> {
    let settings = options.clone();
    let config = spawn_blocking(move || client_config(&settings)).await.map_err(lost)?;
    let config = config.map_err(|error| Failure::Refused(format!("{error:#}")))?;
    let domain = jid.domain().as_str();
    let name = ServerName::try_from(domain.to_owned())
        .map_err(|_| Failure::Refused(format!("{domain} is no name that a certificate can bear")))?;
    let tcp = if options.direct_tls { tcp } else { start_tls(domain, tcp).await? };
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|error| {
        let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match cause {
            Some(rustls::Error::InvalidCertificate(why)) => {
                Failure::Refused(format!("the certificate of the server for {domain} is not trusted: {why}"))
            }
            _ => lost(error),
        }
    })
}

/// Asks for TLS in clear text and says nothing else there. What the server sent beyond its consent is thrown away.
async fn start_tls(domain: &str, tcp: TcpStream) -> Result<TcpStream, Failure> {
    let pending = begin_stream(domain, BufStream::new(Guarded::new(tcp))).await?;
    let (features, mut stream) =
        pending.recv_features::<FallibleStreamElement>().await.map_err(|e| failure(e.into()))?;
    if !features.can_starttls() {
        return Err(Failure::Refused("the server offers no STARTTLS, or somebody on the way removed it".to_owned()));
    }
    stream.send(&XmppStreamElement::Starttls(Nonza::Request(Request))).await.map_err(lost)?;
    loop {
        if let XmppStreamElement::Starttls(Nonza::Proceed(_)) = next_element(&mut stream).await? {
            return Ok(stream.into_inner().into_inner().into_inner());
        }
    }
}

async fn begin_stream<S>(domain: &str, transport: S) -> Result<PendingFeaturesRecv<S>, Failure>
where
    S: tokio::io::AsyncBufRead + tokio::io::AsyncWrite + Unpin,
{
    initiate_stream(transport, ns::JABBER_CLIENT, header(domain), TIMEOUTS).await.map_err(lost)
}

fn header(domain: &str) -> StreamHeader<'_> {
    StreamHeader { to: Some(Cow::Borrowed(domain)), from: None, id: None }
}

async fn authenticate(
    account: &Account,
    jid: &BareJid,
    tls: TlsStream<TcpStream>,
) -> Result<(StreamFeatures, StanzaChannel), Failure> {
    let domain = jid.domain().as_str();
    let exported = exported_key(&tls);
    let guarded = Guarded::new(tls);
    let renewal: Renewal = guarded.renewal();
    let pending = begin_stream(domain, BufStream::new(guarded)).await?;
    let (features, stream) = pending.recv_features().await.map_err(|error| failure(error.into()))?;
    let user = jid.node().map(|node| node.as_str().to_owned()).unwrap_or_default();
    let credentials = Credentials::default()
        .with_username(user)
        .with_password(account.password.0.as_str())
        .with_channel_binding(channel_binding(&features, exported));
    let offered = &features.sasl_mechanisms;
    let usable = MECHANISMS.iter().filter(|name| offered.contains(**name)).map(|name| (*name).to_owned()).collect();
    let stream = client_login(stream, usable, credentials).await.map_err(failure)?;
    renewal.announce();
    let pending = stream.send_header(header(domain)).await.map_err(lost)?;
    pending.recv_features().await.map_err(|error| failure(error.into()))
}

/// Ties the login to this TLS connection where the server says it can (XEP-0440).
fn channel_binding(features: &StreamFeatures, exported: Option<Vec<u8>>) -> ChannelBinding {
    let bindable = features.sasl_cb.as_ref().is_some_and(|offer| offer.types.contains(&BindingType::TlsExporter));
    let plus = features.sasl_mechanisms.iter().any(|name| name == MECHANISMS[0] || name == MECHANISMS[1]);
    match exported {
        Some(key) if bindable && plus => ChannelBinding::TlsExporter(key),
        Some(_) | None => ChannelBinding::None,
    }
}

fn exported_key(tls: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let (_, connection) = tls.get_ref();
    if connection.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
        return None;
    }
    connection.export_keying_material(vec![0; 32], EXPORTER_LABEL, None).ok()
}

async fn bind(channel: &mut StanzaChannel, features: &StreamFeatures, account: &Account) -> Result<FullJid, Failure> {
    let query = BindQuery::new(Some(resource_of(account.uid)));
    let answer = request(channel, Iq::from_set("bind", query)).await?;
    let answer = answer.and_then(|payload| BindResponse::try_from(payload).ok());
    let jid = FullJid::from(answer.ok_or_else(|| Failure::Lost("the server bound no resource".to_owned()))?);
    if uid_of(jid.resource().as_str()) != Some(account.uid) {
        let reason = format!("the server gave the resource {}: ours is in use elsewhere", jid.resource());
        return Err(Failure::Conflict(reason));
    }
    if wants_session(features) {
        let payload = Element::bare("session", SESSION_NAMESPACE);
        request(channel, Iq::Set { from: None, to: None, id: "session".to_owned(), payload }).await?;
    }
    Ok(jid)
}

fn wants_session(features: &StreamFeatures) -> bool {
    let offer = features.others.iter().find(|feature| feature.is("session", SESSION_NAMESPACE));
    offer.is_some_and(|offer| !offer.has_child("optional", SESSION_NAMESPACE))
}

/// Sends an iq and waits for the answer with its id; before the session is bound nothing else arrives.
pub(super) async fn request(channel: &mut StanzaChannel, iq: Iq) -> Result<Option<Element>, Failure> {
    let asked = iq.id().to_owned();
    channel.send(&Stanza::Iq(iq)).await.map_err(lost)?;
    loop {
        let XmppStreamElement::Stanza(Stanza::Iq(iq)) = next_element(channel).await? else { continue };
        match iq {
            Iq::Result { id, payload, .. } if id == asked => return Ok(payload),
            Iq::Error { id, error, .. } if id == asked => {
                let reason = format!("{asked}: {:?}", error.defined_condition);
                let conflict = error.defined_condition == StanzaCondition::Conflict;
                return Err(if conflict { Failure::Conflict(reason) } else { Failure::Lost(reason) });
            }
            Iq::Result { .. } | Iq::Error { .. } | Iq::Get { .. } | Iq::Set { .. } => {}
        }
    }
}

async fn next_element<S>(stream: &mut XmppStream<S>) -> Result<XmppStreamElement, Failure>
where
    S: tokio::io::AsyncBufRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        let element = match stream.next().await {
            Some(Ok(element)) => element.into_read_error(),
            Some(Err(error)) => Err(error),
            None => return Err(closed()),
        };
        match element {
            Ok(XmppStreamElement::StreamError(error)) => return Err(stream_failure(&error.0.condition, &error)),
            Ok(element) => return Ok(element),
            Err(ReadError::SoftTimeout) => {}
            Err(ReadError::StreamFooterReceived) => return Err(closed()),
            Err(error @ (ReadError::HardError(_) | ReadError::ParseError(_))) => return Err(lost(error)),
        }
    }
}

/// What a stream error means for the next try.
pub(super) fn stream_failure(condition: &StreamCondition, error: &impl ToString) -> Failure {
    if *condition == StreamCondition::Conflict {
        Failure::Conflict(error.to_string())
    } else {
        Failure::Lost(error.to_string())
    }
}

pub(super) fn closed() -> Failure {
    Failure::Lost("the server closed the stream".to_owned())
}

#[expect(clippy::needless_pass_by_value, reason = "stands in map_err")]
pub(super) fn lost(error: impl ToString) -> Failure {
    Failure::Lost(error.to_string())
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Auth(AuthError::Fail(AuthCondition::TemporaryAuthFailure))
        | Error::Io(_)
        | Error::JidParse(_)
        | Error::Protocol(_)
        | Error::Disconnected
        | Error::InvalidState
        | Error::Fmt(_)
        | Error::Utf8(_)
        | Error::Connection(_)
        | Error::Addr(_) => lost(error),
        Error::Auth(AuthError::Fail(AuthCondition::NotAuthorized)) => {
            Failure::Refused("the server does not accept this user name with this password".to_owned())
        }
        Error::Auth(_) => Failure::Refused(error.to_string()),
        Error::StreamError(error) => stream_failure(&error.0.condition, &error),
    }
}
