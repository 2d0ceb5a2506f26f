//! A reply of fail2ban's socket: a pickle, of which nothing but plain values is ever made.
#![no_main]

use f2bmqtt::fail2ban::pickle::{Value, read};
use libfuzzer_sys::fuzz_target;

fn count(value: &Value) -> usize {
    1 + value.list().map_or(0, |list| list.iter().map(count).sum())
}

fuzz_target!(|reply: &[u8]| {
    if let Ok(value) = read(reply) {
        // A few bytes make no heap of values.
        assert!(count(&value) <= 64 * 1024 + 16 * reply.len());
        let _ = (value.text(), value.int());
    }
});
