//! The calls of `AbuseIPDB`'s API v2 (docs.abuseipdb.com): what each sends, and sending it.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Client, RequestBuilder, Response, multipart, redirect};

use super::answer::{ApiResponse, CutOff, Quota};
use crate::config::Secret;
use crate::wire::Address;

const BASE: &str = "https://api.abuseipdb.com/api/v2";

const CONNECT: Duration = Duration::from_secs(10);

/// A whole call, answer and all; a bulk call has more to carry.
const CALL: Duration = Duration::from_secs(30);
const BULK_CALL: Duration = Duration::from_mins(2);

/// The longest answer that is read, in bytes: a check may list thousands of reports.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// A single report, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// `ip`
    pub address: Address,
    /// `categories`
    pub categories: String,
    /// `comment`
    pub comment: String,
    /// `timestamp`: when the ban was, in ISO 8601.
    pub timestamp: Option<String>,
}

impl Form {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("comment", self.comment.clone()),
            ("ip", self.address.to_string()),
            ("categories", self.categories.clone()),
        ];
        fields.extend(self.timestamp.iter().map(|time| ("timestamp", time.clone())));
        fields
    }

    /// The same as a line of a bulk report (RFC 4180). A line break would be read as the next
    /// report's by a simpler reader than the RFC's.
    #[must_use]
    pub fn line(&self) -> String {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\"").replace('\n', " "));
        let time = self.timestamp.as_deref().unwrap_or_default();
        let (ip, categories) = (self.address, quoted(&self.categories));
        format!("{ip},{categories},{time},{}\n", quoted(&self.comment))
    }
}

/// The fields as a person reads them.
impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "POST {BASE}/report")?;
        self.fields().iter().try_for_each(|(name, value)| writeln!(f, "{name}={value}"))
    }
}

/// The first line of a bulk report.
pub const BULK_HEAD: &str = "IP,Categories,ReportDate,Comment\n";

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// What is listed of an address.
    Check {
        /// Which.
        address: Address,
        /// With the reports themselves.
        verbose: bool,
    },
    /// Report one address.
    Report(Form),
    /// Report many: a CSV file.
    Bulk(String),
}

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing was sent: no network, no name, refused, the wrong certificate.
    NotSent(String),
    /// It was sent, or it may have been.
    Unknown(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(why) => write!(f, "no connection to api.abuseipdb.com: {why}"),
            Self::Unknown(why) => write!(f, "no answer from api.abuseipdb.com: {why}"),
        }
    }
}

/// Who is asked: the real server, or one of a test.
pub trait Api {
    /// Asks, and waits for the answer.
    fn ask(
        &mut self,
        key: &Secret,
        request: &Request,
    ) -> impl Future<Output = Result<ApiResponse, Failure>> + Send;

    /// There is nothing to ask for a while: connections and certificates can go.
    fn rest(&mut self);
}

/// The real server. Connections and certificates are only held while there is something to ask.
#[derive(Debug, Default)]
pub struct Https {
    client: Option<Client>,
    /// The URL of a proxy; without one, the environment may name one (`https_proxy`).
    proxy: Option<Secret>,
}

impl Https {
    /// By a proxy, if there is one.
    #[must_use]
    pub fn by(proxy: Option<Secret>) -> Self {
        Self { client: None, proxy }
    }

    fn client(&mut self) -> reqwest::Result<&Client> {
        if self.client.is_none() {
            // An error says only that there is a provider already: this one.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let builder = match &self.proxy {
                Some(proxy) => Client::builder().proxy(reqwest::Proxy::https(proxy.reveal())?),
                None => Client::builder(),
            };
            let client = builder
                .user_agent(concat!("f2bmqtt/", env!("CARGO_PKG_VERSION")))
                .https_only(true)
                // The key would go along to wherever a portal sends us.
                .redirect(redirect::Policy::none())
                .connect_timeout(CONNECT)
                .build()?;
            self.client = Some(client);
        }
        Ok(self.client.get_or_insert_default())
    }
}

impl Api for Https {
    async fn ask(&mut self, key: &Secret, request: &Request) -> Result<ApiResponse, Failure> {
        let client = self.client().map_err(|error| Failure::NotSent(describe(error)))?;
        let request =
            prepare(client, request).map_err(|error| Failure::NotSent(describe(error)))?;
        let sent =
            request.header("Accept", "application/json").header("Key", key.reveal()).send().await;
        match sent {
            Ok(response) => Ok(read(response).await),
            Err(error) if error.is_connect() || error.is_builder() => {
                Err(Failure::NotSent(describe(error)))
            }
            Err(error) => Err(Failure::Unknown(describe(error))),
        }
    }

    fn rest(&mut self) {
        self.client = None;
    }
}

fn prepare(client: &Client, request: &Request) -> reqwest::Result<RequestBuilder> {
    let request = match request {
        Request::Check { address, verbose } => {
            let query = [("ipAddress", address.to_string()), ("maxAgeInDays", "90".to_owned())];
            let check = client.get(format!("{BASE}/check")).query(&query).timeout(CALL);
            if *verbose { check.query(&[("verbose", "")]) } else { check }
        }
        Request::Report(form) => {
            client.post(format!("{BASE}/report")).form(&form.fields()).timeout(CALL)
        }
        Request::Bulk(csv) => {
            let file = multipart::Part::text(csv.clone()).file_name("report.csv");
            let form = multipart::Form::new().part("csv", file.mime_str("text/csv")?);
            client.post(format!("{BASE}/bulk-report")).multipart(form).timeout(BULK_CALL)
        }
    };
    Ok(request)
}

async fn read(mut response: Response) -> ApiResponse {
    let number = |headers: &HeaderMap, name| headers.get(name)?.to_str().ok()?.trim().parse().ok();
    let headers = response.headers();
    let mut answer = ApiResponse {
        status: response.status().as_u16(),
        retry_after: number(headers, "retry-after"),
        reset: number(headers, "x-ratelimit-reset"),
        quota: Quota {
            limit: number(headers, "x-ratelimit-limit"),
            remaining: number(headers, "x-ratelimit-remaining"),
        },
        ..ApiResponse::default()
    };
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if answer.body.len() + chunk.len() > MAX_ANSWER => {
                answer.cut_off = Some(CutOff::TooLong);
                return answer;
            }
            Ok(Some(chunk)) => answer.body.extend_from_slice(&chunk),
            Ok(None) => return answer,
            Err(error) => {
                answer.cut_off = Some(CutOff::Lost(describe(error)));
                return answer;
            }
        }
    }
}

/// What went wrong, cause by cause; not the address, which is always the same.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !words.contains(&text) {
            words.push_str(": ");
            words.push_str(&text);
        }
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn report_goes_by_the_proxy() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://ann:s3cret@{}", proxy.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (mut stream, _) = proxy.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut head).await.unwrap();
            }
            stream.write_all(b"HTTP/1.1 502 No\r\n\r\n").await.unwrap();
            String::from_utf8(head).unwrap().to_lowercase()
        });
        let request =
            Request::Check { address: Address::new("192.31.196.1").unwrap(), verbose: false };
        let mut https = Https::by(Some(Secret::new(url)));
        let failed = https.ask(&Secret::new("k3y".to_owned()), &request).await.unwrap_err();
        assert!(!failed.to_string().contains("s3cret"), "{failed}");
        let asked = asked.await.unwrap();
        assert!(asked.starts_with("connect api.abuseipdb.com:443 http/1.1\r\n"), "{asked}");
        assert!(asked.contains("proxy-authorization: basic ") && !asked.contains("k3y"), "{asked}");
    }

    #[test]
    fn a_line_of_a_bulk_report_is_one_line() {
        let form = Form {
            address: Address::new("2001:db8::1").unwrap(),
            categories: "18,22".to_owned(),
            comment: "say \"hi\",\nthere".to_owned(),
            timestamp: Some("2026-11-22T10:16:28+00:00".to_owned()),
        };
        let expected =
            "2001:db8::1,\"18,22\",2026-11-22T10:16:28+00:00,\"say \"\"hi\"\", there\"\n";
        assert_eq!(form.line(), expected);
        let shown = "POST https://api.abuseipdb.com/api/v2/report\ncomment=say \"hi\",\nthere\n\
                     ip=2001:db8::1\ncategories=18,22\ntimestamp=2026-11-22T10:16:28+00:00\n";
        assert_eq!(form.to_string(), shown);
    }
}
