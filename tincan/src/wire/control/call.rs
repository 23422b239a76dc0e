//! A [`Request`] as the JSON object a controller sends. Passwords are in it: it is for sockets, never for logs.

use serde_json::{Value, json};

use crate::link::Security;
use crate::wire::request::{CreateLink, LocalIp, Overlay, RemoteIp, Request, Secret};

/// The call that [`parse_request`](super::parse_request) reads as `request`.
#[must_use]
pub fn request_to_value(request: &Request) -> Value {
    match request {
        Request::RegisterService { username, password: Secret(password), host, port } => {
            json!({"m": "register_svc", "username": username, "password": password, "host": host, "port": port})
        }
        Request::SetLocalIp(local) => set_local_ip(local),
        Request::GetState { uid, stats } => {
            let uid = uid.map_or_else(String::new, |uid| uid.to_string());
            json!({"m": "get_state", "uid": uid, "stats": stats})
        }
        Request::CreateLink(link) => create_link(link),
        Request::SetRemoteIp(RemoteIp { uid, ip4: _, ip4_text, ip6: _, ip6_text }) => {
            json!({"m": "set_remote_ip", "uid": uid.to_string(), "ip4": ip4_text, "ip6": ip6_text})
        }
        Request::TrimLink { uid } => json!({"m": "trim_link", "uid": uid.to_string()}),
        Request::SetCallbackEndpoint { ip, port } => json!({"m": "set_cb_endpoint", "ip": ip, "port": port}),
        Request::SetLogging { level } => json!({"m": "set_logging", "logging": level}),
        Request::SetSwitchMode { enabled } => json!({"m": "set_switchmode", "switchmode": i32::from(*enabled)}),
        Request::SetTranslation { enabled } => json!({"m": "set_translation", "translate": i32::from(*enabled)}),
        Request::SetTrimPolicy { enabled } => json!({"m": "set_trimpolicy", "trim_enabled": enabled}),
        Request::SetNetworkIgnoreList { interfaces } => {
            json!({"m": "set_network_ignore_list", "network_ignore_list": interfaces})
        }
        Request::EchoRequest { message } => json!({"m": "echo_request", "msg": message}),
        Request::EchoReply => json!({"m": "echo_reply"}),
        Request::PeerMessage { kind, uid, data } => {
            json!({"m": kind, "overlay_id": 1, "uid": uid.to_string(), "data": data})
        }
    }
}

fn set_local_ip(local: &LocalIp) -> Value {
    let LocalIp { uid, ip4: _, ip4_text, ip6: _, ip6_text, ip4_mask, ip6_mask, subnet_mask } = local;
    json!({
        "m": "set_local_ip",
        "uid": uid.to_string(),
        "ip4": ip4_text,
        "ip6": ip6_text,
        "ip4_mask": ip4_mask,
        "ip6_mask": ip6_mask,
        "subnet_mask": subnet_mask,
    })
}

fn create_link(link: &CreateLink) -> Value {
    let CreateLink { uid, fingerprint_text, fingerprint: _, overlay, stun, turn, security, cas } = link;
    let (turn, turn_user, turn_pass) = match turn {
        Some(turn) => (turn.address.as_str(), turn.username.as_str(), turn.password.0.as_str()),
        None => ("", "", ""),
    };
    json!({
        "m": "create_link",
        "uid": uid.to_string(),
        "fpr": fingerprint_text,
        "overlay_id": match overlay {
            Overlay::Controller => 0,
            Overlay::Xmpp => 1,
        },
        "stun": stun.as_deref().unwrap_or(""),
        "turn": turn,
        "turn_user": turn_user,
        "turn_pass": turn_pass,
        "sec": *security == Security::Dtls,
        "cas": cas,
    })
}
