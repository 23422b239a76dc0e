//! The addresses of this host that peers would be offered.

use crate::doctor::report::Check;
use crate::edge::netlink::Netlink;

const NAME: &str = "addresses";
/// More are not named.
const SHOWN: usize = 4;

/// Without one no link comes up.
pub async fn check(tap: &str) -> Check {
    let found = match Netlink::new() {
        Ok(netlink) => netlink.underlay_addresses().await,
        Err(error) => Err(error),
    };
    let addresses: Vec<String> = match found {
        Ok(found) => found.into_iter().filter(|one| one.interface != tap).map(|one| one.addr.to_string()).collect(),
        Err(error) => return Check::problem(NAME, format!("{error:#}"), "look at this host's permissions for netlink"),
    };
    judge(&addresses)
}

fn judge(addresses: &[String]) -> Check {
    if addresses.is_empty() {
        let found = "no interface that is up has an address for peers; loopback and link-local ones do not count";
        return Check::problem(NAME, found, "bring an interface up and give it an address");
    }
    let more = addresses.len().saturating_sub(SHOWN);
    let named = addresses[..addresses.len() - more].join(", ");
    let others = if more == 0 { String::new() } else { format!(" and {more} more") };
    Check::ok(NAME, format!("peers are offered {named}{others}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;

    #[test]
    fn none_is_a_problem_and_many_are_counted() {
        assert_eq!(judge(&[]).state, State::Problem);
        let addresses: Vec<String> = (1..=6).map(|number| format!("192.0.2.{number}")).collect();
        assert!(judge(&addresses[..4]).found.ends_with("192.0.2.3, 192.0.2.4"));
        assert!(judge(&addresses).found.ends_with("192.0.2.4 and 2 more"));
    }
}
