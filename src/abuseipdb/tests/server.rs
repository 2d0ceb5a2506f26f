//! A server that keeps `AbuseIPDB`'s rules, for as long as a test does not want it otherwise.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::abuseipdb::answer::ApiResponse;
use crate::abuseipdb::api::{Api, Failure, Request};
use crate::abuseipdb::plan::WINDOW;
use crate::config::Secret;
use crate::wire::Address;

/// What the server does with the next call, instead of what it should.
#[derive(Clone)]
pub(super) enum Whim {
    /// Answers this.
    Says(ApiResponse),
    /// Is not there.
    Away(Failure),
    /// Does it, and the answer is lost.
    Mute,
}

/// `AbuseIPDB`, as far as its rules go.
#[derive(Default)]
pub(super) struct Server {
    pub(super) now: i64,
    /// Address, when it was taken, timestamp, categories, comment.
    pub(super) taken: Vec<(Address, i64, String, String, String)>,
    pub(super) listed: BTreeMap<Address, i64>,
    pub(super) calls: Vec<&'static str>,
    pub(super) keys: Vec<String>,
    pub(super) whims: VecDeque<Whim>,
    /// Away until then.
    pub(super) away: i64,
    /// A firewall before it does not like this word.
    pub(super) firewall: Option<&'static str>,
    /// What fail2ban's database has of every ban.
    pub(super) log_lines: Option<Vec<String>>,
    /// The process dies at the n-th moment from now; each call has two: before and after it.
    pub(super) dies: Option<usize>,
}

impl Server {
    fn take(&mut self, ip: &str, timestamp: &str, categories: &str, comment: &str) -> bool {
        let (address, now) = (Address::new(ip).unwrap(), self.now);
        let soon = |(one, at, ..): &&(Address, i64, String, String, String)| {
            *one == address && now < at + WINDOW
        };
        if self.taken.iter().any(|one| soon(&one)) {
            return false;
        }
        let text = |text: &str| text.to_owned();
        self.taken.push((address, now, text(timestamp), text(categories), text(comment)));
        true
    }

    fn answer(&mut self, request: &Request) -> ApiResponse {
        match request {
            Request::Check { address, verbose } => {
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
            Request::Report(form) => {
                self.calls.push("report");
                let (ip, time) = (form.address.to_string(), form.timestamp.clone());
                let time = time.unwrap_or_default();
                if self.take(&ip, &time, &form.categories, &form.comment) {
                    data(&json!({"ipAddress": ip, "abuseConfidenceScore": 52}))
                } else {
                    too_soon()
                }
            }
            Request::Bulk(csv) => {
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

    /// Whether the process dies now.
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
pub(super) struct Line(pub(super) Arc<Mutex<Server>>);

impl Api for Line {
    async fn ask(&mut self, key: &Secret, request: &Request) -> Result<ApiResponse, Failure> {
        let (answer, dies) = {
            let mut server = self.0.lock().unwrap();
            server.keys.push(key.reveal().to_owned());
            if server.moment() {
                (None, true)
            } else if server.firewall.is_some_and(|word| format!("{request:?}").contains(word)) {
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

    fn rest(&mut self) {}
}
