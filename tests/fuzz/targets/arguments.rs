//! The arguments of notifier and reporter, between NUL bytes: whatever is taken can be written and
//! read again.
#![no_main]

use f2bmqtt::abuseipdb::call::{self, Verdict};
use f2bmqtt::abuseipdb::report::Report;
use f2bmqtt::notify;
use f2bmqtt::spool::Item;
use f2bmqtt::wire::Told;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|arguments: &[u8]| {
    let text = String::from_utf8_lossy(arguments);
    let words: Vec<&str> = text.split('\0').collect();
    let word = |n: usize| words.get(n).copied().unwrap_or("");
    let call = notify::Call {
        jail: word(0),
        address: word(1),
        bantime: word(2),
        action: word(3),
        restored: word(4),
        failures: word(5),
        time: word(6),
    };
    if let Ok((Some(told), _)) = call.told() {
        assert_eq!(Told::parse(told.encode().as_bytes()), Ok(told));
    }
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    let call = call::Call::by_position(&words);
    if let Ok(Verdict::Report(report)) = call.decide(|| None, 1) {
        let written = report.encode();
        let paths = call.ledger.len() + call.log.len();
        assert!(written.len() as u64 <= Report::MAX || paths > 4096);
        assert_eq!(Report::parse(written.as_bytes()), Ok(*report));
    }
});
