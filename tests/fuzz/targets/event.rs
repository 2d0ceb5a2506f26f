//! An event, as it comes from the broker: what is taken is bounded, and means the same when it is
//! sent on.
#![no_main]

use f2bmqtt::wire::Event;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    if let Ok(event) = Event::parse(payload) {
        assert!(payload.len() <= 4096);
        let again = event.encode();
        assert!(!again.contains(char::is_control), "{again}");
        assert_eq!(Event::parse(again.as_bytes()).as_ref(), Ok(&event));
    }
});
