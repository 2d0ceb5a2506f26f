//! A simulated `AbuseIPDB` that keeps the API's rules unless a test makes it misbehave.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::abuseipdb::answer::ApiResponse;
use crate::abuseipdb::api::{Api, ApiRequest, Failure};
use crate::abuseipdb::plan::REPORT_INTERVAL_SECS;
use crate::config::Secret;
use crate::wire::Address;

/// A misbehaviour of the server at the next call.
#[derive(Clone)]
pub(super) enum Whim {
    /// Sends this response and does nothing else.
    Says(ApiResponse),
    /// Cannot be reached.
    Away(Failure),
    /// Handles the call, but the response is lost.
    Mute,
}

/// `AbuseIPDB` with the rules that matter to the reporter.
#[derive(Default)]
pub(super) struct Server {
    pub(super) now: i64,
    /// Accepted reports: address, time of acceptance, timestamp, categories, comment.
    pub(super) taken: Vec<(Address, i64, String, String, String)>,
    pub(super) listed: BTreeMap<Address, i64>,
    pub(super) calls: Vec<&'static str>,
    pub(super) keys: Vec<String>,
    pub(super) whims: VecDeque<Whim>,
    /// Unreachable until this time, in seconds since 1970.
    pub(super) away: i64,
    /// A firewall rejects requests that contain this text.
    pub(super) firewall: Option<&'static str>,
    /// The log lines of every ban in fail2ban's database.
    pub(super) log_lines: Option<Vec<String>>,
    /// The process dies at the n-th moment from now. Each call has two moments: before and after it.
    pub(super) dies: Option<usize>,
}

impl Server {
    fn take(&mut self, ip: &str, timestamp: &str, categories: &str, comment: &str) -> bool {
        let (address, now) = (Address::new(ip).unwrap(), self.now);
        let soon = |(one, at, ..): &&(Address, i64, String, String, String)| {
            *one == address && now < at + REPORT_INTERVAL_SECS
        };
        if self.taken.iter().any(|one| soon(&one)) {
            return false;
        }
        let text = |text: &str| text.to_owned();
        self.taken.push((address, now, text(timestamp), text(categories), text(comment)));
        true
    }

    fn answer(&mut self, request: &ApiRequest) -> ApiResponse {
        match request {
            ApiRequest::Check { address, verbose } => {
                self.calls.push("check");
                let ours: Vec<_> = self.taken.iter().filter(|one| one.0 == *address).collect();
                let others = self.listed.get(address).copied().unwrap_or(0);
                let count = others + i64::try_from(ours.len()).unwrap();
                let listed = |one: &&(Address, i64, String, String, String)| json!({"reportedAt": one.2, "comment": one.4, "categories": [18]});
                let reports: Vec<_> = ours.iter().filter(|_| *verbose).map(listed).collect();
                data(&json!({
                    "ipAddress": address.to_string(), "abuseConfidenceScore": 7,
                    "totalReports": count, "reports": reports
                }))
            }
            ApiRequest::Report(form) => {
                self.calls.push("report");
                let (ip, time) = (form.address.to_string(), form.timestamp.clone());
                let time = time.unwrap_or_default();
                if self.take(&ip, &time, &form.categories, &form.comment) {
                    data(&json!({"ipAddress": ip, "abuseConfidenceScore": 52}))
                } else {
                    too_soon()
                }
            }
            ApiRequest::Bulk(csv) => {
                self.calls.push("bulk");
                let (mut saved, mut invalid) = (0, Vec::new());
                for line in csv.lines().skip(1) {
                    let mut fields = line.split('"');
                    let ip = fields.next().unwrap().trim_end_matches(',');
                    let categories = fields.next().unwrap();
                    let time = fields.next().unwrap().trim_matches(',');
                    if self.take(ip, time, categories, fields.next().unwrap()) {
                        saved += 1;
                    } else {
                        invalid.push(json!({"error": "once in 15 minutes", "input": ip}));
                    }
                }
                data(&json!({"savedReports": saved, "invalidReports": invalid}))
            }
        }
    }

    /// Passes a moment; returns whether the process dies now.
    fn moment(&mut self) -> bool {
        match &mut self.dies {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}

pub(super) fn says(status: u16, body: &str) -> ApiResponse {
    ApiResponse { status, body: body.into(), ..ApiResponse::default() }
}

pub(super) fn too_soon() -> ApiResponse {
    says(
        429,
        r#"{"errors":[{"detail":"You can only report the same IP address (`x`) once in 15 minutes.","status":429,"source":{"parameter":"ip"}}]}"#,
    )
}

pub(super) fn data(data: &Value) -> ApiResponse {
    says(200, &json!({ "data": data }).to_string())
}

pub(super) fn daily(retry_after: i64) -> ApiResponse {
    let body = r#"{"errors":[{"detail":"Daily rate limit of 1000 requests exceeded for this endpoint.","status":429}]}"#;
    ApiResponse { retry_after: Some(retry_after), ..says(429, body) }
}

#[derive(Clone)]
pub(super) struct SimulatedApi(pub(super) Arc<Mutex<Server>>);

impl Api for SimulatedApi {
    async fn ask(&mut self, key: &Secret, request: &ApiRequest) -> Result<ApiResponse, Failure> {
        let (answer, dies) = {
            let mut server = self.0.lock().unwrap();
            server.keys.push(key.reveal().to_owned());
            if server.moment() {
                (None, true)
            } else if server.firewall.is_some_and(|text| format!("{request:?}").contains(text)) {
                server.calls.push("firewall");
                (Some(Ok(says(403, "<html>forbidden</html>"))), false)
            } else if server.now < server.away {
                server.calls.push("away");
                (Some(Err(Failure::NotSent("no route to host".to_owned()))), false)
            } else {
                let answer = match server.whims.pop_front() {
                    None => Ok(server.answer(request)),
                    Some(Whim::Says(answer)) => Ok(answer),
                    Some(Whim::Away(failure)) => Err(failure),
                    Some(Whim::Mute) => {
                        server.answer(request);
                        Err(Failure::Unknown("timed out".to_owned()))
                    }
                };
                let dies = server.moment();
                (Some(answer), dies)
            }
        };
        match answer {
            Some(answer) if !dies => answer,
            _ => std::future::pending().await,
        }
    }

    fn release(&mut self) {}
}
