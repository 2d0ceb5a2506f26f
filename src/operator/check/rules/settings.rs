//! Checks of the settings and of their certificates. Pure.

use std::path::Path;

use crate::config::{Certificate, Config};
use crate::error::Error;
use crate::model::text::format_duration;
use crate::operator::check::finding::Finding;
use crate::sys::calendar::Calendar;

/// The findings about the settings file.
pub(in crate::operator::check) fn findings(
    settings: &Result<Config, Error>,
    path: &Path,
) -> Vec<Finding> {
    let path = path.display();
    match settings {
        Ok(config) if config.warnings.is_empty() => {
            vec![Finding::ok("settings", format!("the settings in {path} are valid"))]
        }
        Ok(config) => {
            let warnings = config.warnings.iter();
            warnings.map(|what| Finding::warning("settings", what.as_str())).collect()
        }
        Err(Error::Config(faults)) => faults
            .list()
            .iter()
            .map(|(line, what)| {
                let at = if *line == 0 { String::new() } else { format!(", line {line}") };
                let finding = Finding::fault("settings", format!("{path}{at}: {what}"));
                if *line == 0 { finding } else { finding.about(line) }
            })
            .map(|finding| finding.next("fix the setting, then: systemctl restart f2bmqttsub"))
            .collect(),
        Err(error) => vec![Finding::fault("settings", error.to_string()).next(format!(
            "install -m 0600 /usr/share/f2bmqtt/mqtt.env {path}\n\
             set the broker in it, then: systemctl restart f2bmqttsub"
        ))],
    }
}

/// The certificates that expire soon: an expired one makes connections fail.
pub(in crate::operator::check) fn certificates(all: &[Certificate], now: i64) -> Vec<Finding> {
    let (soon, later): (Vec<_>, Vec<_>) =
        all.iter().partition(|certificate| certificate.ends_soon(now));
    let mut found: Vec<Finding> = soon
        .into_iter()
        .map(|certificate| {
            let (title, date) = (certificate.title(), date(certificate.ends));
            let next = "renew the certificate; unless it is the CA's own, the same CA must issue the new one\n\
                        the service loads the new file when it reconnects";
            if certificate.ends <= now {
                return Finding::fault("certificate", format!("{title} expired on {date}")).next(next);
            }
            let left = format_duration(certificate.ends - now);
            let text = format!("{title} expires on {date}, in {left}");
            Finding::warning("certificate", text).next(next)
        })
        .collect();
    if let Some(first) =
        later.into_iter().min_by_key(|certificate| certificate.ends).filter(|_| found.is_empty())
    {
        let text = format!("all certificates are valid until {} or longer", date(first.ends));
        found.push(Finding::ok("certificate", text));
    }
    found
}

fn date(seconds: i64) -> String {
    let text = Calendar::new().map(|times| times.iso(seconds)).unwrap_or_default();
    text.split('T').next().unwrap_or_default().to_owned()
}

/// The finding about sample settings. Sample settings may even work, if the hub has the sample's address, but the
/// sample's password is public.
pub(in crate::operator::check) fn sample(
    config: &Config,
    works: bool,
    path: &Path,
) -> Option<Finding> {
    let path = path.display();
    match (config.is_sample(), works) {
        (false, _) => None,
        (true, true) => {
            let text =
                format!("the login in {path} is the public sample login of the documentation");
            Some(Finding::warning("settings_sample", text).next(
                "on the hub: mosquitto_passwd -b /etc/mosquitto/passwd fail2ban NEW_PASSWORD\n\
                 on each server: set MQTT_PASSWORD in mqtt.env, then: systemctl restart f2bmqttsub",
            ))
        }
        (true, false) => {
            let text = format!("{path} still has the sample settings");
            Some(Finding::fault("settings_sample", text).next(format!(
                "set MQTT_HOST, MQTT_USER and MQTT_PASSWORD in {path}\n\
                 then: systemctl restart f2bmqttsub"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SAMPLE;
    use crate::operator::check::finding::Status;

    const NOW: i64 = 1_795_342_600;

    /// A certificate that expires an hour after this many days.
    fn certificate(kind: &'static str, days: i64) -> Certificate {
        Certificate { kind, name: "web1".to_owned(), ends: NOW + days * 86_400 + 3_600 }
    }

    fn sample_state(config: &Config, works: bool) -> Option<Status> {
        sample(config, works, Path::new("f")).map(|finding| finding.state)
    }

    fn read(text: &str) -> Result<Config, Error> {
        Config::parse(Path::new("f"), text.as_bytes(), &|_| None, "web1").map_err(Error::Config)
    }

    #[test]
    fn every_fault_is_shown_with_its_line() {
        let found = findings(&read("MQTT_HOST=a b\nMQTT_PORT=0\n"), Path::new("f"));
        let texts: Vec<&str> = found.iter().map(|finding| finding.text.as_str()).collect();
        assert_eq!(texts.len(), 4, "{texts:?}");
        assert!(texts[0].starts_with("f, line 1: has text after the value"), "{texts:?}");
        assert_eq!(texts[1], "f, line 2: MQTT_PORT must have a port from 1 to 65535");
        assert_eq!(texts[2..], ["f: MQTT_HOST is not set", "f: MQTT_TOPIC is not set"]);
        assert_eq!(found[1].about.as_deref(), Some("2"));
        let found = findings(&read("MQTT_HOST=a\nMQTT_TOPIC=t\nMQTT_X=1\n"), Path::new("f"));
        assert_eq!((found.len(), found[0].state), (1, Status::Warning));
    }

    #[test]
    fn certificate_that_ends_within_thirty_days_is_found() {
        use Status::{Fault, Warning};
        let table = [
            (vec![], None),
            (
                vec![certificate("client", 400), certificate("ca", 60)],
                Some((Status::Ok, "all certificates are valid until 2027-01-21 or longer")),
            ),
            (
                vec![certificate("client", 5), certificate("ca", 60)],
                Some((
                    Warning,
                    "this host's certificate, MQTT_CERT (web1) expires on 2026-11-27, in 5d 1h",
                )),
            ),
            (
                vec![certificate("broker", 29)],
                Some((Warning, "the broker's certificate (web1) expires on 2026-12-21, in 29d 1h")),
            ),
            (
                vec![certificate("ca", -2)],
                Some((Fault, "the CA's certificate, MQTT_CAFILE (web1) expired on 2026-11-20")),
            ),
        ];
        for (all, expected) in table {
            let found = certificates(&all, NOW).into_iter().map(|found| (found.state, found.text));
            let expected = expected.map(|(state, text)| (state, text.to_owned()));
            assert_eq!(
                found.collect::<Vec<_>>(),
                expected.into_iter().collect::<Vec<_>>(),
                "{all:?}"
            );
        }
    }

    #[test]
    fn sample_settings_are_found() {
        let config = read(SAMPLE).unwrap();
        assert_eq!(sample_state(&config, false), Some(Status::Fault));
        assert_eq!(sample_state(&config, true), Some(Status::Warning));
        for (from, to) in [("PASSWORD=fail2ban", "PASSWORD=x"), ("HOST=192.168.1.10", "HOST=hub")] {
            let config = read(&SAMPLE.replace(from, to)).unwrap();
            assert_eq!(sample_state(&config, false), None);
        }
    }
}
