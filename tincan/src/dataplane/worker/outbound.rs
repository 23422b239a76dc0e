//! From the TAP to the peers.

use std::io::ErrorKind;

use tincan_common::frame::ETHERNET_LEN;
use tincan_common::verdict::Verdict;

use crate::dataplane::EngineEvent;
use crate::dataplane::gso::{self, SplitError};
use crate::dataplane::table::Route;
use crate::dataplane::too_big;
use crate::dataplane::vnet::VnetHeader;
use crate::dataplane::worker::inbound::is_fatal;
use crate::dataplane::worker::{Worker, now};
use crate::link::LinkId;
use crate::wire::uid::Uid;

/// Frames read before the network gets its turn again.
const TAP_BUDGET: usize = 64;

/// Whom a frame is sent to.
enum Receiver {
    Link(LinkId),
    Controller(Uid),
}

impl Worker {
    /// Reads a burst of frames from the TAP and sends each on its way.
    pub(super) fn send_frames(&mut self) -> Result<(), String> {
        let mut buffer = std::mem::take(&mut self.tap_buffer);
        let mut result = Ok(());
        for _ in 0..TAP_BUDGET {
            match self.tap.read(&mut buffer) {
                Ok(len) => self.carry(&mut buffer[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // A frame the kernel could not hand out; it is gone, the next one may be good.
                Err(error) if !is_fatal(&error) => self.figures.count(Verdict::MalformedFrame, 1),
                Err(error) => {
                    result = Err(format!("the TAP {} cannot be read: {error}", self.tap.name()));
                    break;
                }
            }
        }
        self.tap_buffer = buffer;
        self.batch.flush();
        result
    }

    /// Sends one vnet header and frame on its way.
    fn carry(&mut self, packet: &mut [u8]) {
        let Some(header) = VnetHeader::parse(packet) else {
            return self.figures.count(Verdict::MalformedFrame, 1);
        };
        let frame = &mut packet[VnetHeader::LEN..];
        let receivers = match self.table.route(frame, self.tap.mac()) {
            Route::Peer(uid) => vec![self.receiver(uid)],
            // Not to the controller for those without a link, as in 2014: one frame would ask it for every one of them.
            Route::Flood => self.table.peers().filter_map(|uid| self.table.link_of(uid)).map(Receiver::Link).collect(),
            Route::Unrouted => vec![Receiver::Controller(Uid::ZERO)],
            Route::Answer(reply) => return self.write_frame(&reply, Verdict::ArpAnswered),
            Route::Drop(verdict) => return self.figures.count(verdict, 1),
        };
        if receivers.is_empty() {
            return self.figures.count(Verdict::NotFlooded, 1);
        }
        if let [Receiver::Link(id)] = receivers.as_slice()
            && self.refuse_too_big(*id, &header, frame)
        {
            return;
        }
        let mut segments = std::mem::take(&mut self.segment_buffer);
        let split = if let [receiver] = receivers.as_slice() {
            gso::split(&header, frame, &mut segments, |segment| self.send_to(receiver, segment))
        } else {
            self.send_to_each(&receivers, &header, frame, &mut segments)
        };
        self.segment_buffer = segments;
        if split.is_err() {
            self.figures.count(Verdict::MalformedFrame, 1);
        }
    }

    /// Tells the sender of a frame that the link's path is too small for it, or leaves it to be carried in pieces.
    fn refuse_too_big(&mut self, id: LinkId, header: &VnetHeader, frame: &[u8]) -> bool {
        let Some(link) = self.links.get(&id) else { return false };
        let Some(longest) = link.longest_frame.filter(|longest| frame.len() > *longest) else { return false };
        let Ok(length) = gso::longest_segment(header, frame) else { return false };
        let Some(answer) = too_big::answer(frame, length, longest) else { return false };
        link.figures.add_dropped(1);
        if self.error_limiter.allow(now()) {
            self.write_frame(&answer, Verdict::TooBig);
        } else {
            self.figures.count(Verdict::TooBig, 1);
        }
        true
    }

    /// Splits once; each receiver gets all segments in a row, so that they go out in bursts.
    fn send_to_each(
        &mut self,
        receivers: &[Receiver],
        header: &VnetHeader,
        frame: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), SplitError> {
        let mut segments = Vec::new();
        gso::split(header, frame, scratch, |segment| segments.push(segment.to_vec()))?;
        for receiver in receivers {
            for segment in &segments {
                self.send_to(receiver, segment);
            }
        }
        Ok(())
    }

    fn receiver(&self, uid: Uid) -> Receiver {
        // A mapped peer without a link is the controller's to find (2014): on-demand links begin so.
        self.table.link_of(uid).map_or(Receiver::Controller(uid), Receiver::Link)
    }

    fn send_to(&mut self, receiver: &Receiver, frame: &[u8]) {
        match receiver {
            Receiver::Link(id) => {
                let Some(link) = self.links.get_mut(id) else { return };
                if let Some(verdict) = link.send_frame(frame, &mut self.batch) {
                    self.figures.count(verdict, 1);
                    if verdict != Verdict::Queued {
                        link.figures.add_dropped(1);
                    }
                }
            }
            Receiver::Controller(destination) => self.hand_to_controller(*destination, frame),
        }
    }

    fn hand_to_controller(&mut self, destination: Uid, frame: &[u8]) {
        let Some(source) = self.table.local().map(|local| local.uid) else { return };
        if !self.unrouted_limiter.allow(now()) {
            return self.figures.count(Verdict::UnroutedLimited, 1);
        }
        let event = EngineEvent::Unrouted { source, destination, frame: frame.to_vec() };
        self.offer(event, Verdict::Unrouted, Verdict::UnroutedLimited);
    }

    /// Writes a frame of the controller (type 0x02).
    pub(super) fn inject(&mut self, mut frame: Vec<u8>) {
        if frame.len() < ETHERNET_LEN {
            return self.figures.count(Verdict::MalformedFrame, 1);
        }
        self.address_to_host(&mut frame);
        self.write_frame(&frame, Verdict::Injected);
    }
}
