//! A datagram of a controller: refused with a reason, or a call that means the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tincan::wire::control::{Datagram, decode_datagram, encode_packet, parse_request, request_to_value};

fuzz_target!(|datagram: &[u8]| match decode_datagram(datagram) {
    Ok(Datagram::Control(json)) => match parse_request(&json) {
        Ok(request) => assert_eq!(parse_request(&request_to_value(&request)), Ok(request)),
        Err(error) => assert!(!error.to_string().is_empty()),
    },
    Ok(Datagram::Packet { source, destination, frame }) => {
        assert_eq!(encode_packet(source, destination, &frame), datagram);
    }
    Err(error) => assert!(!error.to_string().is_empty()),
});
