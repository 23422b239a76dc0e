//! What the answers of a STUN server with two addresses say about a NAT: the tables of RFC 5780, in RFC 4787's words.

use std::fmt;
use std::net::SocketAddr;

use crate::doctor::report::Check;

const NAME: &str = "nat";

/// On what of the destination a NAT's mapping or filtering depends (RFC 4787 sections 4.1 and 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependence {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

impl fmt::Display for Dependence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        })
    }
}

/// What another address or port of the server saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was sent to from this address.
    As(SocketAddr),
    /// It did not answer.
    Silent,
    /// The server named no other address.
    NotAsked,
}

/// What came of asking the server to answer from another address or port (CHANGE-REQUEST).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    Through,
    NotThrough,
    /// The server did not do what it was asked.
    Ignored,
    NotAsked,
}

/// A NAT's behaviour, or why it cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Known(Dependence),
    Unknown(&'static str),
}

const ONE_ADDRESS: &str = "the server has one address";
const OTHER_SILENT: &str = "the server's other address does not answer";
const OTHER_PORT_SILENT: &str = "the other port of the server's other address does not answer";
const CHANGE_IGNORED: &str = "the server does not answer from its other address when asked to";

/// Everything that was seen from one local port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observations {
    /// The address the datagrams left this host with.
    pub local: SocketAddr,
    /// As what the server saw it.
    pub mapped: SocketAddr,
    /// Mapping, test II: the other address, the same port.
    pub other_address: Seen,
    /// Mapping, test III: the other address, the other port.
    pub other_port: Seen,
    /// Filtering, test II: an answer from the other address and port.
    pub from_other_address: Came,
    /// Filtering, test III: an answer from the same address, another port.
    pub from_other_port: Came,
}

/// RFC 5780 section 4.3.
pub fn mapping(seen: &Observations) -> Behaviour {
    use Behaviour::{Known, Unknown};
    if seen.local == seen.mapped {
        return Known(Dependence::EndpointIndependent);
    }
    match (seen.other_address, seen.other_port) {
        (Seen::NotAsked, _) => Unknown(ONE_ADDRESS),
        (Seen::Silent, _) => Unknown(OTHER_SILENT),
        (Seen::As(second), _) if second == seen.mapped => Known(Dependence::EndpointIndependent),
        (Seen::As(_), Seen::Silent | Seen::NotAsked) => Unknown(OTHER_PORT_SILENT),
        (Seen::As(second), Seen::As(third)) if third == second => Known(Dependence::AddressDependent),
        (Seen::As(_), Seen::As(_)) => Known(Dependence::AddressAndPortDependent),
    }
}

/// RFC 5780 section 4.4. Silence counts only when the other address answered what it was asked itself.
pub fn filtering(seen: &Observations) -> Behaviour {
    use Behaviour::{Known, Unknown};
    match (seen.from_other_address, seen.from_other_port, seen.other_address) {
        (Came::NotAsked, ..) => Unknown(ONE_ADDRESS),
        (Came::Through, ..) => Known(Dependence::EndpointIndependent),
        (Came::Ignored, ..) | (Came::NotThrough, Came::Ignored | Came::NotAsked, _) => Unknown(CHANGE_IGNORED),
        (Came::NotThrough, Came::Through | Came::NotThrough, Seen::Silent | Seen::NotAsked) => Unknown(OTHER_SILENT),
        (Came::NotThrough, Came::Through, Seen::As(_)) => Known(Dependence::AddressDependent),
        (Came::NotThrough, Came::NotThrough, Seen::As(_)) => Known(Dependence::AddressAndPortDependent),
    }
}

/// What it means for links.
pub fn judge(seen: &Observations) -> Check {
    let filtering = match filtering(seen) {
        Behaviour::Known(dependence) => format!("filtering {dependence}"),
        Behaviour::Unknown(why) => format!("filtering cannot be told: {why}"),
    };
    if seen.local == seen.mapped {
        return Check::ok(NAME, format!("no address translation, {filtering}"));
    }
    match mapping(seen) {
        Behaviour::Known(Dependence::EndpointIndependent) => {
            Check::ok(NAME, format!("mapping endpoint-independent, {filtering}: direct links work with most peers"))
        }
        Behaviour::Known(dependence @ (Dependence::AddressDependent | Dependence::AddressAndPortDependent)) => {
            Check::warning(
                NAME,
                format!("mapping {dependence}, {filtering}: no direct link to peers behind a NAT that filters by port"),
                "give the controller a TURN server",
            )
        }
        Behaviour::Unknown(why) => Check::skipped(
            NAME,
            format!("there is a NAT; mapping cannot be told: {why}; {filtering}"),
            "name a STUN server with two addresses (RFC 5780)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 1], port))
    }

    fn observations() -> Observations {
        Observations {
            local: "192.168.1.2:5000".parse().unwrap(),
            mapped: address(1),
            other_address: Seen::NotAsked,
            other_port: Seen::NotAsked,
            from_other_address: Came::NotAsked,
            from_other_port: Came::NotAsked,
        }
    }

    #[test]
    fn every_row_of_the_mapping_table() {
        use Behaviour::{Known, Unknown};
        use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
        let seen_as = |port| Seen::As(address(port));
        for (other_address, other_port, expected) in [
            (Seen::NotAsked, Seen::NotAsked, Unknown(ONE_ADDRESS)),
            (Seen::Silent, Seen::NotAsked, Unknown(OTHER_SILENT)),
            (Seen::Silent, seen_as(1), Unknown(OTHER_SILENT)),
            (seen_as(1), Seen::NotAsked, Known(EndpointIndependent)),
            (seen_as(1), seen_as(2), Known(EndpointIndependent)),
            (seen_as(2), Seen::NotAsked, Unknown(OTHER_PORT_SILENT)),
            (seen_as(2), Seen::Silent, Unknown(OTHER_PORT_SILENT)),
            (seen_as(2), seen_as(2), Known(AddressDependent)),
            (seen_as(2), seen_as(3), Known(AddressAndPortDependent)),
            (seen_as(2), seen_as(1), Known(AddressAndPortDependent)),
        ] {
            let seen = Observations { other_address, other_port, ..observations() };
            assert_eq!(mapping(&seen), expected, "{seen:?}");
            let untranslated = Observations { local: seen.mapped, ..seen };
            assert_eq!(mapping(&untranslated), Known(EndpointIndependent), "without a NAT");
        }
    }

    #[test]
    fn every_row_of_the_filtering_table() {
        use Behaviour::{Known, Unknown};
        use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
        let alive = Seen::As(address(1));
        for (from_other_address, from_other_port, other_address, expected) in [
            (Came::NotAsked, Came::NotAsked, Seen::NotAsked, Unknown(ONE_ADDRESS)),
            (Came::Through, Came::NotAsked, alive, Known(EndpointIndependent)),
            (Came::Through, Came::NotAsked, Seen::Silent, Known(EndpointIndependent)),
            (Came::Ignored, Came::NotAsked, alive, Unknown(CHANGE_IGNORED)),
            (Came::NotThrough, Came::NotAsked, alive, Unknown(CHANGE_IGNORED)),
            (Came::NotThrough, Came::Ignored, alive, Unknown(CHANGE_IGNORED)),
            (Came::NotThrough, Came::Through, Seen::Silent, Unknown(OTHER_SILENT)),
            (Came::NotThrough, Came::NotThrough, Seen::Silent, Unknown(OTHER_SILENT)),
            (Came::NotThrough, Came::NotThrough, Seen::NotAsked, Unknown(OTHER_SILENT)),
            (Came::NotThrough, Came::Through, alive, Known(AddressDependent)),
            (Came::NotThrough, Came::NotThrough, alive, Known(AddressAndPortDependent)),
        ] {
            let seen = Observations { other_address, from_other_address, from_other_port, ..observations() };
            assert_eq!(filtering(&seen), expected, "{seen:?}");
        }
    }

    #[test]
    fn a_mapping_that_depends_on_the_peer_is_a_warning_and_an_unknown_one_is_skipped() {
        let judged = |other: Seen, third: Seen| {
            judge(&Observations { other_address: other, other_port: third, ..observations() })
        };
        let symmetric = judged(Seen::As(address(2)), Seen::As(address(3)));
        assert_eq!(symmetric.state, State::Warning);
        assert!(symmetric.found.contains("mapping address-and-port-dependent") && symmetric.advice.contains("TURN"));
        assert_eq!(judged(Seen::As(address(1)), Seen::NotAsked).state, State::Ok);
        let unknown = judged(Seen::NotAsked, Seen::NotAsked);
        assert_eq!(unknown.state, State::Skipped);
        assert!(unknown.found.contains("mapping cannot be told: the server has one address"), "{}", unknown.found);
        let open = judge(&Observations { local: address(1), ..observations() });
        assert_eq!(open.state, State::Ok);
        assert!(open.found.starts_with("no address translation"), "{}", open.found);
    }
}
