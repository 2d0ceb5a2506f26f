//! A settings file: read whole or refused with all its faults, which never show a password.
#![no_main]

use std::path::Path;

use f2bmqtt::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let nothing = |_: &str| None;
    let secret = [b"MQTT_PASSWORD=pass4711word\n", text].concat();
    if let Err(faults) = Config::parse(Path::new("mqtt.env"), &secret, &nothing, "node") {
        assert!(!faults.to_string().contains("pass4711word"));
    }
    let _ = Config::parse(Path::new("mqtt.env"), text, &nothing, "node");
});
