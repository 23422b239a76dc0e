//! The thread that owns the table, every session, the TAP and the reading side of both ports.
//!
//! ```text
//!  TAP --burst--> route --> split --> seal --> Batch --one send--> port      (worker/outbound)
//!  port --burst--> first byte --> flow --> open --> guard --> Coalescer --one write--> TAP      (worker/inbound)
//! ```
//! Everything it needs is its own, so a frame meets no lock. It sleeps in `poll(2)` over the TAP, both sockets and an
//! eventfd that says "commands".

mod batch;
mod early;
mod inbound;
mod limiter;
mod link;
mod outbound;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use tincan_common::verdict::Verdict;

use crate::dataplane::engine::{Figures, LinkFigures};
use crate::dataplane::gro::{Coalescer, Offloads};
use crate::dataplane::port::{Burst, Ports};
use crate::dataplane::table::Table;
use crate::dataplane::worker::batch::{Batch, Target};
use crate::dataplane::worker::early::EarlyDatagrams;
use crate::dataplane::worker::limiter::{Limiter, Rate};
use crate::dataplane::worker::link::{Guard, Link};
use crate::dataplane::{Command, EngineEvent};
use crate::dtls::SessionEvent;
use crate::edge::tap::Tap;
use crate::link::{FlowKey, LinkId, PortKind};

/// Buffers of one receive call, each for a whole burst.
const RECEIVE_BUFFERS: usize = 16;
const RECEIVE_BUFFER_LEN: usize = 1 << 16;

/// A vnet header and the longest super-frame.
const TAP_BUFFER_LEN: usize = (1 << 16) + 256;

/// Commands carried out before the network gets its turn.
const COMMAND_BUDGET: usize = 256;

/// Places in the control loop's queue that only events which must arrive may take.
const RESERVED_EVENTS: usize = 256;

/// Pause before an event is offered again to a control loop that was too busy.
const EVENT_RETRY: Duration = Duration::from_millis(5);

/// Frames for the controller: 100 a second.
const UNROUTED_RATE: Rate = Rate { burst: 50, earn: Duration::from_millis(10) };

/// ICMP errors, as Linux sends them: 1000 a second (`icmp_msgs_per_sec`, `icmp_msgs_burst`).
const ERROR_RATE: Rate = Rate { burst: 50, earn: Duration::from_millis(1) };

/// What reaches the worker from outside.
pub(super) enum Instruction {
    Command { command: Command, figures: Option<Arc<LinkFigures>> },
    Stop,
}

/// See the module's head.
pub(super) struct Worker {
    tap: Tap,
    ports: Arc<Ports>,
    inbox: mpsc::Receiver<Instruction>,
    wake: Arc<EventFd>,
    events: tokio::sync::mpsc::Sender<EngineEvent>,
    unsent_events: VecDeque<EngineEvent>,
    figures: Arc<Figures>,
    table: Table,
    links: HashMap<LinkId, Link>,
    flows: HashMap<FlowKey, LinkId>,
    /// When links with a handshake or a greeting under way are to be looked at.
    timers: BTreeSet<(Instant, LinkId)>,
    early: EarlyDatagrams,
    unrouted_limiter: Limiter,
    error_limiter: Limiter,
    batch: Batch,
    coalescer: Coalescer,
    tap_buffer: Vec<u8>,
    segment_buffer: Vec<u8>,
    receive_buffers: Vec<Vec<u8>>,
    bursts: Vec<Burst>,
}

/// What has something to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Tap,
    Port(PortKind),
    Commands,
}

impl Worker {
    pub(super) fn new(
        tap: Tap,
        ports: Arc<Ports>,
        inbox: mpsc::Receiver<Instruction>,
        wake: Arc<EventFd>,
        events: tokio::sync::mpsc::Sender<EngineEvent>,
        figures: Arc<Figures>,
    ) -> Self {
        let offloads = Offloads { tcp: true, udp: tap.segments_udp() };
        Self {
            batch: Batch::new(ports.clone(), figures.clone()),
            tap,
            ports,
            inbox,
            wake,
            events,
            unsent_events: VecDeque::new(),
            figures,
            table: Table::default(),
            links: HashMap::new(),
            flows: HashMap::new(),
            timers: BTreeSet::new(),
            early: EarlyDatagrams::default(),
            unrouted_limiter: Limiter::new(now(), UNROUTED_RATE),
            error_limiter: Limiter::new(now(), ERROR_RATE),
            coalescer: Coalescer::new(offloads),
            tap_buffer: vec![0; TAP_BUFFER_LEN],
            segment_buffer: Vec::new(),
            receive_buffers: vec![vec![0; RECEIVE_BUFFER_LEN]; RECEIVE_BUFFERS],
            bursts: Vec::new(),
        }
    }

    /// Runs until told to stop, or until the TAP or a socket fails for good.
    pub(super) fn run(mut self) {
        if let Err(reason) = self.work() {
            tracing::error!(reason, "the data plane stopped");
            // Fails only when the control loop is gone.
            let _ = self.events.blocking_send(EngineEvent::Failed { reason });
        }
    }

    fn work(&mut self) -> Result<(), String> {
        loop {
            for source in self.wait()?.into_iter().flatten() {
                match source {
                    Source::Commands if self.take_commands() == Flow::Stop => return Ok(()),
                    Source::Commands => {}
                    Source::Port(kind) => self.receive(kind)?,
                    Source::Tap => self.send_frames()?,
                }
            }
            self.tend_links();
            self.retell();
        }
    }

    /// Sleeps until something can be read or time is up; commands come before datagrams, the network before the TAP.
    fn wait(&self) -> Result<[Option<Source>; 4], String> {
        let timeout = self.timeout();
        let sources = [Source::Commands, Source::Port(PortKind::Secured), Source::Port(PortKind::Plain), Source::Tap];
        let mut files = sources.map(|source| PollFd::new(self.file_of(source), PollFlags::POLLIN));
        match poll(&mut files, timeout) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => return Ok([None; 4]),
            Err(error) => return Err(format!("cannot wait for frames: {error}")),
        }
        let mut ready = [None; 4];
        for ((slot, source), file) in ready.iter_mut().zip(sources).zip(&files) {
            *slot = file.any().unwrap_or(false).then_some(source);
        }
        Ok(ready)
    }

    fn file_of(&self, source: Source) -> BorrowedFd<'_> {
        match source {
            Source::Tap => self.tap.as_fd(),
            Source::Port(kind) => self.ports.of(kind).as_fd(),
            Source::Commands => self.wake.as_fd(),
        }
    }

    fn timeout(&self) -> PollTimeout {
        let now = now();
        let due = self.timers.first().map(|(at, _)| *at);
        let retry = (!self.unsent_events.is_empty()).then(|| now + EVENT_RETRY);
        match due.into_iter().chain(retry).min() {
            None => PollTimeout::NONE,
            // Rounded up, so that what was waited for is due.
            Some(at) => {
                let left = at.saturating_duration_since(now) + Duration::from_micros(999);
                PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)
            }
        }
    }

    fn take_commands(&mut self) -> Flow {
        // It only wakes; how often it was written says nothing.
        let _ = self.wake.read();
        for _ in 0..COMMAND_BUDGET {
            match self.inbox.try_recv() {
                Ok(Instruction::Command { command, figures }) => self.carry_out(command, figures),
                Ok(Instruction::Stop) => {
                    self.batch.flush();
                    return Flow::Stop;
                }
                Err(_) => {
                    self.batch.flush();
                    return Flow::Continue;
                }
            }
        }
        self.batch.flush();
        // There may be more; the network gets its turn first. It fails only when it is awake anyway.
        let _ = self.wake.write(1);
        Flow::Continue
    }

    fn carry_out(&mut self, command: Command, figures: Option<Arc<LinkFigures>>) {
        match command {
            Command::SetLocal(local) => self.table.set_local(local),
            Command::SetSwitchMode { enabled } => self.table.set_switch_mode(enabled),
            Command::MapPeer { uid, ip4, ip6 } => self.table.map_peer(uid, ip4, ip6),
            Command::UnmapPeer { uid } => self.table.unmap_peer(uid),
            Command::AddLink { link, uid, protection } => {
                self.table.add_link(uid, link);
                self.links.insert(link, Link::new(uid, protection, figures.unwrap_or_default()));
            }
            Command::SetSendTag { link, tag } => {
                if let Some(Guard::Plain { send_tag, .. }) = self.links.get_mut(&link).map(|link| &mut link.protection)
                {
                    *send_tag = Some(tag);
                }
            }
            Command::RenewSession { link, session } => {
                if let Some(Guard::Dtls(secured)) = self.links.get_mut(&link).map(|link| &mut link.protection) {
                    secured.renew(*session);
                    self.start_session(link);
                }
            }
            Command::SetPath { link, path } => self.set_path(link, path),
            Command::SetLongestFrame { link, longest } => {
                if let Some(link) = self.links.get_mut(&link) {
                    link.longest_frame = longest;
                }
            }
            Command::SetForwarding { link, enabled } => {
                if let Some(link) = self.links.get_mut(&link) {
                    link.set_forwarding(enabled, &mut self.batch);
                }
            }
            Command::RemoveLink { link } => self.remove_link(link),
            Command::Inject { frame } => {
                self.figures.injection_taken();
                self.inject(frame);
            }
        }
    }

    fn set_path(&mut self, id: LinkId, path: crate::link::Path) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let (flow, retired) = link.set_path(path);
        if let Some(retired) = retired.filter(|retired| self.flows.get(retired) == Some(&id)) {
            self.flows.remove(&retired);
        }
        self.flows.insert(flow, id);
        self.start_session(id);
        for mut datagram in self.early.take(now(), flow) {
            self.take_data(flow, &mut datagram);
        }
        self.write_frames();
    }

    /// Begins the handshake of a link that has a path and has not begun.
    fn start_session(&mut self, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id)
            && link.path.is_some()
            && let Guard::Dtls(secured) = &mut link.protection
        {
            secured.session.start(None);
        }
        self.settle(id);
    }

    fn remove_link(&mut self, id: LinkId) {
        if let Some(Guard::Dtls(secured)) = self.links.get_mut(&id).map(|link| &mut link.protection) {
            secured.session.close();
        }
        self.settle(id);
        let Some(link) = self.links.remove(&id) else { return };
        if let Guard::Dtls(secured) = &link.protection
            && let Some(at) = secured.timer
        {
            self.timers.remove(&(at, id));
        }
        if self.table.link_of(link.uid) == Some(id) {
            self.table.remove_link(link.uid);
        }
        for flow in link.flows() {
            if self.flows.get(flow) == Some(&id) {
                self.flows.remove(flow);
            }
        }
    }

    /// Does what time asks of links with a handshake or a greeting under way.
    fn tend_links(&mut self) {
        let now = now();
        while let Some((at, id)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, id));
            if let Some(Guard::Dtls(secured)) = self.links.get_mut(&id).map(|link| &mut link.protection) {
                secured.timer = None;
                if secured.session.timeout().is_some_and(|left| left.is_zero()) {
                    secured.session.handle_timeout();
                }
            }
            self.settle(id);
        }
    }

    /// Sends what a session wants to say and tells what became of it; to be called after everything done to it.
    fn settle(&mut self, id: LinkId) {
        let now = now();
        let Some(link) = self.links.get_mut(&id) else { return };
        let (port, path, figures) = (link.port(), link.path, link.figures.clone());
        let Guard::Dtls(secured) = &mut link.protection else { return };
        let mut events = Vec::new();
        while let Some(event) = secured.session.poll_event() {
            events.push(match event {
                SessionEvent::Established => {
                    secured.begin_greeting(now);
                    EngineEvent::Established { link: id }
                }
                SessionEvent::TimedOut => EngineEvent::SessionTimedOut { link: id },
                SessionEvent::Ended { reason } => EngineEvent::SessionEnded { link: id, reason },
            });
        }
        if secured.greeted_in_vain(now) {
            // Without close_notify: the peer may hear us well and be online; its session ends when a fresh one begins.
            events.push(EngineEvent::SessionTimedOut { link: id });
        }
        let drops = secured.new_drops();
        figures.add_dropped(drops);
        self.figures.count(Verdict::NotAuthentic, drops);
        while let Some(datagram) = secured.session.take_outgoing().or_else(|| secured.due_hello(now)) {
            let Some(path) = path else { continue };
            self.batch.send_record(&Target { port, path, figures: figures.clone() }, &datagram);
        }
        let deadline = secured.deadline(now);
        if let Some(at) = std::mem::replace(&mut secured.timer, deadline) {
            self.timers.remove(&(at, id));
        }
        self.timers.extend(deadline.map(|at| (at, id)));
        for event in events {
            self.tell(event);
        }
    }

    /// An event that must arrive: kept when the control loop is too busy.
    fn tell(&mut self, event: EngineEvent) {
        self.unsent_events.push_back(event);
        self.retell();
    }

    fn retell(&mut self) {
        while let Some(event) = self.unsent_events.pop_front() {
            if let Err(tokio::sync::mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
                self.unsent_events.push_front(event);
                return;
            }
        }
    }

    /// An event that may be lost, as the datagram it stands for may.
    fn offer(&self, event: EngineEvent, taken: Verdict, lost: Verdict) {
        let room = self.events.capacity() > RESERVED_EVENTS;
        let verdict = if room && self.events.try_send(event).is_ok() { taken } else { lost };
        self.figures.count(verdict, 1);
    }
}

#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    Stop,
}

fn now() -> Instant {
    Instant::now()
}
