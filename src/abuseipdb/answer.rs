//! What an answer of the API means. Pure. An answer that does not say clearly that a report was taken
//! or refused leaves it in doubt, and the report waits.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Of an answer, the log shows this many characters.
const SHOWN: usize = 300;

/// Where a daily limit comes without its end, it is asked again after this many seconds.
const UNKNOWN_WAIT: i64 = 3600;

/// A day's quota is over within a day; whatever a server says, we ask again then (seconds).
pub const LONGEST_WAIT: i64 = 25 * 3600;

/// What remains of a day's calls, by the headers `X-RateLimit-Limit` and `X-RateLimit-Remaining`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Calls a day.
    pub limit: Option<i64>,
    /// Calls left today.
    pub remaining: Option<i64>,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiResponse {
    /// The status of HTTP.
    pub status: u16,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<i64>,
    /// `X-RateLimit-Reset`, in seconds since 1970.
    pub reset: Option<i64>,
    /// What remains.
    pub quota: Quota,
    /// The body, as far as it was read.
    pub body: Vec<u8>,
    /// Why no more of it was read, if it did not end.
    pub cut_off: Option<CutOff>,
}

/// Why a body was not read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutOff {
    /// It is too long.
    TooLong,
    /// The connection failed, or it took too long.
    Lost(String),
}

/// Why a call did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiError {
    /// 429: an address was reported by this account within 15 minutes.
    TooSoon,
    /// 429: the day's calls are spent. Ask again after this many seconds.
    Spent(i64),
    /// 401, in the API's own words: the key.
    Key,
    /// 402, 403, in the API's own words: this call is not for this account.
    NotAllowed,
    /// 400, 413, 422, in the API's own words: it will never be taken like this.
    Refused {
        /// It is the time of the ban that is not liked.
        timestamp: bool,
    },
    /// The answer is too long to be read.
    TooLong,
    /// Anything else: the server's trouble, or the answer of somebody between.
    Odd,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default, deserialize_with = "or_default")]
    source: Option<ErrorSource>,
}

#[derive(Deserialize)]
struct ErrorSource {
    #[serde(default, deserialize_with = "or_default")]
    parameter: Option<String>,
}

/// A field, or its default where it is of another type: what only a log line shows must not hold up a report.
fn or_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    field: D,
) -> Result<T, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(field)?).unwrap_or_default())
}

/// The same for a whole number, which may be written as any number.
fn number<'de, D: Deserializer<'de>>(field: D) -> Result<Option<i64>, D::Error> {
    let value = Value::deserialize(field)?;
    #[expect(clippy::cast_possible_truncation, reason = "`as` saturates")]
    Ok(value.as_i64().or_else(|| value.as_f64().map(|number| number as i64)))
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

/// The answer to a check.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listing {
    /// How sure they are that it is bad, in percent.
    #[serde(rename = "abuseConfidenceScore", default, deserialize_with = "number")]
    pub score: Option<i64>,
    /// Reports of the last days that were asked for.
    #[serde(default, deserialize_with = "number")]
    pub total_reports: Option<i64>,
    /// The reports themselves, newest first, where the answer has them.
    #[serde(default, deserialize_with = "or_default")]
    pub reports: Vec<ListedReport>,
}

/// One report that is listed.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedReport {
    /// In ISO 8601.
    #[serde(default, deserialize_with = "or_default")]
    pub reported_at: String,
    /// What it says.
    #[serde(default, deserialize_with = "or_default")]
    pub comment: Option<String>,
}

/// The answer to a report.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Accepted {
    /// How sure they are now that it is bad, in percent.
    #[serde(rename = "abuseConfidenceScore", deserialize_with = "number")]
    pub score: Option<i64>,
}

/// The answer to a bulk report.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BulkAccepted {
    /// How many were taken.
    pub saved_reports: i64,
    /// Those that were not.
    #[serde(default, deserialize_with = "or_default")]
    pub invalid_reports: Vec<Invalid>,
}

/// One line of a bulk report that was not taken.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Invalid {
    /// Why.
    #[serde(default, deserialize_with = "or_default")]
    pub error: String,
    /// Its address, as it was sent.
    #[serde(default, deserialize_with = "or_default")]
    pub input: String,
}

impl Invalid {
    /// Whether it was refused only because the address was reported within 15 minutes, or twice.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.error.contains("15 minutes") || self.error.starts_with("Duplicate")
    }
}

impl ApiResponse {
    /// Reads what was asked for.
    ///
    /// # Errors
    /// The [`Trouble`] that it tells of.
    pub fn read<T: DeserializeOwned>(&self, now: i64) -> Result<T, ApiError> {
        match (self.status, &self.cut_off) {
            (200, Some(CutOff::TooLong)) => return Err(ApiError::TooLong),
            (200, None) => {
                let data = serde_json::from_slice::<Data<T>>(&self.body);
                return data.map(|data| data.data).map_err(|_| ApiError::Odd);
            }
            _ => {}
        }
        // A proxy or a portal between may answer with the same numbers, but not in these words.
        let errors = serde_json::from_slice::<Errors>(&self.body).ok();
        let about = |parameter: &str| {
            let named = |error: &OneError| {
                error.source.as_ref().and_then(|source| source.parameter.as_deref())
                    == Some(parameter)
            };
            errors.as_ref().is_some_and(|errors| errors.errors.iter().any(named))
        };
        Err(match self.status {
            429 if about("ip") => ApiError::TooSoon,
            429 => ApiError::Spent(self.wait(now)),
            401 if errors.is_some() => ApiError::Key,
            402 | 403 if errors.is_some() => ApiError::NotAllowed,
            400 | 413 | 422 if errors.is_some() => {
                ApiError::Refused { timestamp: about("timestamp") }
            }
            _ => ApiError::Odd,
        })
    }

    /// Why reports wait after this answer, in words; `None` where they do not.
    #[must_use]
    pub fn fault(&self, trouble: &ApiError) -> Option<String> {
        let status = self.status;
        Some(match trouble {
            ApiError::TooSoon | ApiError::TooLong | ApiError::Refused { .. } => return None,
            ApiError::Spent(_) => "the daily limit is reached".to_owned(),
            ApiError::Key => format!("AbuseIPDB rejected the API key (HTTP {status})"),
            ApiError::NotAllowed => format!("AbuseIPDB rejected the call (HTTP {status})"),
            ApiError::Odd => format!(
                "unexpected answer from api.abuseipdb.com (HTTP {status}), perhaps from a proxy"
            ),
        })
    }

    /// How long it asks us to leave it alone, in seconds; 0 where it does not say.
    #[must_use]
    pub fn asks_for(&self) -> i64 {
        self.retry_after.unwrap_or(0).clamp(0, LONGEST_WAIT)
    }

    fn wait(&self, now: i64) -> i64 {
        let until_reset =
            self.reset.map(|reset| reset.saturating_sub(now)).filter(|wait| *wait > 0);
        self.retry_after.or(until_reset).unwrap_or(UNKNOWN_WAIT).clamp(1, LONGEST_WAIT)
    }

    /// What the log says of an answer that is not what it should be. Never shows `secret`.
    #[must_use]
    pub fn log_text(&self, secret: &str) -> String {
        let mut body = String::from_utf8_lossy(&self.body[..self.body.len().min(4 * SHOWN)])
            .replace(secret, "(key)")
            .chars()
            .take(SHOWN)
            .collect::<String>();
        match &self.cut_off {
            Some(CutOff::TooLong) => body.push_str("... (too long)"),
            Some(CutOff::Lost(why)) => body = format!("{body}... (cut off: {why})"),
            None if body.is_empty() => body.push_str("(nothing)"),
            None => {}
        }
        match self.status {
            429 => format!("ERROR: Rate limited (HTTP 429). Response: {body}"),
            status => format!("ERROR: HTTP {status}. Response: {body}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_342_588;

    fn answer(status: u16, body: &str) -> ApiResponse {
        ApiResponse { status, body: body.as_bytes().to_vec(), ..ApiResponse::default() }
    }

    fn error(detail: &str, parameter: &str) -> String {
        let source = match parameter {
            "" => String::new(),
            parameter => format!(r#","source":{{"parameter":"{parameter}"}}"#),
        };
        format!(r#"{{"errors":[{{"detail":"{detail}","status":1{source}}}]}}"#)
    }

    #[test]
    fn each_answer_has_its_meaning() {
        use ApiError::{Key, NotAllowed, Odd, Refused, Spent, TooLong, TooSoon};
        let (soon, daily) = (error("… once in 15 minutes.", "ip"), error("Daily rate limit", ""));
        let spent = ApiResponse { retry_after: Some(29_000), ..answer(429, &daily) };
        let taken = r#"{"data":{"ipAddress":"192.0.2.1","abuseConfidenceScore":52}}"#;
        let cut_off = |why| ApiResponse { cut_off: Some(why), ..answer(200, taken) };
        let table: [(ApiResponse, Result<Option<i64>, ApiError>); 29] = [
            (answer(200, taken), Ok(Some(52))),
            (answer(200, &taken.replace("52", "52.5")), Ok(Some(52))),
            (answer(200, &taken.replace("52", "null")), Ok(None)),
            (answer(200, &taken.replace("52", "\"high\"")), Ok(None)),
            (answer(200, r#"{"data":{}}"#), Err(Odd)),
            (answer(429, &soon), Err(TooSoon)),
            (spent.clone(), Err(Spent(29_000))),
            (
                ApiResponse { retry_after: Some(1_000_000), ..spent.clone() },
                Err(Spent(LONGEST_WAIT)),
            ),
            (ApiResponse { retry_after: Some(-5), ..spent }, Err(Spent(1))),
            (ApiResponse { reset: Some(NOW + 77), ..answer(429, &daily) }, Err(Spent(77))),
            (
                ApiResponse { reset: Some(NOW - 77), ..answer(429, &daily) },
                Err(Spent(UNKNOWN_WAIT)),
            ),
            (answer(429, "<html>slow down</html>"), Err(Spent(UNKNOWN_WAIT))),
            (answer(401, &error("Authentication failed.", "")), Err(Key)),
            (answer(402, &error("Payment required", "")), Err(NotAllowed)),
            (answer(403, &error("Forbidden", "")), Err(NotAllowed)),
            (answer(403, "<html>a firewall</html>"), Err(Odd)),
            (answer(401, "<html>a proxy</html>"), Err(Odd)),
            (
                ApiResponse { reset: Some(i64::MIN), ..answer(429, &daily) },
                Err(Spent(UNKNOWN_WAIT)),
            ),
            (answer(404, &error("Not found", "")), Err(Odd)),
            (answer(422, &error("The ip must be", "ip")), Err(Refused { timestamp: false })),
            (answer(422, &error("The date", "timestamp")), Err(Refused { timestamp: true })),
            (answer(422, "<html>portal</html>"), Err(Odd)),
            (answer(500, &error("Server error", "")), Err(Odd)),
            (answer(503, ""), Err(Odd)),
            (answer(302, ""), Err(Odd)),
            (answer(200, "<html>portal</html>"), Err(Odd)),
            (answer(200, &taken[..30]), Err(Odd)),
            (cut_off(CutOff::TooLong), Err(TooLong)),
            (cut_off(CutOff::Lost("reset".to_owned())), Err(Odd)),
        ];
        for (answer, expected) in table {
            let found = answer.read::<Accepted>(NOW).map(|accepted| accepted.score);
            assert_eq!(found, expected, "{answer:?}");
        }
    }

    #[test]
    fn checks_and_bulk_reports_are_read() {
        let check = r#"{"data":{"ipAddress":"192.0.2.1","isPublic":true,"abuseConfidenceScore":100,
            "countryCode":"CN","totalReports":2,"reports":[{"reportedAt":"2018-12-20T20:55:14+00:00",
            "comment":"Dec 20","categories":[18,22],"reporterId":1},{"comment":null}]}}"#;
        let listing: Listing = answer(200, check).read(NOW).unwrap();
        let counts = (listing.score, listing.total_reports, listing.reports.len());
        assert_eq!(counts, (Some(100), Some(2), 2));
        assert_eq!(listing.reports[0].reported_at, "2018-12-20T20:55:14+00:00");
        let odd = r#"{"data":{"abuseConfidenceScore":null,"totalReports":"2","reports":null}}"#;
        assert_eq!(answer(200, odd).read(NOW), Ok(Listing::default()));
        let bulk = r#"{"data":{"savedReports":60,"invalidReports":[{"error":"Duplicate IP",
            "input":"192.0.2.7","rowNumber":5}]}}"#;
        let bulk: BulkAccepted = answer(200, bulk).read(NOW).unwrap();
        assert_eq!((bulk.saved_reports, bulk.invalid_reports[0].input.as_str()), (60, "192.0.2.7"));
        assert!(answer(200, "{\"data\":{}}").read::<BulkAccepted>(NOW).is_err());
    }

    #[test]
    fn complaints_are_short_and_keep_the_secret() {
        let complaint = answer(401, &format!("key abc123 {}", "x".repeat(9000))).log_text("abc123");
        assert!(complaint.starts_with("ERROR: HTTP 401. Response: key (key) xxx"));
        assert!(complaint.len() < 400);
        let limited = answer(429, "").log_text("k");
        assert_eq!(limited, "ERROR: Rate limited (HTTP 429). Response: (nothing)");
    }
}
