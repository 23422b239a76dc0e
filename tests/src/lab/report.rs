//! What the lab says: lines for people, one object for machines.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::controller::{Node, Peer};
use crate::lab::millis;

/// Where lines go: with `--json`, standard output is the object's alone.
pub(super) struct Voice {
    pub(super) json: bool,
}

impl Voice {
    pub(super) fn say(&self, line: &str) {
        if self.json { eprintln!("{line}") } else { println!("{line}") }
    }

    pub(super) fn conclude(&self, ok: bool, reports: &[LinkReport]) {
        self.say("lab: everything is removed");
        if self.json {
            println!("{}", summary(ok, reports));
        }
    }
}

/// The object of `--json`.
pub(super) fn summary(ok: bool, reports: &[LinkReport]) -> Value {
    let links: Vec<Value> = reports.iter().map(LinkReport::to_json).collect();
    json!({"ok": ok, "links": links})
}

/// Figures of one link.
#[derive(Clone, Debug)]
pub(super) struct LinkReport {
    pub(super) name: &'static str,
    pub(super) status: String,
    pub(super) security: String,
    pub(super) path: String,
    pub(super) engine: String,
    pub(super) setup: Option<Duration>,
    pub(super) ping_sent: u32,
    pub(super) ping_lost: u32,
    pub(super) round_trip: Option<Duration>,
    pub(super) tcp_gbps: Option<f64>,
    /// Of the partner's frames, how many its user-space engine moved, percent; kernel and engine count super-frames once.
    user_engine_percent: Option<f64>,
    sent_bytes: u64,
    received_bytes: u64,
}

impl LinkReport {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            status: "offline".to_owned(),
            security: String::new(),
            path: String::new(),
            engine: String::new(),
            setup: None,
            ping_sent: 0,
            ping_lost: 0,
            round_trip: None,
            tcp_gbps: None,
            user_engine_percent: None,
            sent_bytes: 0,
            received_bytes: 0,
        }
    }

    /// Takes over what a daemon reports.
    pub(super) fn update(&mut self, peer: &Peer) {
        peer.text("status").clone_into(&mut self.status);
        peer.text("security").clone_into(&mut self.security);
        peer.text("engine").clone_into(&mut self.engine);
        let (_, remote_kind) = peer.path_kinds();
        // The wire calls a host candidate `local`.
        (if remote_kind == "local" { "host" } else { remote_kind }).clone_into(&mut self.path);
        self.sent_bytes = peer.path_number("sent_bytes");
        self.received_bytes = peer.path_number("received_bytes");
    }

    /// Takes over where the partner's frames went: it has no other link.
    pub(super) fn update_engines(&mut self, partner: &Node) -> Result<()> {
        let count = |names: [&str; 2]| -> Result<u64> { Ok(partner.counter(names[0])? + partner.counter(names[1])?) };
        let (user, kernel) = (count(["sent", "delivered"])?, count(["kernel_sent", "kernel_delivered"])?);
        self.user_engine_percent = percent(user, user + kernel);
        Ok(())
    }

    pub(super) fn is_up(&self) -> bool {
        self.status == "online"
    }

    /// Up, pinged, and nothing lost.
    pub(super) fn is_good(&self) -> bool {
        self.is_up() && self.ping_sent > 0 && self.ping_lost == 0
    }

    /// One line of live figures.
    pub(super) fn line(&self) -> String {
        let Self { name, status, ping_sent, ping_lost, round_trip, sent_bytes, received_bytes, .. } = self;
        let round_trip = round_trip.map_or_else(|| "no answer".to_owned(), |best| format!("{:.2} ms", millis(best)));
        format!(
            "{name:8} {status}  ping {round_trip}, {ping_lost} of {ping_sent} lost  sent {:.1} MB  received {:.1} MB",
            megabytes(*sent_bytes),
            megabytes(*received_bytes)
        )
    }

    fn to_json(&self) -> Value {
        json!({
            "name": self.name, "status": self.status, "security": self.security, "path": self.path,
            "engine": self.engine, "setup_ms": self.setup.map(|setup| (millis(setup) * 10.0).round() / 10.0),
            "user_engine_percent": self.user_engine_percent, "ping_sent": self.ping_sent, "ping_lost": self.ping_lost,
            "tcp_gbps": self.tcp_gbps.map(|gbps| (gbps * 100.0).round() / 100.0),
        })
    }
}

/// With three digits; `None` of nothing.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| (part as f64 / whole as f64 * 1e5).round() / 1e3)
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
