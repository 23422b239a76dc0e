//! From the network to the TAP.

use std::io::{ErrorKind, IoSliceMut};
use std::net::IpAddr;

use tincan_common::frame::{self, ETHERNET_LEN, FRAME, LINK_CONTROL};
use tincan_common::verdict::Verdict;

use crate::dataplane::EngineEvent;
use crate::dataplane::gro::Coalescer;
use crate::dataplane::gso;
use crate::dataplane::partial;
use crate::dataplane::port::parse_channel_data;
use crate::dataplane::table::Table;
use crate::dataplane::vnet::VnetHeader;
use crate::dataplane::worker::batch::Target;
use crate::dataplane::worker::link::Guard;
use crate::dataplane::worker::{Worker, now};
use crate::link::{FlowKey, LinkId, PortKind};
use crate::wire::uid::Uid;

/// Receive calls before the TAP gets its turn again.
const RECEIVE_BUDGET: usize = 4;

/// Longest STUN message taken in bytes: a check inside of a TURN Data indication is far shorter.
const MAX_STUN: usize = 2048;

/// Protocols by their first byte (RFC 7983, RFC 9443).
mod first_byte {
    pub(super) const STUN: std::ops::RangeInclusive<u8> = 0..=3;
    pub(super) const DTLS: std::ops::RangeInclusive<u8> = 20..=63;
    pub(super) const TURN_CHANNEL: std::ops::RangeInclusive<u8> = 64..=79;
}

impl Worker {
    /// Receives bursts from a port and writes the frames in them to the TAP.
    pub(super) fn receive(&mut self, kind: PortKind) -> Result<(), String> {
        let mut buffers = std::mem::take(&mut self.receive_buffers);
        let mut bursts = std::mem::take(&mut self.bursts);
        let mut result = Ok(());
        for _ in 0..RECEIVE_BUDGET {
            let mut slices: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            match self.ports.of(kind).receive(&mut slices, &mut bursts) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if !is_fatal(&error) => {
                    // Short of memory, or a late ICMP error of some destination; the socket stays good.
                    tracing::debug!(?kind, %error, "not received");
                    continue;
                }
                Err(error) => {
                    result = Err(format!("the UDP socket of {kind:?} links cannot be read: {error}"));
                    break;
                }
            }
            for (burst, buffer) in bursts.iter().zip(&mut buffers) {
                let flow = FlowKey { port: kind, from: burst.from, channel: None };
                for datagram in buffer[..burst.len].chunks_mut(burst.stride) {
                    self.take_datagram(flow, burst.to, datagram);
                }
            }
            self.write_frames();
            self.batch.flush();
        }
        self.receive_buffers = buffers;
        self.bursts = bursts;
        result
    }

    fn take_datagram(&mut self, flow: FlowKey, to: Option<IpAddr>, datagram: &mut [u8]) {
        // A peer that sends its underlay datagrams through the overlay would have its link run through itself.
        if to.is_some_and(|to| self.table.is_own(to)) || self.table.is_inner(flow.from.ip()) {
            return self.figures.count(Verdict::Looped, 1);
        }
        let first = datagram.first().copied().unwrap_or(u8::MAX);
        if !first_byte::TURN_CHANNEL.contains(&first) {
            return self.take_payload(flow, to, datagram);
        }
        let Some((channel, payload)) = parse_channel_data(datagram) else {
            return self.figures.count(Verdict::MalformedDatagram, 1);
        };
        let mut payload = payload.to_vec();
        self.take_payload(FlowKey { channel: Some(channel), ..flow }, to, &mut payload);
    }

    fn take_payload(&mut self, flow: FlowKey, to: Option<IpAddr>, payload: &mut [u8]) {
        match payload.first().copied() {
            Some(first) if first_byte::STUN.contains(&first) && is_stun(payload) => {
                let event = EngineEvent::Control { flow, to, payload: payload.to_vec() };
                self.offer(event, Verdict::Control, Verdict::ControlOverflow);
            }
            Some(first) if first_byte::STUN.contains(&first) => self.figures.count(Verdict::MalformedDatagram, 1),
            Some(first) if first_byte::DTLS.contains(&first) || first == FRAME => self.take_data(flow, payload),
            _ => self.figures.count(Verdict::UnknownProtocol, 1),
        }
    }

    /// A DTLS datagram or a plain frame: only from where ICE found the peer.
    pub(super) fn take_data(&mut self, flow: FlowKey, datagram: &mut [u8]) {
        let Some(id) = self.flows.get(&flow).copied() else {
            let kept = self.early.keep(now(), flow, datagram);
            return self.figures.count(if kept { Verdict::EarlyKept } else { Verdict::UnknownFlow }, 1);
        };
        let Some(link) = self.links.get_mut(&id) else { return };
        link.figures.add_received_bytes(u64::try_from(datagram.len()).unwrap_or(u64::MAX));
        let is_frame = datagram.first() == Some(&FRAME);
        match (&link.protection, is_frame) {
            (Guard::Plain { receive_tag, .. }, true) => {
                let (uid, receive_tag) = (link.uid, *receive_tag);
                let verdict = match frame::parse(datagram) {
                    None => Err(Verdict::MalformedDatagram),
                    Some((tag, _)) if tag != receive_tag => Err(Verdict::WrongTag),
                    Some(_) => {
                        let mac = self.tap.mac();
                        let frame = &mut datagram[frame::HEADER_LEN..];
                        partial::complete(frame);
                        deliver(&self.table, uid, mac, frame, &mut self.coalescer)
                    }
                };
                self.note(id, verdict);
            }
            (Guard::Dtls(_), false) => self.open_records(id, datagram),
            (Guard::Plain { .. }, false) | (Guard::Dtls(_), true) => self.note(id, Err(Verdict::UnknownProtocol)),
        }
    }

    fn open_records(&mut self, id: LinkId, datagram: &[u8]) {
        let mac = self.tap.mac();
        let Self { links, table, coalescer, .. } = self;
        let Some(link) = links.get_mut(&id) else { return };
        let (uid, port, path) = (link.uid, link.port(), link.path);
        let Guard::Dtls(secured) = &mut link.protection else { return };
        let mut verdicts = Vec::new();
        let mut control = Vec::new();
        let mut opened = false;
        secured.session.receive(datagram, |record| {
            opened = true;
            match record.first() {
                Some(&LINK_CONTROL) => control.push(record.to_vec()),
                _ => verdicts.push(match frame::parse(record) {
                    None => Err(Verdict::MalformedDatagram),
                    Some(_) => deliver(table, uid, mac, &mut record[frame::HEADER_LEN..], coalescer),
                }),
            }
        });
        let first = opened && secured.note_authentic();
        let ended = !secured.session.is_established();
        let answers: Vec<Vec<u8>> = control.iter().filter_map(|record| secured.answer_control(record)).collect();
        if let Some(path) = path {
            let target = Target { port, path, figures: link.figures.clone() };
            for answer in &answers {
                self.batch.send_record(&target, answer);
            }
        }
        for verdict in verdicts {
            self.note(id, verdict);
        }
        if !opened || first || ended {
            // Handshake messages, alerts and the end of the greeting; records alone change nothing in the session.
            self.settle(id);
        }
        if first {
            self.tell(EngineEvent::Authenticated { link: id });
        }
    }

    /// Counts what became of a peer's frame.
    fn note(&self, id: LinkId, verdict: Result<(), Verdict>) {
        let figures = self.links.get(&id).map(|link| &link.figures);
        match (verdict, figures) {
            (Ok(()), Some(figures)) => {
                figures.add_received_frame();
                self.figures.count(Verdict::Delivered, 1);
            }
            (Err(verdict), Some(figures)) => {
                figures.add_dropped(1);
                self.figures.count(verdict, 1);
            }
            (Ok(()) | Err(_), None) => {}
        }
    }

    /// Hands what was received to the TAP.
    pub(super) fn write_frames(&mut self) {
        let Self { coalescer, tap, figures, segment_buffer, .. } = self;
        coalescer.flush(|packet| {
            let Err(error) = tap.write(packet) else { return };
            let Some(header) = VnetHeader::parse(packet).filter(|header| header.gso_type != VnetHeader::GSO_NONE)
            else {
                tracing::trace!(%error, "the TAP refused a frame");
                return figures.count(Verdict::Undeliverable, 1);
            };
            // A super-frame this kernel does not take, one by one.
            let mut frame = packet[VnetHeader::LEN..].to_vec();
            let mut single = Vec::new();
            let split = gso::split(&header, &mut frame, segment_buffer, |segment| {
                single.clear();
                single.extend_from_slice(&[0; VnetHeader::LEN]);
                single.extend_from_slice(segment);
                if tap.write(&single).is_err() {
                    figures.count(Verdict::Undeliverable, 1);
                }
            });
            if split.is_err() {
                figures.count(Verdict::Undeliverable, 1);
            }
        });
    }

    /// Writes one frame that is complete in itself, and counts it as `verdict` when the TAP has taken it.
    pub(super) fn write_frame(&mut self, frame: &[u8], verdict: Verdict) {
        let mut packet = vec![0; VnetHeader::LEN];
        packet.extend_from_slice(frame);
        let verdict = if self.tap.write(&packet).is_ok() { verdict } else { Verdict::Undeliverable };
        self.figures.count(verdict, 1);
    }

    /// Makes a unicast frame one for this host; in switch mode ARP keeps its addresses, which the bridge needs.
    pub(super) fn address_to_host(&self, frame: &mut [u8]) {
        rewrite_destination(&self.table, self.tap.mac(), frame);
    }
}

/// Checks a peer's frame and puts it among those for the TAP.
fn deliver(table: &Table, uid: Uid, mac: [u8; 6], frame: &mut [u8], coalescer: &mut Coalescer) -> Result<(), Verdict> {
    if frame.len() < ETHERNET_LEN {
        return Err(Verdict::MalformedDatagram);
    }
    table.may_be_from(uid, frame)?;
    rewrite_destination(table, mac, frame);
    coalescer.push(frame);
    Ok(())
}

fn rewrite_destination(table: &Table, mac: [u8; 6], frame: &mut [u8]) {
    let is_arp = frame.get(12..ETHERNET_LEN) == Some(&[0x08, 0x06]);
    let is_group = frame.first().is_some_and(|byte| byte & 1 == 1);
    if is_group || (is_arp && table.switch_mode()) {
        return;
    }
    if let Some(destination) = frame.first_chunk_mut::<6>() {
        *destination = mac;
    }
}

/// The descriptor or the device behind it is gone.
pub(super) fn is_fatal(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::EBADFD | libc::ENODEV | libc::ENOTSOCK | libc::EIO))
}

/// What ICE would look at: the magic cookie, and no longer than STUN and TURN messages of ours get (RFC 8489 section 5).
fn is_stun(datagram: &[u8]) -> bool {
    (20..=MAX_STUN).contains(&datagram.len()) && datagram[4..8] == [0x21, 0x12, 0xa4, 0x42]
}
