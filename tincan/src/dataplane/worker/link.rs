//! One link as the worker knows it: its protection, its path, and whether frames flow.
//!
//! ```text
//! ComingUp (frames wait in a bounded queue) --SetForwarding true--> On <--SetForwarding--> Off (frames are dropped)
//! ```
//! A DTLS link greets: once its handshake is done it sends a hello record every 200 ms until the peer's first
//! authenticated record arrives; a hello is answered by an acknowledgement, so both sides get there even when one
//! side's last handshake flight is lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tincan_common::frame::{LINK_CONTROL, header};
use tincan_common::verdict::Verdict;

use crate::dataplane::Protection;
use crate::dataplane::engine::LinkFigures;
use crate::dataplane::worker::batch::{Batch, Target};
use crate::dtls::{DtlsError, Session};
use crate::link::{FlowKey, Path, PortKind};
use crate::wire::uid::Uid;

/// A link-control record that asks for any record back.
const HELLO: u8 = 0x01;
/// A link-control record that answers a hello and wants no answer.
const HELLO_ACK: u8 = 0x02;
/// Pause between hellos.
const HELLO_EVERY: Duration = Duration::from_millis(200);

/// As long as a handshake may take.
const GREET_FOR: Duration = Duration::from_secs(30);

/// Most frames that wait for a link to come up: a TCP connection's first flight.
const QUEUE_FRAMES: usize = 64;
/// Most bytes of them.
const QUEUE_BYTES: usize = 96 << 10;

/// Paths a peer may still send on: the last ones ICE validated.
const MAX_FLOWS: usize = 4;

pub(super) struct Link {
    pub(super) uid: Uid,
    pub(super) figures: Arc<LinkFigures>,
    pub(super) protection: Guard,
    pub(super) path: Option<Path>,
    /// Longest frame the path takes whole, bytes, where that is known.
    pub(super) longest_frame: Option<usize>,
    flows: VecDeque<FlowKey>,
    forwarding: Forwarding,
}

/// [`Protection`] at work.
pub(super) enum Guard {
    Dtls(Box<Secured>),
    Plain { receive_tag: u32, send_tag: Option<u32> },
}

pub(super) struct Secured {
    pub(super) session: Session,
    pub(super) authenticated: bool,
    next_hello: Option<Instant>,
    /// When greeting is given up.
    greet_until: Option<Instant>,
    /// Where this link stands in the worker's timers.
    pub(super) timer: Option<Instant>,
    plaintext: Vec<u8>,
    counted_drops: u64,
}

enum Forwarding {
    ComingUp { frames: VecDeque<Vec<u8>>, bytes: usize },
    On,
    Off,
}

impl Link {
    pub(super) fn new(uid: Uid, protection: Protection, figures: Arc<LinkFigures>) -> Self {
        let protection = match protection {
            Protection::Dtls(session) => Guard::Dtls(Box::new(Secured::new(*session))),
            Protection::Plain { receive_tag } => Guard::Plain { receive_tag, send_tag: None },
        };
        let forwarding = Forwarding::ComingUp { frames: VecDeque::new(), bytes: 0 };
        Self { uid, figures, protection, path: None, longest_frame: None, flows: VecDeque::new(), forwarding }
    }

    pub(super) fn port(&self) -> PortKind {
        match self.protection {
            Guard::Dtls(_) => PortKind::Secured,
            Guard::Plain { .. } => PortKind::Plain,
        }
    }

    /// Takes a validated path; returns its flow, and the one that is too old to listen to.
    pub(super) fn set_path(&mut self, path: Path) -> (FlowKey, Option<FlowKey>) {
        let flow = path.flow_key(self.port());
        self.path = Some(path);
        self.flows.retain(|known| *known != flow);
        self.flows.push_back(flow);
        let retired = if self.flows.len() > MAX_FLOWS { self.flows.pop_front() } else { None };
        (flow, retired)
    }

    pub(super) fn flows(&self) -> impl Iterator<Item = &FlowKey> {
        self.flows.iter()
    }

    /// Sends a frame, or keeps it while the link comes up.
    pub(super) fn send_frame(&mut self, frame: &[u8], batch: &mut Batch) -> Option<Verdict> {
        match &mut self.forwarding {
            Forwarding::On => self.emit(frame, batch).err(),
            Forwarding::Off => Some(Verdict::LinkDown),
            Forwarding::ComingUp { frames, bytes } => {
                frames.push_back(frame.to_vec());
                *bytes += frame.len();
                let mut verdict = Verdict::Queued;
                while frames.len() > QUEUE_FRAMES || *bytes > QUEUE_BYTES {
                    *bytes -= frames.pop_front().map_or(*bytes, |oldest| oldest.len());
                    verdict = Verdict::QueueOverflow;
                }
                Some(verdict)
            }
        }
    }

    /// Lets frames flow, beginning with those that waited; or stops them. A link that comes up keeps its queue.
    pub(super) fn set_forwarding(&mut self, enabled: bool, batch: &mut Batch) {
        match (&mut self.forwarding, enabled) {
            (Forwarding::ComingUp { frames, bytes: _ }, true) => {
                let waiting = std::mem::take(frames);
                self.forwarding = Forwarding::On;
                for frame in waiting {
                    // What cannot be sent now is lost, as on any network.
                    let _ = self.emit(&frame, batch);
                }
            }
            (Forwarding::Off, true) => self.forwarding = Forwarding::On,
            (Forwarding::On, false) => self.forwarding = Forwarding::Off,
            (Forwarding::ComingUp { .. } | Forwarding::Off, false) | (Forwarding::On, true) => {}
        }
    }

    fn emit(&mut self, frame: &[u8], batch: &mut Batch) -> Result<(), Verdict> {
        let needs_fragments = self.longest_frame.is_some_and(|longest| frame.len() > longest);
        if needs_fragments {
            // The kernel cuts no burst whose datagrams do not fit the path, `udp(7)`.
            batch.flush();
        }
        let result = self.add_datagram(frame, batch);
        if needs_fragments {
            batch.flush();
        }
        result
    }

    fn add_datagram(&mut self, frame: &[u8], batch: &mut Batch) -> Result<(), Verdict> {
        let port = self.port();
        let Some(path) = self.path else { return Err(Verdict::LinkDown) };
        let target = Target { port, path, figures: self.figures.clone() };
        match &mut self.protection {
            Guard::Plain { send_tag: None, .. } => Err(Verdict::LinkDown),
            Guard::Plain { send_tag: Some(tag), .. } => batch.add(&target, |buffer| {
                buffer.extend_from_slice(&header(*tag));
                buffer.extend_from_slice(frame);
                Ok(())
            }),
            Guard::Dtls(secured) => secured.seal_frame(frame, &target, batch).map_err(|_| Verdict::SealFailed),
        }
    }
}

impl Secured {
    fn new(session: Session) -> Self {
        Self {
            session,
            authenticated: false,
            next_hello: None,
            greet_until: None,
            timer: None,
            plaintext: Vec::new(),
            counted_drops: 0,
        }
    }

    /// A new session takes the place of one that came to nothing.
    pub(super) fn renew(&mut self, session: Session) {
        let timer = self.timer;
        *self = Self { timer, ..Self::new(session) };
    }

    fn seal_frame(&mut self, frame: &[u8], target: &Target, batch: &mut Batch) -> Result<(), DtlsError> {
        self.plaintext.clear();
        self.plaintext.extend_from_slice(&header(0));
        self.plaintext.extend_from_slice(frame);
        let Self { session, plaintext, .. } = self;
        batch.add(target, |buffer| session.seal(plaintext, buffer).map(drop))
    }

    /// The handshake is done: greet from now on.
    pub(super) fn begin_greeting(&mut self, now: Instant) {
        if !self.authenticated {
            self.next_hello = Some(now);
            self.greet_until = Some(now + GREET_FOR);
        }
    }

    /// A record of the peer was opened; true for the first.
    pub(super) fn note_authentic(&mut self) -> bool {
        self.next_hello = None;
        self.greet_until = None;
        !std::mem::replace(&mut self.authenticated, true)
    }

    /// The answer to a link-control record, if it wants one.
    pub(super) fn answer_control(&mut self, record: &[u8]) -> Option<Vec<u8>> {
        match record {
            [LINK_CONTROL, HELLO, ..] => self.control_record(HELLO_ACK),
            // Later versions may say more; what is not known is not answered.
            _ => None,
        }
    }

    /// Nobody answered the greeting; says so once.
    pub(super) fn greeted_in_vain(&mut self, now: Instant) -> bool {
        let in_vain = self.greet_until.is_some_and(|at| at <= now);
        if in_vain {
            self.next_hello = None;
            self.greet_until = None;
        }
        in_vain
    }

    /// A hello, when it is time for one.
    pub(super) fn due_hello(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next_hello.is_none_or(|at| at > now) {
            return None;
        }
        self.next_hello = Some(now + HELLO_EVERY);
        self.control_record(HELLO)
    }

    fn control_record(&mut self, message: u8) -> Option<Vec<u8>> {
        let mut record = Vec::new();
        self.session.seal(&[LINK_CONTROL, message], &mut record).ok()?;
        Some(record)
    }

    /// When something is to be done without anything arriving.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let handshake = self.session.timeout().map(|left| now + left);
        handshake.into_iter().chain(self.next_hello).chain(self.greet_until).min()
    }

    /// Records dropped since the last call.
    pub(super) fn new_drops(&mut self) -> u64 {
        let total = self.session.dropped();
        total - std::mem::replace(&mut self.counted_drops, total)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use super::*;
    use crate::dataplane::engine::Figures;
    use crate::dataplane::port::{Ports, UdpPort};

    fn plain_link() -> (Link, Batch, Arc<Ports>) {
        let bind = |kind| UdpPort::bind(kind, 0).unwrap();
        let ports = Arc::new(Ports { secured: bind(PortKind::Secured), plain: bind(PortKind::Plain) });
        let batch = Batch::new(ports.clone(), Arc::new(Figures::default()));
        let link = Link::new(Uid::ZERO, Protection::Plain { receive_tag: 1 }, Arc::default());
        (link, batch, ports)
    }

    /// Sends to our own plain port.
    fn connect(link: &mut Link, ports: &Ports) {
        let remote = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ports.plain.local_port());
        link.set_path(Path { remote, source: None, relay: None });
        link.protection = Guard::Plain { receive_tag: 1, send_tag: Some(0x00a1_b2c3) };
    }

    fn received(ports: &Ports, wanted: usize) -> Vec<Vec<u8>> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let (mut got, mut bursts) = (Vec::new(), Vec::new());
        while got.len() < wanted {
            let mut readable = [PollFd::new(ports.plain.as_fd(), PollFlags::POLLIN)];
            assert_ne!(poll(&mut readable, PollTimeout::from(5000_u16)).unwrap(), 0, "only {} came", got.len());
            let mut buffer = vec![0; 1 << 16];
            ports.plain.receive(&mut [std::io::IoSliceMut::new(&mut buffer)], &mut bursts).unwrap();
            got.extend(bursts.iter().flat_map(|burst| buffer[..burst.len].chunks(burst.stride).map(<[u8]>::to_vec)));
        }
        got
    }

    #[test]
    fn frames_wait_for_the_link_and_the_oldest_give_way() {
        let (mut link, mut batch, ports) = plain_link();
        for number in 0..70_u8 {
            let expected = if number < 64 { Verdict::Queued } else { Verdict::QueueOverflow };
            assert_eq!(link.send_frame(&[number; 60], &mut batch), Some(expected));
        }
        link.set_forwarding(false, &mut batch);
        connect(&mut link, &ports);
        link.set_forwarding(true, &mut batch);
        batch.flush();
        let got = received(&ports, 64);
        let numbers: Vec<u8> = got.iter().map(|datagram| datagram[8]).collect();
        assert_eq!(numbers, (6..70).collect::<Vec<u8>>());
        assert_eq!(got[0][..8], header(0x00a1_b2c3));
    }

    #[test]
    fn long_frames_fill_the_queue_by_their_bytes() {
        let (mut link, mut batch, _) = plain_link();
        let frame = vec![0; 9000];
        let verdicts: Vec<Option<Verdict>> = (0..11).map(|_| link.send_frame(&frame, &mut batch)).collect();
        assert_eq!(verdicts[9], Some(Verdict::Queued));
        assert_eq!(verdicts[10], Some(Verdict::QueueOverflow));
    }

    #[test]
    fn a_link_that_was_up_drops_while_the_peer_is_silent() {
        let (mut link, mut batch, ports) = plain_link();
        connect(&mut link, &ports);
        link.set_forwarding(true, &mut batch);
        link.set_forwarding(false, &mut batch);
        assert_eq!(link.send_frame(&[0; 60], &mut batch), Some(Verdict::LinkDown));
        link.set_forwarding(true, &mut batch);
        assert_eq!(link.send_frame(&[0; 60], &mut batch), None);
    }

    #[test]
    fn datagrams_of_many_lengths_arrive_whole_and_in_order() {
        let (mut link, mut batch, ports) = plain_link();
        connect(&mut link, &ports);
        link.set_forwarding(true, &mut batch);
        let lengths = [1280, 1280, 700, 60, 60, 1280, 61, 61, 61, 20];
        for length in lengths {
            assert_eq!(link.send_frame(&vec![7; length], &mut batch), None);
        }
        batch.flush();
        let got: Vec<usize> = received(&ports, lengths.len()).iter().map(|datagram| datagram.len() - 8).collect();
        assert_eq!(got, lengths);
    }

    #[test]
    fn a_fifth_path_retires_the_first() {
        let (mut link, _, _) = plain_link();
        let path = |port| Path { remote: ([192, 0, 2, 1], port).into(), source: None, relay: None };
        for port in 1..=4 {
            assert_eq!(link.set_path(path(port)).1, None);
        }
        assert_eq!(link.set_path(path(1)).1, None, "a known one again");
        assert_eq!(link.set_path(path(5)).1, Some(path(2).flow_key(PortKind::Plain)));
    }
}
