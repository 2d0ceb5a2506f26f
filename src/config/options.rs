//! Finds options of mosquitto's clients in a setting. The scripts passed the values to `mosquitto_pub` unquoted, so
//! administrators set a port and TLS with `MQTT_HOST="hub -p 8883 --cafile /etc/ca.crt"`.

/// Each option, whether a value follows it, and the setting that replaces it.
const OPTIONS: [(&str, bool, Option<&str>); 15] = [
    ("-p", true, Some("MQTT_PORT")),
    ("--port", true, Some("MQTT_PORT")),
    ("--cafile", true, Some("MQTT_CAFILE")),
    ("--capath", true, Some("MQTT_TLS=on")),
    ("--tls-use-os-certs", false, Some("MQTT_TLS=on")),
    ("--cert", true, Some("MQTT_CERT")),
    ("--key", true, Some("MQTT_KEY")),
    ("-u", true, Some("MQTT_USER")),
    ("--username", true, Some("MQTT_USER")),
    ("-P", true, Some("MQTT_PASSWORD")),
    ("--pw", true, Some("MQTT_PASSWORD")),
    ("--insecure", false, None),
    ("--tls-version", true, None),
    ("-q", true, None),
    ("-V", true, None),
];

/// The error for a value with such options, with the lines to write instead.
pub(super) fn fault(key: &str, value: &str) -> Option<String> {
    let mut arguments = value.split_whitespace().peekable();
    let mut own = Vec::new();
    let (mut lines, mut unsupported) = (Vec::new(), Vec::new());
    while let Some(argument) = arguments.next() {
        let option = OPTIONS.iter().find(|(option, _, _)| *option == argument);
        // A password may have any text in it, but hardly a long option.
        let option = option.filter(|_| key != "MQTT_PASSWORD" || argument.len() > 2);
        let Some((option, has_value, setting)) = option else {
            own.push(argument);
            continue;
        };
        let value = if *has_value { arguments.next() } else { None };
        match setting {
            Some(setting) if setting.contains('=') => lines.push((*setting).to_owned()),
            Some("MQTT_PASSWORD") => lines.push("MQTT_PASSWORD='…'".to_owned()),
            Some(setting) => lines.push(format!("{setting}={}", value.unwrap_or("…"))),
            None => unsupported.push(*option),
        }
    }
    if lines.is_empty() && unsupported.is_empty() {
        return None;
    }
    let own = if key == "MQTT_PASSWORD" { "'…'".to_owned() } else { own.join(" ") };
    lines.insert(0, format!("{key}={own}"));
    let unsupported = match unsupported.as_slice() {
        [] => String::new(),
        options => format!("; f2bmqtt does not support {}", options.join(", ")),
    };
    Some(format!(
        "{key} has options of mosquitto_pub; write these lines instead: {}{unsupported}",
        lines.join(" and ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_with_options_is_an_error_with_the_lines_to_write() {
        let table = [
            ("MQTT_HOST", "h -p 1884", Some("MQTT_HOST=h and MQTT_PORT=1884")),
            (
                "MQTT_HOST",
                "h --cafile /f -p 8883 --insecure -q 1",
                Some(
                    "MQTT_HOST=h and MQTT_CAFILE=/f and MQTT_PORT=8883; f2bmqtt does not support --insecure, -q",
                ),
            ),
            (
                "MQTT_TOPIC",
                "blacklist --capath /etc/ssl",
                Some("MQTT_TOPIC=blacklist and MQTT_TLS=on"),
            ),
            ("MQTT_USER", "web1 -P hunter2", Some("MQTT_USER=web1 and MQTT_PASSWORD='…'")),
            ("MQTT_PASSWORD", "hunter2 --port 1884", Some("MQTT_PASSWORD='…' and MQTT_PORT=1884")),
            ("MQTT_PASSWORD", "a -p b", None),
            ("MQTT_HOST", "hub", None),
            ("MQTT_HOST", "h x", None),
        ];
        for (key, value, lines) in table {
            let expected = lines.map(|lines| {
                format!("{key} has options of mosquitto_pub; write these lines instead: {lines}")
            });
            assert_eq!(fault(key, value), expected, "{key}={value}");
        }
    }
}
