//! Datagrams for one path, collected so that one system call sends many.

use std::sync::Arc;

use tincan_common::verdict::Verdict;

use crate::dataplane::engine::{Figures, LinkFigures};
use crate::dataplane::port::{CHANNEL_HEADER_LEN, Patience, Ports, channel_header};
use crate::link::{Path, PortKind};

/// Most bytes of one burst: an IPv4 packet less its headers, `udp(7)`.
const MAX_BURST: usize = 65_000;

/// Where a burst goes, and whose it is.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) port: PortKind,
    pub(super) path: Path,
    pub(super) figures: Arc<LinkFigures>,
}

/// See the module's head.
pub(super) struct Batch {
    ports: Arc<Ports>,
    figures: Arc<Figures>,
    target: Option<Target>,
    bytes: Vec<u8>,
    segment: usize,
    count: usize,
}

impl Batch {
    pub(super) fn new(ports: Arc<Ports>, figures: Arc<Figures>) -> Self {
        Self { ports, figures, target: None, bytes: Vec::with_capacity(1 << 17), segment: 0, count: 0 }
    }

    /// Adds the datagram that `write` appends to the buffer, and sends what cannot wait: a burst is datagrams of equal
    /// length with at most one shorter, the last. `write` must leave the buffer as it was when it fails.
    pub(super) fn add<E>(
        &mut self,
        target: &Target,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.target.as_ref().is_some_and(|held| held.port != target.port || held.path != target.path) {
            self.flush();
        }
        let start = self.bytes.len();
        if target.path.relay.is_some() {
            self.bytes.extend_from_slice(&[0; CHANNEL_HEADER_LEN]);
        }
        if let Err(error) = write(&mut self.bytes) {
            self.bytes.truncate(start);
            return Err(error);
        }
        self.fill_channel_header(target, start);
        let length = self.bytes.len() - start;
        if self.count > 0 && length > self.segment {
            self.send(start);
        }
        if self.count == 0 {
            self.target = Some(target.clone());
            self.segment = length;
        }
        self.count += 1;
        let most = self.ports.of(target.port).max_segments();
        if length < self.segment || self.count >= most || self.bytes.len() + self.segment > MAX_BURST {
            self.flush();
        }
        Ok(())
    }

    /// Sends a handshake or link-control datagram, which is no frame, behind the frames that are held.
    pub(super) fn send_record(&mut self, target: &Target, record: &[u8]) {
        self.flush();
        let start = self.bytes.len();
        if target.path.relay.is_some() {
            self.bytes.extend_from_slice(&[0; CHANNEL_HEADER_LEN]);
        }
        self.bytes.extend_from_slice(record);
        self.fill_channel_header(target, start);
        let length = self.bytes.len();
        if self.ports.of(target.port).send(&target.path, &self.bytes, length, Patience::Never) == 1 {
            target.figures.add_sent(0, u64::try_from(length).unwrap_or(u64::MAX));
        } else {
            self.figures.count(Verdict::SendFailed, 1);
            target.figures.add_dropped(1);
        }
        self.bytes.clear();
    }

    /// Sends what is held.
    pub(super) fn flush(&mut self) {
        self.send(self.bytes.len());
    }

    /// Sends the first `end` bytes and keeps the rest.
    fn send(&mut self, end: usize) {
        let Some(target) = self.target.take() else { return };
        let sent = self.ports.of(target.port).send(&target.path, &self.bytes[..end], self.segment, Patience::Wait);
        let lost = u64::try_from(self.count.saturating_sub(sent)).unwrap_or(u64::MAX);
        let bytes = u64::try_from(end.min(sent * self.segment)).unwrap_or(u64::MAX);
        let sent = u64::try_from(sent).unwrap_or(u64::MAX);
        self.figures.count(Verdict::Sent, sent);
        target.figures.add_sent(sent, bytes);
        self.figures.count(Verdict::SendFailed, lost);
        target.figures.add_dropped(lost);
        self.bytes.drain(..end);
        self.count = 0;
    }

    fn fill_channel_header(&mut self, target: &Target, start: usize) {
        let Some(hop) = target.path.relay else { return };
        let payload_len = self.bytes.len() - start - CHANNEL_HEADER_LEN;
        if let Some(header) = channel_header(hop, payload_len) {
            self.bytes[start..start + CHANNEL_HEADER_LEN].copy_from_slice(&header);
        }
    }
}
