//! An answer of AbuseIPDB, or of whoever is between: a wait is bounded, and what is logged, too.
#![no_main]

use f2bmqtt::abuseipdb::answer::{Accepted, Answer, BulkAccepted, Listing, Trouble};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((head, body)) = bytes.split_first_chunk::<18>() else { return };
    let number = |at: usize| {
        let eight: [u8; 8] = std::array::from_fn(|n| head[at + n]);
        Some(i64::from_le_bytes(eight))
    };
    let answer = Answer {
        status: [200, 400, 401, 422, 429, 500][usize::from(head[0]) % 6],
        retry_after: number(2).filter(|_| head[1] & 1 == 0),
        reset: number(10).filter(|_| head[1] & 2 == 0),
        body: body.to_vec(),
        ..Answer::default()
    };
    let now = 1_795_342_588;
    let _ = answer.read::<Listing>(now);
    let _ = answer.read::<BulkAccepted>(now);
    if let Err(Trouble::Spent(wait)) = answer.read::<Accepted>(now) {
        assert!((1..=25 * 3600).contains(&wait));
    }
    assert!(answer.complaint("secret").chars().count() < 400);
    assert!(!answer.complaint("secret").contains("secret"));
});
