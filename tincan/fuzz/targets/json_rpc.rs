//! A line on the Unix socket: answered by one line, or a call that means the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tincan::wire::json_rpc::{call, failure, parse_call};

fuzz_target!(|line: &[u8]| match parse_call(line) {
    Ok(read) => {
        let again = parse_call(call(1, &read.method).as_bytes());
        assert_eq!(again.map(|again| again.method), Ok(read.method));
    }
    Err(error) => {
        let answer = failure(&error.id.unwrap_or_default(), &error.error);
        assert_eq!(answer.matches('\n').count(), 1);
    }
});
