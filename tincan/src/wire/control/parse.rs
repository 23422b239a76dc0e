//! Calls: a JSON object with the method in `m` and the parameters beside it becomes a [`Request`].

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde_json::Value;
use thiserror::Error;

use super::params::Params;
use crate::link::Security;
use crate::wire::request::{CreateLink, LocalIp, Overlay, RemoteIp, Request, Secret, TurnServer};

/// Methods with a meaning of their own, and the two peer messages that 2014 controllers send.
pub const METHODS: [&str; 16] = [
    "con_req",
    "create_link",
    "echo_reply",
    "echo_request",
    "get_state",
    "register_svc",
    "send_msg",
    "set_cb_endpoint",
    "set_local_ip",
    "set_logging",
    "set_network_ignore_list",
    "set_remote_ip",
    "set_switchmode",
    "set_translation",
    "set_trimpolicy",
    "trim_link",
];

/// Longest method name, which for unknown methods becomes the type of a peer message.
const MAX_METHOD: usize = 64;
/// Longest name, address or password; a JID's parts are 1023 bytes each (RFC 7622 section 3.1).
const MAX_TEXT: usize = 2048;
/// Longest message or candidate list: a UDP datagram's payload.
const MAX_DATA: usize = 65_536;
/// Most entries of the ignore list.
const MAX_INTERFACES: usize = 64;
/// Linux's IFNAMSIZ without the terminator.
const MAX_INTERFACE_NAME: usize = 15;
/// XMPP client-to-server (RFC 6120 section 14.7).
const XMPP_PORT: u16 = 5222;
/// STUN and TURN over UDP (RFC 8489 section 18.6).
const STUN_PORT: u16 = 3478;

const PORT_TEXT: &str = "a port, 1 to 65535";
const SERVER_TEXT: &str = "host:port, or an empty text for none";

/// Why a call cannot be carried out; the text says what to give instead and never repeats what was given as text.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RequestError {
    /// The JSON is something else.
    #[error("a call is a JSON object: give {{\"m\": \"get_state\"}} or the like")]
    NotAnObject,
    /// No `m`, or an empty one.
    #[error("the call names no method: give its name as text in \"m\"")]
    NoMethod,
    /// Not convertible.
    #[error("\"{key}\" has the wrong type: give {give}")]
    WrongType { key: &'static str, give: &'static str },
    /// Missing, null or empty, where something is needed.
    #[error("\"{key}\" is missing or empty: give {give}")]
    Missing { key: &'static str, give: &'static str },
    /// Text that cannot be read.
    #[error("\"{key}\" cannot be read: give {give}")]
    Malformed { key: &'static str, give: &'static str },
    /// A number out of range; a missing number counts as 0.
    #[error("\"{key}\" is {value}: give {give}")]
    OutOfRange { key: &'static str, value: i64, give: &'static str },
    /// Over a cap.
    #[error("\"{key}\" is too long: give at most {limit} {unit}")]
    TooLong { key: &'static str, limit: usize, unit: &'static str },
}

/// Reads a call of either door.
pub fn parse_request(json: &Value) -> Result<Request, RequestError> {
    let params = Params::of(json)?;
    match params.text("m", MAX_METHOD)? {
        "create_link" => create_link(params),
        "echo_reply" => Ok(Request::EchoReply),
        "echo_request" => Ok(Request::EchoRequest { message: params.text("msg", MAX_DATA)?.to_owned() }),
        "get_state" => Ok(Request::GetState { uid: params.optional_uid("uid")?, stats: params.flag("stats")? }),
        "register_svc" => register_service(params),
        "set_cb_endpoint" => set_callback_endpoint(params),
        "set_local_ip" => set_local_ip(params),
        "set_logging" => Ok(Request::SetLogging { level: params.int("logging", 0..=3, "0, 1, 2 or 3")? }),
        "set_network_ignore_list" => set_network_ignore_list(params),
        "set_remote_ip" => set_remote_ip(params),
        "set_switchmode" => Ok(Request::SetSwitchMode { enabled: params.flag("switchmode")? }),
        "set_translation" => set_translation(params),
        "set_trimpolicy" => Ok(Request::SetTrimPolicy { enabled: params.flag("trim_enabled")? }),
        "trim_link" => Ok(Request::TrimLink { uid: params.uid("uid")? }),
        "" if params.get("type").and_then(Value::as_str) == Some("echo_reply") => Ok(Request::EchoReply),
        "" => Err(RequestError::NoMethod),
        kind => peer_message(params, kind),
    }
}

fn register_service(params: Params) -> Result<Request, RequestError> {
    let username = params.required_text("username", MAX_TEXT, "a JID, user@domain")?.to_owned();
    let password = Secret(params.required_text("password", MAX_TEXT, "the account's password")?.to_owned());
    let host = params.required_text("host", MAX_TEXT, "the XMPP server's name or address")?.to_owned();
    let port = match params.int("port", 0..=65_535, PORT_TEXT)? {
        0 => XMPP_PORT,
        port => port,
    };
    Ok(Request::RegisterService { username, password, host, port })
}

fn set_local_ip(params: Params) -> Result<Request, RequestError> {
    let uid = params.uid("uid")?;
    let (ip4, ip4_text) = address(params, "ip4", "an IPv4 address")?;
    let (ip6, ip6_text) = ip6_address(params)?;
    let ip4_mask = params.int("ip4_mask", 1..=32, "a prefix length, 1 to 32")?;
    let ip6_mask = params.int("ip6_mask", 1..=128, "a prefix length, 1 to 128")?;
    let subnet_mask = match params.get("subnet_mask") {
        None => 32,
        Some(_) => params.int("subnet_mask", 1..=32, "a prefix length, 1 to 32; 32 = only this node")?,
    };
    Ok(Request::SetLocalIp(LocalIp { uid, ip4, ip4_text, ip6, ip6_text, ip4_mask, ip6_mask, subnet_mask }))
}

fn set_remote_ip(params: Params) -> Result<Request, RequestError> {
    let uid = params.uid("uid")?;
    let (ip4, ip4_text) = address(params, "ip4", "an IPv4 address")?;
    let (ip6, ip6_text) = ip6_address(params)?;
    Ok(Request::SetRemoteIp(RemoteIp { uid, ip4, ip4_text, ip6, ip6_text }))
}

fn address<T: FromStr>(params: Params, key: &'static str, give: &'static str) -> Result<(T, String), RequestError> {
    let text = params.required_text(key, MAX_TEXT, give)?;
    let address = text.parse().map_err(|_| RequestError::Malformed { key, give })?;
    Ok((address, text.to_owned()))
}

/// Controllers of 2015 mark a peer without addresses by `::1/128`: a full prefix length may follow.
fn ip6_address(params: Params) -> Result<(Ipv6Addr, String), RequestError> {
    let (key, give) = ("ip6", "an IPv6 address");
    let text = params.required_text(key, MAX_TEXT, give)?;
    let address = text.strip_suffix("/128").unwrap_or(text);
    let address = address.parse().map_err(|_| RequestError::Malformed { key, give })?;
    Ok((address, text.to_owned()))
}

fn create_link(params: Params) -> Result<Request, RequestError> {
    let fingerprint_text = params.text("fpr", MAX_TEXT)?.to_owned();
    let overlay = match params.int("overlay_id", 0..=1, "0 (the controller) or 1 (XMPP)")? {
        0_u8 => Overlay::Controller,
        _ => Overlay::Xmpp,
    };
    Ok(Request::CreateLink(CreateLink {
        uid: params.uid("uid")?,
        fingerprint: fingerprint_text.parse().ok(),
        fingerprint_text,
        overlay,
        stun: stun_server(params)?,
        turn: turn_server(params)?,
        // Without the key 2014 made a plain link; here only who asks for one gets it.
        security: if params.flag_or("sec", true)? { Security::Dtls } else { Security::None },
        cas: params.text("cas", MAX_DATA)?.to_owned(),
    }))
}

/// A text without a colon means no STUN, as in 2014.
fn stun_server(params: Params) -> Result<Option<String>, RequestError> {
    let text = params.text("stun", MAX_TEXT)?;
    if text.contains(':') { server("stun", text).map(Some) } else { Ok(None) }
}

/// TURN is used only if both the server and the user are given, as in 2014.
fn turn_server(params: Params) -> Result<Option<TurnServer>, RequestError> {
    let text = params.text("turn", MAX_TEXT)?;
    let username = params.text("turn_user", MAX_TEXT)?.to_owned();
    let password = Secret(params.text("turn_pass", MAX_TEXT)?.to_owned());
    if text.is_empty() || username.is_empty() {
        return Ok(None);
    }
    Ok(Some(TurnServer { address: server("turn", text)?, username, password }))
}

/// `host:port` with a usable port: the standard one where none or 0 is given; IPv6 literals in brackets.
fn server(key: &'static str, text: &str) -> Result<String, RequestError> {
    if let Ok(ip) = text.parse::<Ipv6Addr>() {
        return Ok(format!("[{ip}]:{STUN_PORT}"));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, port),
        _ => (text, "0"),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let known = match bare {
        Some(literal) => literal.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains([':', '[', ']']) && !host.contains(char::is_whitespace),
    };
    match port.parse::<u16>() {
        Ok(0) if known => Ok(format!("{host}:{STUN_PORT}")),
        Ok(port) if known => Ok(format!("{host}:{port}")),
        _ => Err(RequestError::Malformed { key, give: SERVER_TEXT }),
    }
}

fn set_callback_endpoint(params: Params) -> Result<Request, RequestError> {
    let ip = params.text("ip", MAX_TEXT)?.to_owned();
    let port = params.int("port", 0..=65_535, PORT_TEXT)?;
    let give = "an IP address, or \"::\" for the sender of this call";
    let address = if ip.is_empty() { None } else { Some(ip.parse::<IpAddr>()) };
    match address {
        None => {}
        Some(Ok(address)) if address.is_unspecified() || port != 0 => {}
        Some(Ok(_)) => return Err(RequestError::OutOfRange { key: "port", value: 0, give: PORT_TEXT }),
        Some(Err(_)) => return Err(RequestError::Malformed { key: "ip", give }),
    }
    Ok(Request::SetCallbackEndpoint { ip, port })
}

/// 2014 controllers say `translate`, the page says `translation`.
fn set_translation(params: Params) -> Result<Request, RequestError> {
    let key = if params.get("translate").is_some() { "translate" } else { "translation" };
    Ok(Request::SetTranslation { enabled: params.flag(key)? })
}

fn set_network_ignore_list(params: Params) -> Result<Request, RequestError> {
    let (key, give) = ("network_ignore_list", "an array of interface names of 1 to 15 bytes");
    let list = params.get(key).and_then(Value::as_array).ok_or(RequestError::WrongType { key, give })?;
    if list.len() > MAX_INTERFACES {
        return Err(RequestError::TooLong { key, limit: MAX_INTERFACES, unit: "entries" });
    }
    let names = list.iter().map(|name| {
        let name = name.as_str().ok_or(RequestError::WrongType { key, give })?;
        let fits = (1..=MAX_INTERFACE_NAME).contains(&name.len());
        if fits { Ok(name.to_owned()) } else { Err(RequestError::Malformed { key, give }) }
    });
    Ok(Request::SetNetworkIgnoreList { interfaces: names.collect::<Result<_, _>>()? })
}

/// Every other method is a message to a peer; its `overlay_id` was never looked at.
fn peer_message(params: Params, kind: &str) -> Result<Request, RequestError> {
    if kind.contains(char::is_control) {
        return Err(RequestError::Malformed { key: "m", give: "a method name without control characters" });
    }
    let (uid, data) = (params.uid("uid")?, params.text("data", MAX_DATA)?.to_owned());
    Ok(Request::PeerMessage { kind: kind.to_owned(), uid, data })
}
