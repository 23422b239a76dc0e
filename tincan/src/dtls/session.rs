//! One link's DTLS session: handshake, records, close. Sans-IO: datagrams in, datagrams out, one timer.

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use boring::error::ErrorStack;
use boring::ssl::{self, ErrorCode, SslStream};
use boring_sys::{ERR_LIB_SSL, SSL_AD_REASON_OFFSET};

use super::identity::{Identity, PeerCheck};
use super::wire::{Shape, Wire};
use super::{DtlsError, ffi};
use crate::link::Role;
use crate::wire::fingerprint::Fingerprint;

/// Most bytes a record is longer than its plaintext: header 13, explicit nonce 8, tag 16 (RFC 5288; `ChaCha20` has no
/// explicit nonce, RFC 7905).
pub const MAX_RECORD_OVERHEAD: usize = 37;

/// Longest plaintext of one record in bytes (RFC 5246 section 6.2.1).
pub const MAX_PLAINTEXT: usize = 1 << 14;

/// Longest handshake datagram in bytes: passes every path that carries IPv6, with room for relays and tunnels.
const HANDSHAKE_MTU: u32 = 1200;

/// A handshake takes four datagrams; with a first timer of 100 ms this is nine attempts per flight.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);

const MIN_INITIAL_TIMEOUT: Duration = Duration::from_millis(50);
const MAX_INITIAL_TIMEOUT: Duration = Duration::from_millis(400);
const DEFAULT_INITIAL_TIMEOUT: Duration = Duration::from_millis(100);

/// A DTLS 1.2 session with one peer, known by its fingerprint.
///
/// ```text
/// Idle --start--> Handshaking --both fingerprints right--> Established
///                      |                                       |
///                      +--alert, wrong fingerprint, 30 s--> Ended <--close_notify, fatal alert, close()
/// ```
///
/// Before the handshake is over nothing on the wire is authenticated: random bytes are dropped, but who can send from
/// the peer's address (which ICE validated) and times it well can end the handshake with a made-up alert or handshake
/// message, as with every DTLS 1.2. Afterwards only the peer can end the session.
pub struct Session {
    stream: SslStream<Wire>,
    phase: Phase,
    events: VecDeque<SessionEvent>,
    plaintext: Vec<u8>,
    dropped: u64,
}

/// What the owner of a session must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// Both certificates have the fingerprints the controllers told.
    Established,
    /// The handshake did not finish in time; a fresh session may do better.
    TimedOut,
    /// The session is over and does not come back.
    Ended { reason: String },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Handshaking { deadline: Duration },
    Established,
    Ended,
}

impl Session {
    /// A session that waits for [`Session::start`]; the controlling side is the DTLS server.
    pub fn new(identity: &Identity, role: Role, expected: Fingerprint) -> Result<Self, DtlsError> {
        if expected.is_null() {
            return Err(DtlsError::NullFingerprint);
        }
        let mut ssl = identity.open(expected)?;
        ssl.set_mtu(HANDSHAKE_MTU)?;
        ffi::set_role(&mut ssl, role);
        Ok(Self {
            stream: SslStream::new(ssl, Wire::default())?,
            phase: Phase::Idle,
            events: VecDeque::new(),
            plaintext: Vec::new(),
            dropped: 0,
        })
    }

    /// Begins the handshake; the client queues its `ClientHello`. `rtt` is the path's round trip where ICE knows it, and
    /// sets the pace of repetitions. A second start changes nothing.
    pub fn start(&mut self, rtt: Option<Duration>) {
        if self.phase != Phase::Idle {
            return;
        }
        ffi::set_initial_timeout(self.stream.ssl_mut(), initial_timeout(rtt));
        self.phase = Phase::Handshaking { deadline: ffi::now() + HANDSHAKE_LIMIT };
        self.advance_handshake();
    }

    /// Feeds one datagram and delivers each application record in it, opened. An empty datagram is nothing; what cannot
    /// be opened is dropped and counted.
    pub fn receive(&mut self, datagram: &[u8], deliver: impl FnMut(&mut [u8])) {
        if datagram.is_empty() {
            return;
        }
        let shape = Shape::of(datagram);
        match self.phase {
            Phase::Idle | Phase::Ended => self.dropped += shape.whole + shape.damaged,
            Phase::Handshaking { .. } => {
                self.dropped += shape.damaged;
                self.stream.get_mut().feed(datagram);
                self.advance_handshake();
                self.open_records(datagram.len(), deliver);
            }
            Phase::Established => {
                let written = self.stream.get_ref().written();
                self.stream.get_mut().feed(datagram);
                let delivered = self.open_records(datagram.len(), deliver);
                // A repeated last flight delivers nothing, yet it is answered; the record that ends a session is heard.
                let answered = self.stream.get_ref().written() != written;
                if !answered && self.phase == Phase::Established {
                    self.dropped += (shape.whole + shape.damaged).saturating_sub(delivered);
                }
            }
        }
    }

    /// Appends one record to `out` and returns its length: at most [`MAX_RECORD_OVERHEAD`] more than the plaintext, and
    /// equal for plaintexts of equal length. An error leaves `out` as it was.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<usize, DtlsError> {
        if self.phase != Phase::Established {
            return Err(DtlsError::NotEstablished);
        }
        if plaintext.is_empty() || plaintext.len() > MAX_PLAINTEXT {
            return Err(DtlsError::PlaintextLength(plaintext.len()));
        }
        let before = out.len();
        mem::swap(out, self.stream.get_mut().sealed());
        let written = self.stream.ssl_write(plaintext);
        mem::swap(out, self.stream.get_mut().sealed());
        match written {
            Ok(_) => Ok(out.len() - before),
            Err(error) => Err(error.ssl_error().cloned().unwrap_or_else(ErrorStack::get).into()),
        }
    }

    /// Next handshake or alert datagram to send; take them until `None` after every other call.
    pub fn take_outgoing(&mut self) -> Option<Vec<u8>> {
        self.stream.get_mut().take_outgoing()
    }

    /// What happened since the last call, oldest first.
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// Time left until [`Session::handle_timeout`] must be called; ask again after every other call.
    pub fn timeout(&self) -> Option<Duration> {
        let Phase::Handshaking { deadline } = self.phase else { return None };
        let until_limit = deadline.saturating_sub(ffi::now());
        Some(ffi::timeout(self.stream.ssl()).map_or(until_limit, |flight| flight.min(until_limit)))
    }

    /// Repeats a flight that was not answered in time, or gives the handshake up after 30 s. Too early a call is harmless.
    pub fn handle_timeout(&mut self) {
        let Phase::Handshaking { deadline } = self.phase else { return };
        if ffi::now() >= deadline {
            self.phase = Phase::Ended;
            self.events.push_back(SessionEvent::TimedOut);
        } else if let Err(errors) = ffi::handle_timeout(self.stream.ssl_mut()) {
            self.end(format!("the DTLS handshake cannot go on: {errors}"));
        }
    }

    /// Ends the session from this side; queues `close_notify` if there is a peer who could understand it.
    pub fn close(&mut self) {
        if self.phase == Phase::Established {
            self.say_close_notify();
        }
        self.phase = Phase::Ended;
    }

    /// Records flow.
    pub fn is_established(&self) -> bool {
        self.phase == Phase::Established
    }

    /// Records and stray bytes that could not be opened: forged, replayed, damaged, or outside of the session's life.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn advance_handshake(&mut self) {
        match self.stream.do_handshake() {
            Ok(()) => {
                self.phase = Phase::Established;
                self.events.push_back(SessionEvent::Established);
            }
            Err(error) => self.handle_error(&error),
        }
    }

    /// Reads until the datagram is used up; returns how many records were delivered.
    fn open_records(&mut self, datagram_len: usize, mut deliver: impl FnMut(&mut [u8])) -> u64 {
        // A record's plaintext is shorter than the datagram that carries it, so one read always takes a whole record.
        if self.plaintext.len() < datagram_len {
            self.plaintext.resize(datagram_len, 0);
        }
        let mut delivered = 0;
        while self.phase == Phase::Established {
            match self.stream.ssl_read(&mut self.plaintext) {
                Ok(length) => {
                    delivered += 1;
                    deliver(&mut self.plaintext[..length]);
                }
                Err(error) if error.code() == ErrorCode::WANT_READ => break,
                Err(error) => self.handle_error(&error),
            }
        }
        delivered
    }

    fn handle_error(&mut self, error: &ssl::Error) {
        if error.code() == ErrorCode::WANT_READ {
            return;
        }
        if error.code() == ErrorCode::ZERO_RETURN {
            // RFC 5246 section 7.2.1: answer close_notify with the same.
            self.say_close_notify();
            self.end("closed by the peer".to_owned());
            return;
        }
        let mismatch = PeerCheck::of(self.stream.ssl()).and_then(PeerCheck::mismatch);
        self.end(mismatch.unwrap_or_else(|| describe(error)));
    }

    fn say_close_notify(&mut self) {
        if let Err(error) = self.stream.shutdown() {
            tracing::debug!(%error, "close_notify could not be sealed");
        }
    }

    fn end(&mut self, reason: String) {
        self.phase = Phase::Ended;
        self.events.push_back(SessionEvent::Ended { reason });
    }
}

/// Three round trips: an answer, a slow answer, and the signature in between.
fn initial_timeout(rtt: Option<Duration>) -> Duration {
    let wanted = rtt.map_or(DEFAULT_INITIAL_TIMEOUT, |rtt| rtt.saturating_mul(3));
    wanted.clamp(MIN_INITIAL_TIMEOUT, MAX_INITIAL_TIMEOUT)
}

/// The peer's alert by its name, everything else in the library's words. `BoringSSL` keeps alerts among its reason codes
/// from an offset on.
fn describe(error: &ssl::Error) -> String {
    let Some(stack) = error.ssl_error() else { return format!("DTLS failed: {error}") };
    for error in stack.errors() {
        let Some(reason) = error.library_reason(ERR_LIB_SSL) else { continue };
        if let Some(alert) = reason.checked_sub(SSL_AD_REASON_OFFSET).filter(|alert| *alert >= 0) {
            let name = error.reason().and_then(|name| name.split_once("_ALERT_"));
            return match name {
                Some((_, name)) => format!("the peer sent the alert {}", name.to_lowercase().replace('_', " ")),
                None => format!("the peer sent alert number {alert}"),
            };
        }
    }
    format!("DTLS failed: {stack}")
}
