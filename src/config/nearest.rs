//! Finds the setting that a misspelt key was meant to be.

/// The most typing errors that a key may have and still be recognised.
const MAX_CHANGES: usize = 2;

/// The key that is closest to `name`, if any is close.
pub(super) fn nearest<'a>(name: &str, keys: &[&'a str]) -> Option<&'a str> {
    let near = keys.iter().map(|key| (distance(name, key), *key));
    near.min().filter(|(changes, _)| *changes <= MAX_CHANGES).map(|(_, key)| key)
}

/// The number of characters to add, remove, replace or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let same = usize::from(a[i - 1] != b[j - 1]);
                let mut least =
                    (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + same);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_key_is_matched_to_a_close_one() {
        let keys = ["MQTT_HOST", "MQTT_PORT", "MQTT_TOPIC", "MQTT_PASSWORD"];
        let table = [
            ("MQTT_TOPIK", Some("MQTT_TOPIC")),
            ("MQTT_PASSWROD", Some("MQTT_PASSWORD")),
            ("MQTT_HSOT", Some("MQTT_HOST")),
            ("MQT_HOST", Some("MQTT_HOST")),
            ("MQTT_PASS", None),
            ("HOSTNAME", None),
        ];
        for (name, expected) in table {
            assert_eq!(nearest(name, &keys), expected, "{name}");
        }
    }
}
