//! The programs as filters of a clsact qdisc, where the kernel has no TCX (before Linux 6.6).
//!
//! A filter is known by its priority and handle. The priorities are behind those that the kernel gives out itself, so
//! foreign filters see every packet first; the handle is made of the TAP's name, so several daemons share an interface. A
//! filter stays until somebody removes it: there is nothing to pin, and a daemon that comes after finds and replaces it.

use std::io;

use anyhow::Context;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{Link as _, SchedClassifier, TcAttachType};
use nix::errno::Errno;
use nix::net::if_::{Interface, if_nameindex};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcHandle as Handle, TcMessage};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::attach::side_of;
use super::{LOOPBACK_INDEX, PORT_EGRESS, PORT_INGRESS, PROGRAMS, UPLINK_INGRESS, failure, interface_name};

/// Priorities: what comes before the others of an uplink, its main program, and what takes the rest. The kernel gives out
/// 0xc000 and less.
const FIRST: u16 = 0xfe01;
const MAIN: u16 = 0xfe02;
const LAST: u16 = 0xfe03;
/// The handle's bit that says that the qdisc was made for these filters.
const MADE_QDISC: u32 = 1;
/// Most bytes of one answer of the kernel: it writes at most this much of a list at once.
const MAX_ANSWER: usize = 1 << 15;

/// The filters of one TAP; those that no pins speak for are removed with this value.
#[derive(Debug)]
pub struct Filters {
    handle: u32,
    ends_with_daemon: bool,
}

/// A filter on one side of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Filter {
    priority: u16,
    handle: u32,
}

/// Whether the kernel has TCX.
#[must_use]
pub fn has_tcx() -> bool {
    let Ok(loopback) = interface_name(LOOPBACK_INDEX) else { return true };
    !SchedClassifier::query_tcx(&loopback, TcAttachType::Ingress)
        .is_err_and(|error| failure::system_error(&error) == Some(Errno::EINVAL))
}

impl Filters {
    /// Those of a TAP; `ends_with_daemon` where nothing else could find them after it.
    pub fn of(tap: &str, ends_with_daemon: bool) -> Self {
        Self { handle: handle_of(tap), ends_with_daemon }
    }

    /// Attaches a program, in place of the one that a daemon before left there.
    pub fn attach(&self, program: &mut SchedClassifier, name: &str, index: u32) -> anyhow::Result<()> {
        let (interface, side) = (interface_name(index)?, side_of(name)?);
        let step = || format!("attach to {interface} by clsact");
        let has_made = match tc::qdisc_add_clsact(&interface) {
            Ok(()) => true,
            Err(TcError::AlreadyAttached) => false,
            Err(error) if failure::system_error(&error) == Some(Errno::EEXIST) => false,
            Err(error) => return Err(failure::explain(error, &step())),
        };
        let of_both = both_sides(index)?;
        let there = of_both.iter().find(|(of_side, found)| *of_side == side && self.is(*found, name));
        let link = if let Some((_, Filter { priority, handle })) = there {
            let link = SchedClassifierLink::attached(&interface, side, *priority, TcHandle::from(*handle), None)?;
            program.attach_to_link(link)
        } else {
            let is_ours = has_made || of_both.iter().any(|(_, found)| self.owns_qdisc(*found));
            let handle = TcHandle::from(self.handle | if is_ours { MADE_QDISC } else { 0 });
            let options = NlOptions { priority: priority_of(name), handle, classid: None };
            program.attach_with_options(&interface, side, TcAttachOptions::Netlink(options))
        };
        let link = link.map_err(|error| failure::explain(error, &step()))?;
        // The filter stays until it is removed by name.
        std::mem::forget(program.take_link(link)?);
        Ok(())
    }

    /// Whether a program is on an interface.
    pub fn is_on(&self, name: &str, index: u32) -> anyhow::Result<bool> {
        Ok(list(index, side_of(name)?)?.into_iter().any(|found| self.is(found, name)))
    }

    /// Removes all of them in the network namespace of the calling thread, and qdiscs that were made for them.
    pub fn remove(&self) -> anyhow::Result<()> {
        let interfaces = if_nameindex().context("list the interfaces")?;
        interfaces.iter().map(Interface::index).try_for_each(|index| self.remove_from(index))
    }

    fn remove_from(&self, index: u32) -> anyhow::Result<()> {
        let found = both_sides(index)?;
        let (own, foreign): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, filter)| self.is_any(*filter));
        if own.is_empty() {
            return Ok(());
        }
        let interface = interface_name(index)?;
        for (side, Filter { priority, handle }) in &own {
            let link = SchedClassifierLink::attached(&interface, *side, *priority, TcHandle::from(*handle), None)?;
            link.detach().with_context(|| format!("remove a filter of {interface}"))?;
        }
        if foreign.is_empty() && own.iter().any(|(_, filter)| self.owns_qdisc(*filter)) {
            remove_qdisc(index).with_context(|| format!("remove the clsact qdisc of {interface}"))?;
        }
        Ok(())
    }

    fn is(&self, found: Filter, name: &str) -> bool {
        found.priority == priority_of(name) && found.handle & !MADE_QDISC == self.handle
    }

    fn is_any(&self, found: Filter) -> bool {
        PROGRAMS.iter().any(|(name, _)| self.is(found, name))
    }

    fn owns_qdisc(&self, found: Filter) -> bool {
        self.is_any(found) && found.handle & MADE_QDISC != 0
    }
}

impl Drop for Filters {
    fn drop(&mut self) {
        if self.ends_with_daemon
            && let Err(error) = self.remove()
        {
            tracing::warn!("filters are left behind, `tincan cleanup` removes them: {error:#}");
        }
    }
}

/// Removes what daemons left whose TAP is gone; returns the interfaces it was on.
pub fn remove_orphans(tap: Option<&str>) -> anyhow::Result<Vec<String>> {
    let interfaces = if_nameindex().context("list the interfaces")?;
    let names: Vec<String> =
        interfaces.iter().filter_map(|interface| Some(interface.name().to_str().ok()?.to_owned())).collect();
    let living: Vec<u32> = names.iter().map(|name| handle_of(name)).collect();
    let wanted = tap.map(handle_of);
    let mut removed = Vec::new();
    for (name, index) in names.iter().zip(interfaces.iter().map(Interface::index)) {
        for (_, filter) in both_sides(index)? {
            let orphan = Filters { handle: filter.handle & !MADE_QDISC, ends_with_daemon: false };
            let is_meant = wanted.is_none_or(|wanted| wanted == orphan.handle) && !living.contains(&orphan.handle);
            // An earlier turn may have taken several.
            if is_meant && orphan.is_any(filter) && !removed.contains(name) {
                orphan.remove_from(index)?;
                removed.push(name.clone());
            }
        }
    }
    Ok(removed)
}

/// A number for each TAP's name (FNV-1a, 32 bits), never 0, with room for the flag.
fn handle_of(tap: &str) -> u32 {
    let hash = tap.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash | 0x8000_0000) & !MADE_QDISC
}

fn priority_of(name: &str) -> u16 {
    match name {
        UPLINK_INGRESS => MAIN,
        PORT_INGRESS | PORT_EGRESS => LAST,
        _ => FIRST,
    }
}

fn both_sides(index: u32) -> anyhow::Result<Vec<(TcAttachType, Filter)>> {
    let mut found = Vec::new();
    for side in [TcAttachType::Ingress, TcAttachType::Egress] {
        found.extend(list(index, side)?.into_iter().map(|filter| (side, filter)));
    }
    Ok(found)
}

/// The filters on one side of an interface; none without a qdisc that has filters.
fn list(index: u32, side: TcAttachType) -> anyhow::Result<Vec<Filter>> {
    let minor = if side == TcAttachType::Egress { Handle::MIN_EGRESS } else { Handle::MIN_INGRESS };
    let parent = Handle { major: Handle::CLSACT.major, minor };
    let answers = ask(RouteNetlinkMessage::GetTrafficFilter(message(index, Handle::UNSPEC, parent)?), NLM_F_DUMP);
    let answers = match answers {
        // No such qdisc, or no such interface any more.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV | libc::ENOENT)) => Vec::new(),
        other => other.with_context(|| format!("list the filters of interface {index}"))?,
    };
    let filter = |answer: RouteNetlinkMessage| {
        let RouteNetlinkMessage::NewTrafficFilter(TcMessage { header, .. }) = answer else { return None };
        let priority = u16::try_from(header.info >> 16).unwrap_or_default();
        Some(Filter { priority, handle: header.handle.into() }).filter(|filter| filter.handle != 0)
    };
    Ok(answers.into_iter().filter_map(filter).collect())
}

fn remove_qdisc(index: u32) -> anyhow::Result<()> {
    let handle = Handle { major: Handle::CLSACT.major, minor: 0 };
    ask(RouteNetlinkMessage::DelQueueDiscipline(message(index, handle, Handle::CLSACT)?), NLM_F_ACK)?;
    Ok(())
}

fn message(index: u32, handle: Handle, parent: Handle) -> anyhow::Result<TcMessage> {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).context("an interface index")?;
    (message.header.handle, message.header.parent) = (handle, parent);
    Ok(message)
}

/// Sends one request and returns what the kernel answers, until it says that this is all.
fn ask(request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    // The kernel answers within the call that asks: an answer that is not there will never come.
    socket.set_non_blocking(true)?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    loop {
        let mut answer = Vec::with_capacity(MAX_ANSWER);
        socket.recv_from(&mut answer, 0)?;
        if read_answer(&answer, &mut found)? {
            return Ok(found);
        }
    }
}

/// Adds what one datagram of the kernel holds; true when it is the last.
fn read_answer(mut answer: &[u8], found: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
    while !answer.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer).map_err(io::Error::other)?;
        let length = usize::try_from(message.header.length).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => found.push(inner),
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return error.code.map_or(Ok(true), |_| Err(error.to_io())),
            NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {
                return Err(io::Error::other("an answer that is no list"));
            }
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tap_has_a_handle_of_its_own_that_is_no_flag() {
        let handles: Vec<u32> = ["ipop", "ipop1", "tk", "second", ""].map(handle_of).to_vec();
        for (position, handle) in handles.iter().enumerate() {
            assert!(handle & MADE_QDISC == 0 && *handle != 0);
            assert!(!handles[..position].contains(handle));
        }
    }

    #[test]
    fn an_uplinks_programs_have_their_order() {
        let [stripped, main, port, _] = super::super::UPLINK_PROGRAMS.map(priority_of);
        assert!(stripped < main && main < port);
    }
}
