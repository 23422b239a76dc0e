//! Two sessions wired together in virtual time.

use std::time::Duration;

use boring::ssl::{Ssl, SslContext, SslContextBuilder, SslMethod, SslStream, SslVersion};

use super::ffi::{self, VIRTUAL_NOW};
use super::wire::Wire;
use super::{DtlsError, Identity, MAX_PLAINTEXT, MAX_RECORD_OVERHEAD, Session, SessionEvent};
use crate::link::Role;
use crate::wire::fingerprint::{Fingerprint, FingerprintKind};
use crate::wire::uid::Uid;

/// One session and what came out of it.
struct End {
    session: Session,
    delivered: Vec<Vec<u8>>,
    events: Vec<SessionEvent>,
}

/// A controlled (client) and a controlling (server) end on one clock.
struct Pair {
    client: End,
    server: End,
}

impl End {
    fn new(identity: &Identity, role: Role, expected: Fingerprint) -> Self {
        let session = Session::new(identity, role, expected).unwrap();
        Self { session, delivered: Vec::new(), events: Vec::new() }
    }

    fn receive(&mut self, datagram: &[u8]) {
        let Self { session, delivered, events } = self;
        session.receive(datagram, |plaintext| delivered.push(plaintext.to_vec()));
        events.extend(std::iter::from_fn(|| session.poll_event()));
    }

    fn handle_timeout(&mut self) {
        self.session.handle_timeout();
        self.events.extend(std::iter::from_fn(|| self.session.poll_event()));
    }

    fn seal(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        assert_eq!(self.session.seal(plaintext, &mut record).unwrap(), record.len());
        record
    }

    fn end_reason(&self) -> Option<&str> {
        self.events.iter().find_map(|event| match event {
            SessionEvent::Established | SessionEvent::TimedOut => None,
            SessionEvent::Ended { reason } => Some(reason.as_str()),
        })
    }
}

impl Pair {
    /// Both know each other by fingerprints of this kind; neither has started.
    fn new(kind: FingerprintKind) -> Self {
        let (mine, theirs) = (identity(1), identity(2));
        Self::with(&mine, theirs.fingerprint(kind), &theirs, mine.fingerprint(kind))
    }

    fn with(client: &Identity, of_server: Fingerprint, server: &Identity, of_client: Fingerprint) -> Self {
        VIRTUAL_NOW.set(Some(Duration::ZERO));
        Self {
            client: End::new(client, Role::Controlled, of_server),
            server: End::new(server, Role::Controlling, of_client),
        }
    }

    fn established() -> Self {
        let mut pair = Self::new(FingerprintKind::Sha256);
        pair.start();
        pair.exchange(|_| true);
        pair.assert_established();
        pair
    }

    fn start(&mut self) {
        self.client.session.start(None);
        self.server.session.start(None);
    }

    /// Carries the datagrams that `passes` lets through until neither end has more to say.
    fn exchange(&mut self, mut passes: impl FnMut(&[u8]) -> bool) {
        loop {
            if let Some(datagram) = self.client.session.take_outgoing() {
                if passes(&datagram) {
                    self.server.receive(&datagram);
                }
            } else if let Some(datagram) = self.server.session.take_outgoing() {
                if passes(&datagram) {
                    self.client.receive(&datagram);
                }
            } else {
                return;
            }
        }
    }

    /// Lets the time pass until the next timer of either end; false if none runs.
    fn wait(&mut self) -> bool {
        let timers = [self.client.session.timeout(), self.server.session.timeout()];
        let Some(next) = timers.into_iter().flatten().min() else { return false };
        VIRTUAL_NOW.set(Some(now() + next));
        self.client.handle_timeout();
        self.server.handle_timeout();
        true
    }

    fn assert_established(&self) {
        for end in [&self.client, &self.server] {
            assert_eq!(end.events, [SessionEvent::Established]);
            assert!(end.session.is_established());
            assert_eq!(end.session.timeout(), None);
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        VIRTUAL_NOW.set(None);
    }
}

/// A repeatable source of bytes (xorshift64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> usize {
        usize::try_from(self.next() % limit).unwrap()
    }

    /// Up to 300 bytes; every second one begins as a DTLS record of version 1.2 does.
    fn datagram(&mut self) -> Vec<u8> {
        let length = self.below(300);
        let mut datagram: Vec<u8> = (0..length).map(|_| self.next().to_le_bytes()[3]).collect();
        if self.next().is_multiple_of(2) && datagram.len() > 3 {
            datagram[0] = 20 + self.next().to_le_bytes()[2] % 4;
            datagram[1..3].copy_from_slice(&[254, 253]);
        }
        datagram
    }
}

fn identity(uid: u8) -> Identity {
    Identity::create(Uid::new([uid; 20])).unwrap()
}

fn now() -> Duration {
    VIRTUAL_NOW.get().unwrap()
}

/// A record in the clear (epoch 0) as anybody can make it.
fn forged(content_type: u8, number: u8, body: &[u8]) -> Vec<u8> {
    let mut record = vec![content_type, 254, 253, 0, 0, 0, 0, 0, 0, 0, number, 0, u8::try_from(body.len()).unwrap()];
    record.extend_from_slice(body);
    record
}

#[test]
fn a_session_can_move_to_another_thread() {
    fn require_send<T: Send>() {}
    require_send::<Session>();
    require_send::<Identity>();
}

#[test]
fn records_flow_both_ways_after_a_handshake_by_either_kind_of_fingerprint() {
    for kind in [FingerprintKind::Sha256, FingerprintKind::Sha1] {
        let mut pair = Pair::new(kind);
        pair.start();
        pair.exchange(|datagram| {
            assert!(datagram.len() <= 1200, "{}", datagram.len());
            true
        });
        pair.assert_established();

        let record = pair.client.seal(b"to the server");
        pair.server.receive(&record);
        let record = pair.server.seal(b"to the client");
        pair.client.receive(&record);
        assert_eq!(pair.server.delivered, [b"to the server"]);
        assert_eq!(pair.client.delivered, [b"to the client"]);
        assert_eq!(pair.client.session.dropped() + pair.server.session.dropped(), 0);
    }
}

#[test]
fn the_controlled_side_speaks_first_and_only_once_started() {
    let mut pair = Pair::new(FingerprintKind::Sha256);
    assert_eq!(pair.client.session.take_outgoing(), None);
    assert_eq!(pair.client.session.timeout(), None);
    pair.start();
    assert_eq!(pair.server.session.take_outgoing(), None);
    let hello = pair.client.session.take_outgoing().unwrap();
    assert_eq!((hello[0], hello[13]), (22, 1), "a handshake record with a ClientHello");
    assert_eq!(pair.client.session.take_outgoing(), None);
    pair.client.session.start(None);
    assert_eq!(pair.client.session.take_outgoing(), None, "a second start changes nothing");
}

#[test]
fn the_first_timer_is_three_round_trips_within_bounds() {
    for (rtt, expected) in [(None, 100), (Some(1), 50), (Some(40), 120), (Some(2_000), 400)] {
        let mut pair = Pair::new(FingerprintKind::Sha256);
        pair.client.session.start(rtt.map(Duration::from_millis));
        assert_eq!(pair.client.session.timeout(), Some(Duration::from_millis(expected)), "{rtt:?}");
    }
}

#[test]
fn any_one_lost_datagram_of_the_handshake_is_repeated() {
    for lost in 0..4 {
        let mut pair = Pair::new(FingerprintKind::Sha256);
        pair.start();
        let mut number = 0;
        let mut passes = |_: &[u8]| {
            number += 1;
            number != lost + 1
        };
        pair.exchange(&mut passes);
        assert!(!pair.client.session.is_established(), "datagram {lost} is not needed");
        while pair.wait() {
            pair.exchange(&mut passes);
        }
        pair.assert_established();
        assert!(now() < Duration::from_millis(250), "datagram {lost}: {:?}", now());
    }
}

#[test]
fn an_established_server_answers_a_repeated_last_flight() {
    let mut pair = Pair::new(FingerprintKind::Sha256);
    pair.start();
    let mut number = 0;
    pair.exchange(|_| {
        number += 1;
        number != 4
    });
    assert!(pair.server.session.is_established());
    assert!(!pair.client.session.is_established());
    assert!(pair.wait());
    pair.exchange(|_| true);
    pair.assert_established();
    assert_eq!(pair.server.session.dropped(), 0, "the repeated flight was answered, not dropped");
}

#[test]
fn handshakes_end_well_where_three_of_ten_datagrams_are_lost() {
    let mut slowest = Duration::ZERO;
    for seed in 1..=100 {
        let mut noise = Noise(seed * 0x9E37_79B9);
        let mut pair = Pair::new(FingerprintKind::Sha256);
        pair.start();
        let mut passes = |_: &[u8]| noise.below(10) >= 3;
        pair.exchange(&mut passes);
        while pair.wait() {
            pair.exchange(&mut passes);
        }
        assert_eq!(pair.client.events, [SessionEvent::Established], "seed {seed}");
        assert_eq!(pair.server.events, [SessionEvent::Established], "seed {seed}");
        slowest = slowest.max(now());
    }
    assert!(slowest < Duration::from_secs(30), "{slowest:?}");
}

#[test]
fn a_handshake_nobody_answers_ends_after_30_seconds() {
    let mut pair = Pair::new(FingerprintKind::Sha256);
    pair.start();
    let mut attempts = 0;
    let mut count = |_: &[u8]| {
        attempts += 1;
        false
    };
    pair.exchange(&mut count);
    while pair.wait() {
        pair.exchange(&mut count);
    }
    assert_eq!(now(), Duration::from_secs(30));
    assert_eq!(attempts, 9);
    for end in [&pair.client, &pair.server] {
        assert_eq!(end.events, [SessionEvent::TimedOut]);
        assert!(!end.session.is_established());
    }
}

#[test]
fn a_server_with_another_certificate_gets_and_delivers_nothing() {
    let (mine, theirs, third) = (identity(1), identity(2), identity(3));
    let kind = FingerprintKind::Sha256;
    let mut pair = Pair::with(&mine, third.fingerprint(kind), &theirs, mine.fingerprint(kind));
    pair.start();
    pair.exchange(|_| true);
    let reason = format!(
        "the peer's certificate has fingerprint {}, create_link said {}",
        theirs.fingerprint(kind),
        third.fingerprint(kind)
    );
    assert_eq!(pair.client.events, [SessionEvent::Ended { reason }]);
    let reason = "the peer sent the alert bad certificate".to_owned();
    assert_eq!(pair.server.events, [SessionEvent::Ended { reason }]);
    assert_no_records(pair);
}

#[test]
fn a_client_with_another_certificate_gets_and_delivers_nothing() {
    let (mine, theirs, third) = (identity(1), identity(2), identity(3));
    let kind = FingerprintKind::Sha1;
    let mut pair = Pair::with(&mine, theirs.fingerprint(kind), &theirs, third.fingerprint(kind));
    pair.start();
    pair.exchange(|_| true);
    let reason = format!(
        "the peer's certificate has fingerprint {}, create_link said {}",
        mine.fingerprint(kind),
        third.fingerprint(kind)
    );
    assert_eq!(pair.server.events, [SessionEvent::Ended { reason }]);
    let reason = "the peer sent the alert bad certificate".to_owned();
    assert_eq!(pair.client.events, [SessionEvent::Ended { reason }]);
    assert_no_records(pair);
}

fn assert_no_records(mut pair: Pair) {
    for end in [&mut pair.client, &mut pair.server] {
        let mut out = vec![1, 2, 3];
        assert!(matches!(end.session.seal(b"secret", &mut out), Err(DtlsError::NotEstablished)));
        assert_eq!(out, [1, 2, 3]);
        assert_eq!(end.delivered, Vec::<Vec<u8>>::new());
        assert_eq!(end.session.timeout(), None);
    }
}

#[test]
fn the_null_fingerprint_secures_nothing() {
    for kind in [FingerprintKind::Sha256, FingerprintKind::Sha1] {
        let session = Session::new(&identity(1), Role::Controlled, Fingerprint::null(kind));
        assert!(matches!(session, Err(DtlsError::NullFingerprint)));
    }
}

#[test]
fn seal_appends_exactly_one_record_of_bounded_length() {
    let mut pair = Pair::established();
    let mut burst = b"before".to_vec();
    for length in [1, 1400, MAX_PLAINTEXT] {
        let start = burst.len();
        let plaintext = vec![7; length];
        let sealed = pair.client.session.seal(&plaintext, &mut burst).unwrap();
        assert_eq!(start + sealed, burst.len());
        // AES-128-GCM, or ChaCha20-Poly1305 where AES is slow.
        assert!([MAX_RECORD_OVERHEAD, 29].contains(&(sealed - length)), "{length} became {sealed}");
        assert_eq!(burst[start..start + 3], [23, 254, 253]);
        pair.server.receive(&burst[start..]);
        assert_eq!(pair.server.delivered.pop(), Some(plaintext));
    }
    assert!(burst.starts_with(b"before"));
    for length in [0, MAX_PLAINTEXT + 1] {
        let refused = pair.client.session.seal(&vec![7; length], &mut burst);
        assert!(matches!(refused, Err(DtlsError::PlaintextLength(told)) if told == length));
    }
    assert_eq!(pair.client.session.take_outgoing(), None);
}

#[test]
fn two_records_in_one_datagram_are_both_delivered() {
    let mut pair = Pair::established();
    let mut datagram = pair.client.seal(b"one");
    datagram.extend(pair.client.seal(b"and two"));
    pair.server.receive(&datagram);
    assert_eq!(pair.server.delivered, [b"one".to_vec(), b"and two".to_vec()]);
    assert_eq!(pair.server.session.dropped(), 0);
}

#[test]
fn a_replayed_record_is_dropped_and_late_ones_are_taken_once() {
    let mut pair = Pair::established();
    let records: Vec<_> = (0..100_u8).map(|number| pair.client.seal(&[number])).collect();
    for record in records.iter().rev() {
        pair.server.receive(record);
    }
    assert_eq!(pair.server.delivered.len(), 100);
    for record in &records {
        pair.server.receive(record);
    }
    assert_eq!(pair.server.delivered.len(), 100);
    assert_eq!(pair.server.session.dropped(), 100);
    assert!(pair.server.session.is_established());
}

#[test]
fn records_still_open_after_200000_lost_ones() {
    let mut pair = Pair::established();
    let mut lost = Vec::new();
    for _ in 0..200_000 {
        lost.clear();
        pair.client.session.seal(b"lost", &mut lost).unwrap();
    }
    let record = pair.client.seal(b"found");
    pair.server.receive(&record);
    assert_eq!(pair.server.delivered, [b"found"]);
}

#[test]
fn every_change_of_a_record_and_every_cut_is_dropped() {
    let mut pair = Pair::established();
    let record = pair.client.seal(b"sixteen bytes...");
    for bit in 0..record.len() * 8 {
        let mut changed = record.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        pair.server.receive(&changed);
    }
    for length in 0..record.len() {
        pair.server.receive(&record[..length]);
    }
    assert_eq!(pair.server.delivered, Vec::<Vec<u8>>::new());
    // The empty datagram is nothing; a shortened record leaves a second piece in its datagram.
    assert!(pair.server.session.dropped() >= (record.len() * 9 - 1) as u64);
    pair.server.receive(&record);
    assert_eq!(pair.server.delivered, [b"sixteen bytes..."]);
    assert!(pair.server.session.is_established());
}

#[test]
fn random_datagrams_end_neither_a_handshake_nor_a_session() {
    let mut noise = Noise(0x0071_ca17);
    let mut pair = Pair::new(FingerprintKind::Sha256);
    pair.start();
    for _ in 0..10_000 {
        let datagram = noise.datagram();
        pair.client.receive(&datagram);
        pair.server.receive(&datagram);
    }
    pair.exchange(|_| true);
    pair.assert_established();
    assert!(pair.client.session.dropped() > 9_000);
    let before = pair.server.session.dropped();
    for _ in 0..10_000 {
        pair.server.receive(&noise.datagram());
    }
    let dropped = pair.server.session.dropped() - before;
    assert!(dropped > 9_900, "all but the empty ones are counted: {dropped}");
    let record = pair.client.seal(b"still here");
    pair.server.receive(&record);
    assert_eq!(pair.server.delivered, [b"still here"]);
    assert_eq!(pair.server.session.take_outgoing(), None);
}

#[test]
fn a_made_up_alert_can_end_an_unfinished_handshake_but_no_session() {
    let alert = |number| forged(21, number, &[2, 40]);
    let mut pair = Pair::new(FingerprintKind::Sha256);
    pair.start();
    pair.server.receive(&alert(0));
    assert_eq!(pair.server.end_reason(), Some("the peer sent the alert handshake failure"));

    let mut pair = Pair::established();
    pair.server.receive(&alert(9));
    pair.server.receive(&forged(21, 10, &[1, 0]));
    pair.server.receive(&forged(22, 11, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    pair.assert_established();
    assert_eq!(pair.server.session.dropped(), 3);
}

#[test]
fn close_notify_ends_both_sides_and_is_answered() {
    let mut pair = Pair::established();
    let late = pair.server.seal(b"late");
    pair.client.session.close();
    let goodbye = pair.client.session.take_outgoing().unwrap();
    assert_eq!(pair.client.session.poll_event(), None, "who closes needs no event");
    pair.server.receive(&goodbye);
    assert_eq!(pair.server.end_reason(), Some("closed by the peer"));
    assert!(pair.server.session.take_outgoing().is_some());
    assert!(matches!(pair.server.session.seal(b"x", &mut Vec::new()), Err(DtlsError::NotEstablished)));
    pair.client.receive(&late);
    assert_eq!(pair.client.delivered, Vec::<Vec<u8>>::new());
    assert_eq!(pair.client.session.dropped(), 1);
    pair.client.session.close();
    assert_eq!(pair.client.session.take_outgoing(), None);
}

#[test]
fn closing_before_the_handshake_is_over_says_nothing_and_stops_the_timers() {
    let mut pair = Pair::new(FingerprintKind::Sha256);
    pair.start();
    pair.exchange(|_| false);
    pair.client.session.close();
    assert_eq!(pair.client.session.take_outgoing(), None);
    assert_eq!(pair.client.session.timeout(), None);
    assert_eq!(pair.client.session.poll_event(), None);
}

#[test]
fn datagrams_before_start_are_dropped_and_counted() {
    let mut pair = Pair::new(FingerprintKind::Sha256);
    pair.client.session.start(None);
    let hello = pair.client.session.take_outgoing().unwrap();
    pair.server.receive(&hello);
    assert_eq!(pair.server.session.dropped(), 1);
    assert_eq!(pair.server.session.take_outgoing(), None);
    pair.server.session.start(None);
    assert!(pair.wait());
    pair.exchange(|_| true);
    pair.assert_established();
}

#[test]
fn a_client_with_an_older_version_another_cipher_or_no_certificate_is_refused() {
    type Weaken = fn(&mut SslContextBuilder);
    let older: Weaken = |context| context.set_max_proto_version(Some(SslVersion::DTLS1)).unwrap();
    let cipher: Weaken = |context| context.set_strict_cipher_list("ECDHE-ECDSA-AES128-SHA").unwrap();
    let anonymous: Weaken = |_| {};
    for (weaken, reason) in [
        (older, "DTLS failed: [UNSUPPORTED_PROTOCOL]"),
        (cipher, "DTLS failed: [NO_SHARED_CIPHER]"),
        (anonymous, "DTLS failed: [PEER_DID_NOT_RETURN_A_CERTIFICATE]"),
    ] {
        let mut pair = Pair::new(FingerprintKind::Sha256);
        let mut context = SslContext::builder(SslMethod::dtls()).unwrap();
        context.set_min_proto_version(Some(SslVersion::DTLS1)).unwrap();
        context.set_max_proto_version(Some(SslVersion::DTLS1_2)).unwrap();
        weaken(&mut context);
        let mut ssl = Ssl::new(&context.build()).unwrap();
        ssl.set_mtu(1200).unwrap();
        ffi::set_role(&mut ssl, Role::Controlled);
        let mut client = SslStream::new(ssl, Wire::default()).unwrap();

        pair.server.session.start(None);
        for _ in 0..2 {
            assert!(client.do_handshake().is_err());
            while let Some(datagram) = client.get_mut().take_outgoing() {
                pair.server.receive(&datagram);
            }
            while let Some(datagram) = pair.server.session.take_outgoing() {
                client.get_mut().feed(&datagram);
                assert!(client.do_handshake().is_err());
            }
        }
        assert_eq!(pair.server.end_reason(), Some(reason));
    }
}
