//! A simulated `AbuseIPDB` that keeps the API's rules unless a test makes it misbehave.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::abuseipdb::api::{Api, ApiRequest, Failure};
use crate::abuseipdb::plan::REPORT_INTERVAL_SECS;
use crate::abuseipdb::response::ApiResponse;
use crate::config::Secret;
use crate::model::Address;

/// What goes wrong at the next call.
#[derive(Clone)]
pub(super) enum ServerFault {
    /// The server sends this response and does nothing else.
    Response(ApiResponse),
    /// The call gets no response.
    Unreachable(Failure),
    /// The server handles the call, but the response is lost.
    LostResponse,
}

/// A report that the server accepted.
pub(super) struct AcceptedReport {
    pub(super) address: Address,
    /// When the server accepted it, in seconds since 1970.
    pub(super) at: i64,
    /// The time of the ban as the reporter sent it.
    pub(super) timestamp: String,
    pub(super) categories: String,
    pub(super) comment: String,
}

/// `AbuseIPDB` with the rules that matter to the reporter.
#[derive(Default)]
pub(super) struct Server {
    pub(super) now: i64,
    pub(super) accepted: Vec<AcceptedReport>,
    pub(super) listed: BTreeMap<Address, i64>,
    pub(super) calls: Vec<&'static str>,
    pub(super) keys: Vec<String>,
    pub(super) faults: VecDeque<ServerFault>,
    /// Unreachable until this time, in seconds since 1970.
    pub(super) unreachable_until: i64,
    /// A firewall rejects requests that contain this text.
    pub(super) firewall: Option<&'static str>,
    /// The log lines of every ban in fail2ban's database.
    pub(super) log_lines: Option<Vec<String>>,
    /// The process dies at the n-th moment from now. Each call has two moments: before and after it.
    pub(super) dies_after: Option<usize>,
}

impl Server {
    /// Accepts a report, unless the address was reported within the last 15 minutes.
    fn accept(&mut self, ip: &str, timestamp: &str, categories: &str, comment: &str) -> bool {
        let (address, now) = (Address::new(ip).unwrap(), self.now);
        let mut reports = self.accepted.iter().filter(|report| report.address == address);
        if reports.any(|report| now < report.at + REPORT_INTERVAL_SECS) {
            return false;
        }
        let [timestamp, categories, comment] = [timestamp, categories, comment].map(str::to_owned);
        self.accepted.push(AcceptedReport { address, at: now, timestamp, categories, comment });
        true
    }

    fn answer(&mut self, request: &ApiRequest) -> ApiResponse {
        match request {
            ApiRequest::Check { address, verbose } => {
                self.calls.push("check");
                let own = self.accepted.iter().filter(|report| report.address == *address);
                let own: Vec<_> = own
                    .map(|report| {
                        json!({"reportedAt": report.timestamp, "comment": report.comment, "categories": [18]})
                    })
                    .collect();
                let others = self.listed.get(address).copied().unwrap_or(0);
                let count = others + i64::try_from(own.len()).unwrap();
                let reports = if *verbose { own } else { Vec::new() };
                data(&json!({
                    "ipAddress": address.to_string(), "abuseConfidenceScore": 7,
                    "totalReports": count, "reports": reports
                }))
            }
            ApiRequest::Report(form) => {
                self.calls.push("report");
                let (ip, time) = (form.address.to_string(), form.timestamp.clone());
                let time = time.unwrap_or_default();
                if self.accept(&ip, &time, &form.categories, &form.comment) {
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
                    if self.accept(ip, time, categories, fields.next().unwrap()) {
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
        match &mut self.dies_after {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}

pub(super) fn response(status: u16, body: &str) -> ApiResponse {
    ApiResponse { status, body: body.into(), ..ApiResponse::default() }
}

pub(super) fn too_soon() -> ApiResponse {
    response(
        429,
        r#"{"errors":[{"detail":"You can only report the same IP address (`x`) once in 15 minutes.","status":429,"source":{"parameter":"ip"}}]}"#,
    )
}

pub(super) fn data(data: &Value) -> ApiResponse {
    response(200, &json!({ "data": data }).to_string())
}

pub(super) fn quota_exhausted(retry_after: i64) -> ApiResponse {
    let body = r#"{"errors":[{"detail":"Daily rate limit of 1000 requests exceeded for this endpoint.","status":429}]}"#;
    ApiResponse { retry_after: Some(retry_after), ..response(429, body) }
}

#[derive(Clone)]
pub(super) struct SimulatedApi(pub(super) Arc<Mutex<Server>>);

impl Api for SimulatedApi {
    async fn call(&mut self, key: &Secret, request: &ApiRequest) -> Result<ApiResponse, Failure> {
        let (answer, dies_after) = {
            let mut server = self.0.lock().unwrap();
            server.keys.push(key.reveal().to_owned());
            if server.moment() {
                (None, true)
            } else if server.firewall.is_some_and(|text| format!("{request:?}").contains(text)) {
                server.calls.push("firewall");
                (Some(Ok(response(403, "<html>forbidden</html>"))), false)
            } else if server.now < server.unreachable_until {
                server.calls.push("unreachable");
                (Some(Err(Failure::NotSent("no route to host".to_owned()))), false)
            } else {
                let answer = match server.faults.pop_front() {
                    None => Ok(server.answer(request)),
                    Some(ServerFault::Response(answer)) => Ok(answer),
                    Some(ServerFault::Unreachable(failure)) => Err(failure),
                    Some(ServerFault::LostResponse) => {
                        server.answer(request);
                        Err(Failure::Unknown("timed out".to_owned()))
                    }
                };
                let dies_after = server.moment();
                (Some(answer), dies_after)
            }
        };
        match answer {
            Some(answer) if !dies_after => answer,
            _ => std::future::pending().await,
        }
    }

    fn release(&mut self) {}
}
