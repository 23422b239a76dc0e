//! JSON-RPC 2.0 on the Unix socket: one JSON text per line, the methods of the Controller API plus `status` and
//! `counters`; every call that carries an id is answered.
//!
//! Batches (arrays) are refused: calls may simply follow each other on the connection.

use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::wire::answer::Answer;
use crate::wire::candidate::{kind_name, security_name};
use crate::wire::control::{self, METHODS, RequestError, parse_request, request_to_value};
use crate::wire::request::Request;
use crate::wire::state::{HostState, LinkState, PathState, PeerState, State};

const NOT_A_CALL: &str = "a call is an object: give {\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"status\"}";

/// A call, read.
#[derive(Clone, Debug, PartialEq)]
pub struct RpcCall {
    /// What the answer must carry; `None` = a JSON-RPC notification, which is carried out but not answered.
    pub id: Option<Value>,
    pub method: RpcMethod,
}

/// What is called.
#[derive(Clone, Debug, PartialEq)]
pub enum RpcMethod {
    /// A method of the Controller API.
    Node(Request),
    /// `status`: the state with stats of all peers, and the counters.
    Status,
    /// `counters`.
    Counters,
}

/// A line that is no call: answer it with [`failure`].
#[derive(Clone, Debug, PartialEq)]
pub struct RpcFailure {
    /// Null where the id could not be read, as the specification wants; `None` = the caller wants no answer.
    pub id: Option<Value>,
    pub error: RpcError,
}

/// An error of the JSON-RPC 2.0 specification, section 5.1, or ours.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RpcError {
    /// The line is not one JSON text.
    #[error("not JSON: {0}")]
    Parse(String),
    /// JSON, but no call.
    #[error("{0}")]
    InvalidRequest(&'static str),
    /// No such method; on this door unknown methods are no peer messages.
    #[error("no such method; peer messages go by con_req or send_msg")]
    UnknownMethod,
    /// The parameters do not fit the method.
    #[error("{0}")]
    InvalidParams(#[from] RequestError),
    /// `params` is no object.
    #[error("parameters go by name: give \"params\" as an object")]
    PositionalParams,
    /// The daemon failed, not the caller.
    #[error("{0}")]
    Internal(String),
    /// Understood, but cannot be done: why, and what to do.
    #[error("{0}")]
    Refused(String),
}

impl RpcError {
    /// The number of section 5.1; -32000 for [`RpcError::Refused`].
    #[must_use]
    pub fn code(&self) -> i32 {
        match self {
            Self::Parse(_) => -32700,
            Self::InvalidRequest(_) => -32600,
            Self::UnknownMethod => -32601,
            Self::InvalidParams(_) | Self::PositionalParams => -32602,
            Self::Internal(_) => -32603,
            Self::Refused(_) => -32000,
        }
    }
}

/// Reads one line, with or without its line end.
pub fn parse_call(line: &[u8]) -> Result<RpcCall, RpcFailure> {
    let json: Value = serde_json::from_slice(line)
        .map_err(|error| RpcFailure { id: Some(Value::Null), error: RpcError::Parse(error.to_string()) })?;
    let Value::Object(mut call) = json else {
        let why = if json.is_array() { "batches are not supported: send one call per line" } else { NOT_A_CALL };
        return Err(RpcFailure { id: Some(Value::Null), error: RpcError::InvalidRequest(why) });
    };
    let id = match call.remove("id") {
        None => None,
        Some(id @ (Value::Null | Value::String(_) | Value::Number(_))) => Some(id),
        Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
            let error = RpcError::InvalidRequest("the id is a text or a number");
            return Err(RpcFailure { id: Some(Value::Null), error });
        }
    };
    match parse_method(call) {
        Ok(method) => Ok(RpcCall { id, method }),
        // Without a valid call there is no telling whether an answer is wanted: the specification says it is.
        Err(error @ RpcError::InvalidRequest(_)) => Err(RpcFailure { id: id.or(Some(Value::Null)), error }),
        Err(error) => Err(RpcFailure { id, error }),
    }
}

fn parse_method(mut call: Map<String, Value>) -> Result<RpcMethod, RpcError> {
    if call.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Err(RpcError::InvalidRequest("\"jsonrpc\" must be \"2.0\""));
    }
    let Some(Value::String(method)) = call.remove("method") else {
        return Err(RpcError::InvalidRequest("\"method\" must be the method's name"));
    };
    let mut params = match call.remove("params") {
        None => Map::new(),
        Some(Value::Object(params)) => params,
        Some(_) => return Err(RpcError::PositionalParams),
    };
    match method.as_str() {
        "status" => Ok(RpcMethod::Status),
        "counters" => Ok(RpcMethod::Counters),
        known if METHODS.contains(&known) => {
            params.insert("m".to_owned(), Value::String(method));
            Ok(RpcMethod::Node(parse_request(&Value::Object(params))?))
        }
        _ => Err(RpcError::UnknownMethod),
    }
}

/// The line that answers a call.
#[must_use]
pub fn answer(id: &Value, answer: &Answer) -> String {
    match answer {
        Answer::Done => success(id, &json!({"done": true})),
        Answer::Kept(kept) => success(id, &json!({"done": false, "kept": kept})),
        Answer::State(state) => success(id, &state_report(state)),
        Answer::Echo(message) => success(id, &json!({"msg": message})),
        Answer::Refused(reason) => failure(id, &RpcError::Refused(reason.clone())),
    }
}

/// The line that answers a call with an error.
#[must_use]
pub fn failure(id: &Value, error: &RpcError) -> String {
    line(&json!({"jsonrpc": "2.0", "id": id, "error": {"code": error.code(), "message": error.to_string()}}))
}

/// The line that answers `status`.
#[must_use]
pub fn status(id: &Value, state: &State, host: &HostState, counters: &[(&str, u64)]) -> String {
    let HostState { tap, secured_port, plain_port, fast_path, service } = host;
    let mut report = state_report(state);
    report["host"] = json!({
        "tap": tap, "secured_port": secured_port, "plain_port": plain_port, "fast_path": fast_path,
        "service": service,
    });
    report["counters"] = counters_report(counters);
    success(id, &report)
}

/// The line that answers `counters`: an object with a number per name.
#[must_use]
pub fn counters(id: &Value, counters: &[(&str, u64)]) -> String {
    success(id, &counters_report(counters))
}

/// The line a client sends to make `call`; passwords are in it.
#[must_use]
pub fn call(id: u64, method: &RpcMethod) -> String {
    let mut params = match method {
        RpcMethod::Node(request) => request_to_value(request),
        RpcMethod::Status => json!({"m": "status"}),
        RpcMethod::Counters => json!({"m": "counters"}),
    };
    let method = params["m"].take();
    if let Value::Object(params) = &mut params {
        params.remove("m");
    }
    line(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
}

fn success(id: &Value, result: &Value) -> String {
    line(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

/// Compact JSON has no line ends of its own: they are escaped in texts.
fn line(json: &Value) -> String {
    format!("{json}\n")
}

fn counters_report(counters: &[(&str, u64)]) -> Value {
    counters.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect::<Map<_, _>>().into()
}

/// Everything known, whether `stats` were asked for or not: they are the 2014 form of `path`.
fn state_report(state: &State) -> Value {
    let State { local, peers, with_stats } = state;
    let peers: Vec<Value> = peers.iter().map(|peer| peer_report(peer, *with_stats)).collect();
    json!({"local_state": control::local_state(local), "peers": peers})
}

/// The members of `peer_state`, and all of the link.
fn peer_report(peer: &PeerState, with_stats: bool) -> Value {
    let mut report = control::peer_state(peer, with_stats);
    let Some(link) = &peer.link else { return report };
    let LinkState { fingerprint: _, online: _, security, age, setup, phase, reason, offer, engine, path } = link;
    report["security"] = json!(security_name(*security));
    report["age_ms"] = json!(control::millis(*age));
    report["setup_ms"] = json!(setup.map(control::millis));
    report["phase"] = json!(phase);
    report["reason"] = json!(reason);
    report["offer"] = json!(offer);
    report["engine"] = json!(engine);
    report["path"] = path.as_ref().map_or(Value::Null, path_report);
    report
}

fn path_report(path: &PathState) -> Value {
    let PathState {
        local_addr,
        local_kind,
        remote_addr,
        remote_kind,
        rtt,
        traffic,
        sent_per_second,
        received_per_second,
        new: _,
    } = path;
    json!({
        "local_addr": local_addr.to_string(),
        "local_kind": kind_name(*local_kind),
        "remote_addr": remote_addr.to_string(),
        "remote_kind": kind_name(*remote_kind),
        "rtt_us": rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        "sent_bytes": traffic.sent_bytes,
        "received_bytes": traffic.received_bytes,
        "sent_frames": traffic.sent_frames,
        "received_frames": traffic.received_frames,
        "dropped": traffic.dropped,
        "sent_bytes_per_second": sent_per_second,
        "received_bytes_per_second": received_per_second,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::link::{CandidateKind, Security, Traffic};
    use crate::wire::control::recorded::samples;
    use crate::wire::state::LocalState;
    use crate::wire::uid::Uid;

    use super::*;

    const PEER: &str = "c5158e6c1b708a72c6c28485f4b5856d841f1d28";

    fn read(line: &str) -> Value {
        assert_eq!(line.find('\n'), Some(line.len() - 1), "one line: {line:?}");
        serde_json::from_str(line).unwrap()
    }

    /// The answer a door gives to a line that is no call.
    fn refusal(line: &str) -> Option<Value> {
        let RpcFailure { id, error } = parse_call(line.as_bytes()).unwrap_err();
        id.map(|id| read(&failure(&id, &error)))
    }

    fn state() -> State {
        let path = PathState {
            local_addr: "192.0.2.1:40000".parse().unwrap(),
            local_kind: CandidateKind::Relayed,
            remote_addr: "203.0.113.9:51002".parse().unwrap(),
            remote_kind: CandidateKind::ServerReflexive,
            rtt: Some(Duration::from_micros(1234)),
            traffic: Traffic { sent_bytes: 1, received_bytes: 2, sent_frames: 3, received_frames: 4, dropped: 5 },
            sent_per_second: 6,
            received_per_second: 7,
            new: false,
        };
        let link = LinkState {
            fingerprint: "14:15".to_owned(),
            online: true,
            security: Security::Dtls,
            age: Duration::from_millis(2500),
            setup: Some(Duration::from_millis(420)),
            phase: "online",
            reason: "relayed: no direct pair works".to_owned(),
            offer: None,
            engine: "user",
            path: Some(path),
        };
        let peer = PeerState {
            uid: PEER.parse().unwrap(),
            addresses: Some(("172.16.0.3".to_owned(), "fd50::3".to_owned())),
            presence_age: Duration::from_secs(5),
            link: Some(link),
        };
        let alone = PeerState { uid: Uid::ZERO, addresses: None, presence_age: Duration::ZERO, link: None };
        let local = LocalState {
            uid: None,
            ip4: "172.31.0.100".to_owned(),
            ip6: String::new(),
            fingerprint: "00:00".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
        };
        State { local, peers: vec![alone, peer], with_stats: false }
    }

    #[test]
    fn every_call_a_client_writes_is_read_by_the_door() {
        let methods = samples().into_iter().map(RpcMethod::Node).chain([RpcMethod::Status, RpcMethod::Counters]);
        for method in methods {
            let text = call(7, &method);
            assert_eq!(parse_call(text.as_bytes()), Ok(RpcCall { id: Some(json!(7)), method }), "{text}");
        }
    }

    #[test]
    fn ids_come_back_as_given_and_calls_without_one_want_no_answer() {
        for id in [json!(1), json!("a"), json!(-2.5), Value::Null] {
            let text = json!({"jsonrpc": "2.0", "id": id, "method": "counters"}).to_string();
            assert_eq!(parse_call(text.as_bytes()), Ok(RpcCall { id: Some(id), method: RpcMethod::Counters }));
        }
        let text = r#"{"jsonrpc": "2.0", "method": "status"}"#;
        assert_eq!(parse_call(text.as_bytes()), Ok(RpcCall { id: None, method: RpcMethod::Status }));
        assert_eq!(refusal(r#"{"jsonrpc": "2.0", "method": "nonsense"}"#), None);
    }

    #[test]
    fn every_kind_of_bad_line_has_its_code() {
        for (line, code, id) in [
            ("", -32700, Value::Null),
            ("{", -32700, Value::Null),
            (r#"{"jsonrpc": "2.0", "id": 1, "method": "status"} x"#, -32700, Value::Null),
            ("[]", -32600, Value::Null),
            (r#"[{"jsonrpc": "2.0", "id": 1, "method": "status"}]"#, -32600, Value::Null),
            ("1", -32600, Value::Null),
            ("{}", -32600, Value::Null),
            (r#"{"id": 1, "method": "status"}"#, -32600, json!(1)),
            (r#"{"jsonrpc": "1.0", "id": 1, "method": "status"}"#, -32600, json!(1)),
            (r#"{"jsonrpc": "2.0", "id": 1, "method": 1}"#, -32600, json!(1)),
            (r#"{"jsonrpc": "2.0", "id": [], "method": "status"}"#, -32600, Value::Null),
            (r#"{"jsonrpc": "2.0", "id": 1, "method": "chat", "params": {}}"#, -32601, json!(1)),
            (r#"{"jsonrpc": "2.0", "id": 1, "method": ""}"#, -32601, json!(1)),
            (r#"{"jsonrpc": "2.0", "id": 1, "method": "trim_link"}"#, -32602, json!(1)),
            (r#"{"jsonrpc": "2.0", "id": 1, "method": "trim_link", "params": ["x"]}"#, -32602, json!(1)),
            (r#"{"jsonrpc": "2.0", "id": 1, "method": "set_logging", "params": {"logging": 9}}"#, -32602, json!(1)),
        ] {
            let answer = refusal(line).unwrap();
            assert_eq!((&answer["error"]["code"], &answer["id"]), (&json!(code), &id), "{line}");
            assert_eq!(answer["jsonrpc"], "2.0");
            assert!(answer.get("result").is_none());
        }
        assert_eq!(RpcError::Internal(String::new()).code(), -32603);
    }

    #[test]
    fn a_method_inside_the_parameters_cannot_replace_the_one_called() {
        let text =
            r#"{"jsonrpc": "2.0", "id": 1, "method": "set_logging", "params": {"m": "trim_link", "logging": 2}}"#;
        let method = RpcMethod::Node(Request::SetLogging { level: 2 });
        assert_eq!(parse_call(text.as_bytes()), Ok(RpcCall { id: Some(json!(1)), method }));
    }

    #[test]
    fn results_say_what_was_done() {
        let id = json!("a");
        for (given, result) in [
            (Answer::Done, json!({"done": true})),
            (Answer::Kept("the first set_local_ip"), json!({"done": false, "kept": "the first set_local_ip"})),
            (Answer::Echo("a\nb".to_owned()), json!({"msg": "a\nb"})),
        ] {
            assert_eq!(read(&answer(&id, &given)), json!({"jsonrpc": "2.0", "id": "a", "result": result}));
        }
        assert_eq!(
            read(&answer(&id, &Answer::Refused("no peer".to_owned()))),
            json!({"jsonrpc": "2.0", "id": "a", "error": {"code": -32000, "message": "no peer"}})
        );
    }

    #[test]
    fn the_state_holds_everything_about_links_and_paths() {
        let text = answer(&json!(1), &Answer::State(Box::new(state())));
        let expected = json!({
            "local_state": {
                "type": "local_state", "_uid": "", "_ip4": "172.31.0.100", "_ip6": "", "_fpr": "00:00",
                "_mac": "02:00:00:00:00:01",
            },
            "peers": [
                {"type": "peer_state", "uid": Uid::ZERO.to_string(), "status": "offline", "xmpp_time": 0},
                {
                    "type": "peer_state", "uid": PEER, "status": "online", "xmpp_time": 5, "ip4": "172.16.0.3",
                    "ip6": "fd50::3", "fpr": "14:15", "last_time": 2, "security": "dtls", "age_ms": 2500,
                    "setup_ms": 420, "phase": "online", "reason": "relayed: no direct pair works", "offer": null, "engine": "user",
                    "path": {
                        "local_addr": "192.0.2.1:40000", "local_kind": "relay",
                        "remote_addr": "203.0.113.9:51002", "remote_kind": "stun", "rtt_us": 1234,
                        "sent_bytes": 1, "received_bytes": 2, "sent_frames": 3, "received_frames": 4, "dropped": 5,
                        "sent_bytes_per_second": 6, "received_bytes_per_second": 7,
                    },
                },
            ],
        });
        assert_eq!(read(&text)["result"], expected);
    }

    #[test]
    fn a_link_that_is_not_up_shows_its_phase_and_reason() {
        let mut state = state();
        let link = state.peers[1].link.as_mut().unwrap();
        (link.online, link.setup, link.path, link.phase) = (false, None, None, "checking");
        let report = &read(&answer(&json!(1), &Answer::State(Box::new(state))))["result"]["peers"][1];
        assert_eq!((&report["phase"], &report["status"]), (&json!("checking"), &json!("offline")));
        assert_eq!((&report["path"], &report["setup_ms"]), (&Value::Null, &Value::Null));
        assert_eq!(report["security"], "dtls");
    }

    #[test]
    fn status_is_the_state_and_the_counters() {
        let list = [("delivered", 3), ("no_route", u64::MAX)];
        let expected = json!({"delivered": 3, "no_route": u64::MAX});
        let host = HostState {
            tap: "ipop".into(),
            secured_port: 1,
            plain_port: 2,
            fast_path: "off".into(),
            service: "x".into(),
        };
        let report = read(&status(&json!(1), &state(), &host, &list));
        let expected_host =
            json!({"tap": "ipop", "secured_port": 1, "plain_port": 2, "fast_path": "off", "service": "x"});
        assert_eq!(report["result"]["host"], expected_host);
        assert_eq!(report["result"]["counters"], expected);
        assert_eq!(report["result"]["peers"][1]["uid"], PEER);
        assert_eq!(read(&counters(&json!(1), &list))["result"], expected);
    }
}
