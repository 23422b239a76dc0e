//! A Binding query to a STUN server from one of our ports: which address does the server see?

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use stun::agent::TransactionId;

use crate::edge::ice::message::{Class, Incoming, server_query};

/// First retransmission time; doubles. Sent at 0, 0.1, 0.3, 0.7 s.
const FIRST_RTO: Duration = Duration::from_millis(100);
/// The server had its time.
pub const PATIENCE: Duration = Duration::from_millis(1500);

/// One query with its retransmissions.
#[derive(Debug)]
pub struct Query {
    id: TransactionId,
    next: Instant,
    rto: Duration,
    give_up: Instant,
}

impl Query {
    pub fn new(now: Instant) -> Self {
        Self { id: TransactionId::new(), next: now, rto: FIRST_RTO, give_up: now + PATIENCE }
    }

    /// The datagram to send now, if one is due.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        if now < self.next || self.is_over(now) {
            return None;
        }
        self.next = now + self.rto;
        self.rto *= 2;
        Some(server_query(self.id))
    }

    /// The address the server saw, if this is its answer.
    pub fn answer(&self, incoming: &Incoming) -> Option<SocketAddr> {
        if incoming.class() != Class::Success || incoming.transaction() != self.id {
            return None;
        }
        incoming.mapped().filter(|mapped| mapped.port() != 0 && !mapped.ip().is_unspecified())
    }

    pub fn is_over(&self, now: Instant) -> bool {
        self.give_up <= now
    }

    pub fn deadline(&self) -> Instant {
        self.next.min(self.give_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::ice::message::{answer, short_term_key};

    #[test]
    fn a_silent_server_is_asked_four_times_in_a_second_and_a_half() {
        let start = Instant::now();
        let mut query = Query::new(start);
        let (mut now, mut sent) = (start, Vec::new());
        while !query.is_over(now) {
            if query.poll_transmit(now).is_some() {
                sent.push((now - start).as_millis());
            }
            now = query.deadline();
        }
        assert_eq!(sent, [0, 100, 300, 700]);
        assert_eq!(now - start, PATIENCE);
    }

    #[test]
    fn only_the_answer_to_this_query_counts() {
        let query = Query::new(Instant::now());
        let mapped: SocketAddr = "203.0.113.5:4444".parse().unwrap();
        let reply = |id| Incoming::parse(&answer(id, mapped, &short_term_key("x"))).unwrap();
        assert_eq!(query.answer(&reply(query.id)), Some(mapped));
        assert_eq!(query.answer(&reply(TransactionId::new())), None);
    }
}
