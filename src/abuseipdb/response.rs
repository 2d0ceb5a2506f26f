//! Interprets the API's responses, without I/O. Only a response that clearly accepts or rejects a report settles
//! the report (R23); after any other response the report stays queued as possibly accepted.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The log shows this many characters of a response body.
const MAX_LOGGED_CHARS: usize = 300;

/// The wait after a daily limit whose response names no end.
const DEFAULT_QUOTA_WAIT_SECS: i64 = 3600;

/// A daily quota resets within a day, so longer waits that a server asks for are cut to this.
pub const MAX_QUOTA_WAIT_SECS: i64 = 25 * 3600;

/// The daily quota of one endpoint, from the headers `X-RateLimit-Limit` and `X-RateLimit-Remaining`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Calls per day.
    pub limit: Option<i64>,
    /// Calls left today.
    pub remaining: Option<i64>,
}

/// An HTTP response, reduced to what the reporter uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiResponse {
    /// HTTP status code.
    pub status: u16,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<i64>,
    /// `X-RateLimit-Reset`, in seconds since 1970.
    pub reset: Option<i64>,
    /// The endpoint's quota after this call.
    pub quota: Quota,
    /// The body up to where reading stopped.
    pub body: Vec<u8>,
    /// Why the body is incomplete, if it is.
    pub cut_off: Option<CutOff>,
}

/// Why a body is incomplete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutOff {
    /// The body exceeds the size limit.
    TooLong,
    /// The connection failed or timed out.
    Lost(String),
}

/// Why a call failed, as far as the response tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiError {
    /// 429: this account reported the address within the last 15 minutes.
    TooSoon,
    /// 429: the daily quota is used up. The value is the wait in seconds.
    QuotaExhausted(i64),
    /// 401 with a body in the API's format: the API key is invalid.
    InvalidKey,
    /// 402 or 403 with a body in the API's format: this account may not make this call.
    NotAllowed,
    /// 400, 413 or 422 with a body in the API's format: a repetition of this request fails, too.
    Rejected {
        /// The API objects to the time of the ban.
        timestamp: bool,
    },
    /// The body exceeds the size limit.
    TooLong,
    /// Anything else: the server failed, or a proxy or portal answered.
    Unexpected,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<ErrorEntry>,
}

impl Errors {
    /// Whether an error is about this parameter of the request.
    fn name_parameter(&self, parameter: &str) -> bool {
        let sources = self.errors.iter().filter_map(|error| error.source.as_ref());
        sources.filter_map(|source| source.parameter.as_deref()).any(|name| name == parameter)
    }
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default, deserialize_with = "or_default")]
    source: Option<ErrorSource>,
}

#[derive(Deserialize)]
struct ErrorSource {
    #[serde(default, deserialize_with = "or_default")]
    parameter: Option<String>,
}

/// A field, or its default if the field has another type: a field that only a log line shows must not delay a
/// report.
fn or_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    field: D,
) -> Result<T, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(field)?).unwrap_or_default())
}

/// A whole number, which the API may write as any JSON number; `None` for other types.
fn whole_number<'de, D: Deserializer<'de>>(field: D) -> Result<Option<i64>, D::Error> {
    let value = Value::deserialize(field)?;
    #[expect(clippy::cast_possible_truncation, reason = "`as` saturates")]
    Ok(value.as_i64().or_else(|| value.as_f64().map(|number| number as i64)))
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

/// The response to a check.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listing {
    /// `AbuseIPDB`'s confidence that the address is abusive, in percent.
    #[serde(rename = "abuseConfidenceScore", default, deserialize_with = "whole_number")]
    pub score: Option<i64>,
    /// The number of reports within the requested days.
    #[serde(default, deserialize_with = "whole_number")]
    pub total_reports: Option<i64>,
    /// The reports, newest first; empty unless the request was verbose.
    #[serde(default, deserialize_with = "or_default")]
    pub reports: Vec<ListedReport>,
}

/// One report in a [`Listing`].
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedReport {
    /// ISO 8601.
    #[serde(default, deserialize_with = "or_default")]
    pub reported_at: String,
    /// The text that its reporter wrote.
    #[serde(default, deserialize_with = "or_default")]
    pub comment: Option<String>,
}

/// The response to an accepted report.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Accepted {
    /// `AbuseIPDB`'s confidence after this report, in percent.
    #[serde(rename = "abuseConfidenceScore", deserialize_with = "whole_number")]
    pub score: Option<i64>,
}

/// The response to a bulk report.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BulkAccepted {
    /// The number of accepted lines.
    pub saved_reports: i64,
    /// The rejected lines.
    #[serde(default, deserialize_with = "or_default")]
    pub invalid_reports: Vec<Invalid>,
}

/// One rejected line of a bulk report.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Invalid {
    /// The API's reason.
    #[serde(default, deserialize_with = "or_default")]
    pub error: String,
    /// The address in the line, as sent.
    #[serde(default, deserialize_with = "or_default")]
    pub input: String,
}

impl Invalid {
    /// Whether the API already has this report: the address was reported within 15 minutes, or twice in the file.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.error.contains("15 minutes") || self.error.starts_with("Duplicate")
    }
}

impl ApiResponse {
    /// Parses the body as the response to the call that was made.
    ///
    /// # Errors
    /// [`ApiError`], by status code and body.
    pub fn read<T: DeserializeOwned>(&self, now: i64) -> Result<T, ApiError> {
        match (self.status, &self.cut_off) {
            (200, Some(CutOff::TooLong)) => return Err(ApiError::TooLong),
            (200, None) => {
                let data = serde_json::from_slice::<Data<T>>(&self.body);
                return data.map(|data| data.data).map_err(|_| ApiError::Unexpected);
            }
            _ => {}
        }
        // A proxy or portal may answer with the same status codes, but not with a body in this format.
        let errors = serde_json::from_slice::<Errors>(&self.body).ok();
        Err(match (self.status, errors) {
            (429, Some(errors)) if errors.name_parameter("ip") => ApiError::TooSoon,
            (429, _) => ApiError::QuotaExhausted(self.quota_wait(now)),
            (401, Some(_)) => ApiError::InvalidKey,
            (402 | 403, Some(_)) => ApiError::NotAllowed,
            (400 | 413 | 422, Some(errors)) => {
                ApiError::Rejected { timestamp: errors.name_parameter("timestamp") }
            }
            _ => ApiError::Unexpected,
        })
    }

    /// The text of an error that makes reports wait; `None` for errors that do not.
    #[must_use]
    pub fn error_text(&self, error: &ApiError) -> Option<String> {
        let status = self.status;
        Some(match error {
            ApiError::TooSoon | ApiError::TooLong | ApiError::Rejected { .. } => return None,
            ApiError::QuotaExhausted(_) => "the daily limit is reached".to_owned(),
            ApiError::InvalidKey => format!("AbuseIPDB rejected the API key (HTTP {status})"),
            ApiError::NotAllowed => format!("AbuseIPDB rejected the call (HTTP {status})"),
            ApiError::Unexpected => format!(
                "unexpected answer from api.abuseipdb.com (HTTP {status}), perhaps from a proxy"
            ),
        })
    }

    /// The requested delay before the next call, in seconds; 0 without `Retry-After`.
    #[must_use]
    pub fn retry_delay(&self) -> i64 {
        self.retry_after.unwrap_or(0).clamp(0, MAX_QUOTA_WAIT_SECS)
    }

    fn quota_wait(&self, now: i64) -> i64 {
        let until_reset =
            self.reset.map(|reset| reset.saturating_sub(now)).filter(|wait| *wait > 0);
        self.retry_after
            .or(until_reset)
            .unwrap_or(DEFAULT_QUOTA_WAIT_SECS)
            .clamp(1, MAX_QUOTA_WAIT_SECS)
    }

    /// The log line of a failed call. It never contains `secret`.
    #[must_use]
    pub fn log_text(&self, secret: &str) -> String {
        let mut body =
            String::from_utf8_lossy(&self.body[..self.body.len().min(4 * MAX_LOGGED_CHARS)])
                .replace(secret, "(key)")
                .chars()
                .take(MAX_LOGGED_CHARS)
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

    fn response(status: u16, body: &str) -> ApiResponse {
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
        use ApiError::{
            InvalidKey, NotAllowed, QuotaExhausted, Rejected, TooLong, TooSoon, Unexpected,
        };
        let (soon, daily) = (error("… once in 15 minutes.", "ip"), error("Daily rate limit", ""));
        let spent = ApiResponse { retry_after: Some(29_000), ..response(429, &daily) };
        let taken = r#"{"data":{"ipAddress":"192.0.2.1","abuseConfidenceScore":52}}"#;
        let table: [(ApiResponse, Result<Option<i64>, ApiError>); 29] = [
            (response(200, taken), Ok(Some(52))),
            (response(200, &taken.replace("52", "52.5")), Ok(Some(52))),
            (response(200, &taken.replace("52", "null")), Ok(None)),
            (response(200, &taken.replace("52", "\"high\"")), Ok(None)),
            (response(200, r#"{"data":{}}"#), Err(Unexpected)),
            (response(429, &soon), Err(TooSoon)),
            (spent.clone(), Err(QuotaExhausted(29_000))),
            (
                ApiResponse { retry_after: Some(1_000_000), ..spent.clone() },
                Err(QuotaExhausted(MAX_QUOTA_WAIT_SECS)),
            ),
            (ApiResponse { retry_after: Some(-5), ..spent }, Err(QuotaExhausted(1))),
            (
                ApiResponse { reset: Some(NOW + 77), ..response(429, &daily) },
                Err(QuotaExhausted(77)),
            ),
            (
                ApiResponse { reset: Some(NOW - 77), ..response(429, &daily) },
                Err(QuotaExhausted(DEFAULT_QUOTA_WAIT_SECS)),
            ),
            (response(429, "<html>slow down</html>"), Err(QuotaExhausted(DEFAULT_QUOTA_WAIT_SECS))),
            (response(401, &error("Authentication failed.", "")), Err(InvalidKey)),
            (response(402, &error("Payment required", "")), Err(NotAllowed)),
            (response(403, &error("Forbidden", "")), Err(NotAllowed)),
            (response(403, "<html>a firewall</html>"), Err(Unexpected)),
            (response(401, "<html>a proxy</html>"), Err(Unexpected)),
            (
                ApiResponse { reset: Some(i64::MIN), ..response(429, &daily) },
                Err(QuotaExhausted(DEFAULT_QUOTA_WAIT_SECS)),
            ),
            (response(404, &error("Not found", "")), Err(Unexpected)),
            (response(422, &error("The ip must be", "ip")), Err(Rejected { timestamp: false })),
            (response(422, &error("The date", "timestamp")), Err(Rejected { timestamp: true })),
            (response(422, "<html>portal</html>"), Err(Unexpected)),
            (response(500, &error("Server error", "")), Err(Unexpected)),
            (response(503, ""), Err(Unexpected)),
            (response(302, ""), Err(Unexpected)),
            (response(200, "<html>portal</html>"), Err(Unexpected)),
            (response(200, &taken[..30]), Err(Unexpected)),
            (ApiResponse { cut_off: Some(CutOff::TooLong), ..response(200, taken) }, Err(TooLong)),
            (
                ApiResponse {
                    cut_off: Some(CutOff::Lost("reset".to_owned())),
                    ..response(200, taken)
                },
                Err(Unexpected),
            ),
        ];
        for (response, expected) in table {
            let found = response.read::<Accepted>(NOW).map(|accepted| accepted.score);
            assert_eq!(found, expected, "{response:?}");
        }
    }

    #[test]
    fn checks_and_bulk_reports_are_read() {
        let check = r#"{"data":{"ipAddress":"192.0.2.1","isPublic":true,"abuseConfidenceScore":100,
            "countryCode":"CN","totalReports":2,"reports":[{"reportedAt":"2018-12-20T20:55:14+00:00",
            "comment":"Dec 20","categories":[18,22],"reporterId":1},{"comment":null}]}}"#;
        let listing: Listing = response(200, check).read(NOW).unwrap();
        let counts = (listing.score, listing.total_reports, listing.reports.len());
        assert_eq!(counts, (Some(100), Some(2), 2));
        assert_eq!(listing.reports[0].reported_at, "2018-12-20T20:55:14+00:00");
        let odd = r#"{"data":{"abuseConfidenceScore":null,"totalReports":"2","reports":null}}"#;
        assert_eq!(response(200, odd).read(NOW), Ok(Listing::default()));
        let bulk = r#"{"data":{"savedReports":60,"invalidReports":[{"error":"Duplicate IP",
            "input":"192.0.2.7","rowNumber":5}]}}"#;
        let bulk: BulkAccepted = response(200, bulk).read(NOW).unwrap();
        assert_eq!((bulk.saved_reports, bulk.invalid_reports[0].input.as_str()), (60, "192.0.2.7"));
        assert!(response(200, "{\"data\":{}}").read::<BulkAccepted>(NOW).is_err());
    }

    #[test]
    fn complaints_are_short_and_keep_the_secret() {
        let complaint =
            response(401, &format!("key abc123 {}", "x".repeat(9000))).log_text("abc123");
        assert!(complaint.starts_with("ERROR: HTTP 401. Response: key (key) xxx"));
        assert!(complaint.len() < 400);
        let limited = response(429, "").log_text("k");
        assert_eq!(limited, "ERROR: Rate limited (HTTP 429). Response: (nothing)");
    }
}
