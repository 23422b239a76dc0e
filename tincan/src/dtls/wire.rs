//! The memory end of a session: one datagram in, whole datagrams and sealed records out.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

/// Most datagrams that wait to be taken; a flight has four at the very most, the rest is for a caller who forgets.
const MAX_OUTGOING: usize = 16;

/// First byte of a record that holds application data (RFC 6347 section 4.3.1).
const APPLICATION_DATA: u8 = 23;

/// Length of a record's header (RFC 6347 section 4.1).
const HEADER_LEN: usize = 13;

/// What `BoringSSL` reads from and writes to. Neither ever waits.
#[derive(Default)]
pub(super) struct Wire {
    incoming: Vec<u8>,
    unread: bool,
    outgoing: VecDeque<Vec<u8>>,
    sealed: Vec<u8>,
    written: u64,
}

impl Wire {
    /// Lays down the datagram that the next read takes.
    pub(super) fn feed(&mut self, datagram: &[u8]) {
        self.incoming.clear();
        self.incoming.extend_from_slice(datagram);
        self.unread = true;
    }

    /// The buffer that sealed records are appended to; swap the caller's in and out again.
    pub(super) fn sealed(&mut self) -> &mut Vec<u8> {
        &mut self.sealed
    }

    /// Next handshake or alert datagram.
    pub(super) fn take_outgoing(&mut self) -> Option<Vec<u8>> {
        self.outgoing.pop_front()
    }

    /// Handshake and alert datagrams written so far.
    pub(super) fn written(&self) -> u64 {
        self.written
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.unread {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.unread = false;
        let length = self.incoming.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.incoming[..length]);
        Ok(length)
    }
}

impl Write for Wire {
    fn write(&mut self, datagram: &[u8]) -> io::Result<usize> {
        if datagram.first() == Some(&APPLICATION_DATA) {
            self.sealed.extend_from_slice(datagram);
        } else {
            self.written += 1;
            if self.outgoing.len() < MAX_OUTGOING {
                self.outgoing.push_back(datagram.to_vec());
            }
        }
        Ok(datagram.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a datagram looks like from outside, before anything in it is believed.
pub(super) struct Shape {
    /// Records whose header and length fit.
    pub(super) whole: u64,
    /// 1 if something follows them that is no record, else 0.
    pub(super) damaged: u64,
}

impl Shape {
    pub(super) fn of(datagram: &[u8]) -> Self {
        let mut rest = datagram;
        let mut whole = 0;
        while let Some(after) = after_record(rest) {
            whole += 1;
            rest = after;
        }
        Self { whole, damaged: u64::from(!rest.is_empty()) }
    }
}

/// What follows the first record: type 20..=23, version 254.x, epoch and number, then a length that fits.
fn after_record(bytes: &[u8]) -> Option<&[u8]> {
    let &[20..=23, 254, _, _, _, _, _, _, _, _, _, high, low] = bytes.first_chunk::<HEADER_LEN>()? else {
        return None;
    };
    bytes.get(HEADER_LEN + usize::from(u16::from_be_bytes([high, low]))..)
}
