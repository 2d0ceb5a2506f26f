//! Sends the calls of `AbuseIPDB`'s API v2 (docs.abuseipdb.com).

use std::fmt;
use std::future::Future;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Client, RequestBuilder, Response, multipart, redirect};

use super::response::{ApiResponse, CutOff, Quota};
use crate::config::Secret;
use crate::model::Address;

const BASE_URL: &str = "https://api.abuseipdb.com/api/v2";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The time limit of a whole call including the response; a bulk call transfers more.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const BULK_CALL_TIMEOUT: Duration = Duration::from_mins(2);

/// The longest response body that is read: a check may list thousands of reports.
const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;

/// The form fields of a single report. Field names are the API's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The field `ip`.
    pub address: Address,
    /// Category numbers, separated by commas.
    pub categories: String,
    /// The redacted text.
    pub comment: String,
    /// The time of the ban, in ISO 8601.
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

    /// The same fields as a CSV line of a bulk report (RFC 4180). Line breaks become blanks, because a parser
    /// simpler than the RFC's would start the next report there.
    #[must_use]
    pub fn csv_line(&self) -> String {
        let time = self.timestamp.as_deref().unwrap_or_default();
        let (ip, categories) = (self.address, quote(&self.categories));
        format!("{ip},{categories},{time},{}\n", quote(&self.comment))
    }
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\"").replace('\n', " "))
}

/// The request as `f2bmqtt report --dry-run` prints it.
impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "POST {BASE_URL}/report")?;
        self.fields().iter().try_for_each(|(name, value)| writeln!(f, "{name}={value}"))
    }
}

/// The first line of a bulk report, with its line break.
pub const BULK_HEADER: &str = "IP,Categories,ReportDate,Comment\n";

/// One call of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiRequest {
    /// Look up an address.
    Check {
        /// The address to look up.
        address: Address,
        /// Whether the response lists the reports, too.
        verbose: bool,
    },
    /// Report one address.
    Report(Form),
    /// Report many addresses with a CSV file.
    Bulk(String),
}

/// Why a call got no response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request was not sent: no network, unknown host name, connection refused, or a bad certificate.
    NotSent(String),
    /// The server may have received the request.
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

/// A server to report to; tests put a simulated one here.
pub trait Api {
    /// Makes a call and waits for the response.
    fn call(
        &mut self,
        key: &Secret,
        request: &ApiRequest,
    ) -> impl Future<Output = Result<ApiResponse, Failure>> + Send;

    /// Frees connections and certificates while the queue is idle.
    fn release(&mut self);
}

/// The real server. Connections and certificates stay in memory only while the queue has work.
#[derive(Debug, Default)]
pub struct Https {
    client: Option<Client>,
    /// The proxy's URL; without one, the environment variable `https_proxy` counts.
    proxy: Option<Secret>,
}

impl Https {
    /// Calls the server through a proxy, if one is set.
    #[must_use]
    pub fn with_proxy(proxy: Option<Secret>) -> Self {
        Self { client: None, proxy }
    }

    fn client(&mut self) -> reqwest::Result<&Client> {
        if self.client.is_none() {
            // The only error is that a provider is installed already, which is this one.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let builder = match &self.proxy {
                Some(proxy) => Client::builder().proxy(reqwest::Proxy::https(proxy.reveal())?),
                None => Client::builder(),
            };
            let client = builder
                .user_agent(concat!("f2bmqtt/", env!("CARGO_PKG_VERSION")))
                .https_only(true)
                // A redirect by a portal would send the API key to another host.
                .redirect(redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
                .build()?;
            self.client = Some(client);
        }
        Ok(self.client.get_or_insert_default())
    }
}

impl Api for Https {
    async fn call(&mut self, key: &Secret, request: &ApiRequest) -> Result<ApiResponse, Failure> {
        let client = self.client().map_err(|error| Failure::NotSent(describe(error)))?;
        let request =
            build_request(client, request).map_err(|error| Failure::NotSent(describe(error)))?;
        let sent =
            request.header("Accept", "application/json").header("Key", key.reveal()).send().await;
        match sent {
            Ok(response) => Ok(read_response(response).await),
            Err(error) if error.is_connect() || error.is_builder() => {
                Err(Failure::NotSent(describe(error)))
            }
            Err(error) => Err(Failure::Unknown(describe(error))),
        }
    }

    fn release(&mut self) {
        self.client = None;
    }
}

fn build_request(client: &Client, request: &ApiRequest) -> reqwest::Result<RequestBuilder> {
    let request = match request {
        ApiRequest::Check { address, verbose } => {
            let query = [("ipAddress", address.to_string()), ("maxAgeInDays", "90".to_owned())];
            let check = client.get(format!("{BASE_URL}/check")).query(&query).timeout(CALL_TIMEOUT);
            if *verbose { check.query(&[("verbose", "")]) } else { check }
        }
        ApiRequest::Report(form) => {
            client.post(format!("{BASE_URL}/report")).form(&form.fields()).timeout(CALL_TIMEOUT)
        }
        ApiRequest::Bulk(csv) => {
            let file = multipart::Part::text(csv.clone()).file_name("report.csv");
            let form = multipart::Form::new().part("csv", file.mime_str("text/csv")?);
            client
                .post(format!("{BASE_URL}/bulk-report"))
                .multipart(form)
                .timeout(BULK_CALL_TIMEOUT)
        }
    };
    Ok(request)
}

fn header_number(headers: &HeaderMap, name: &str) -> Option<i64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

async fn read_response(mut http: Response) -> ApiResponse {
    let headers = http.headers();
    let mut response = ApiResponse {
        status: http.status().as_u16(),
        retry_after: header_number(headers, "retry-after"),
        reset: header_number(headers, "x-ratelimit-reset"),
        quota: Quota {
            limit: header_number(headers, "x-ratelimit-limit"),
            remaining: header_number(headers, "x-ratelimit-remaining"),
        },
        ..ApiResponse::default()
    };
    loop {
        match http.chunk().await {
            Ok(Some(chunk)) if response.body.len() + chunk.len() > MAX_RESPONSE_BYTES => {
                response.cut_off = Some(CutOff::TooLong);
                return response;
            }
            Ok(Some(chunk)) => response.body.extend_from_slice(&chunk),
            Ok(None) => return response,
            Err(error) => {
                response.cut_off = Some(CutOff::Lost(describe(error)));
                return response;
            }
        }
    }
}

/// The chain of causes of an error, without the URL, which is always the same.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut chain = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !chain.contains(&text) {
            chain.push_str(": ");
            chain.push_str(&text);
        }
        cause = error.source();
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn request_with_a_proxy_goes_through_it() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://ann:s3cret@{}", proxy.local_addr().unwrap());
        let head = tokio::spawn(async move {
            let (mut stream, _) = proxy.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut head).await.unwrap();
            }
            stream.write_all(b"HTTP/1.1 502 No\r\n\r\n").await.unwrap();
            String::from_utf8(head).unwrap().to_lowercase()
        });
        let request =
            ApiRequest::Check { address: Address::new("192.31.196.1").unwrap(), verbose: false };
        let mut https = Https::with_proxy(Some(Secret::new(url)));
        let failed = https.call(&Secret::new("k3y".to_owned()), &request).await.unwrap_err();
        assert!(!failed.to_string().contains("s3cret"), "{failed}");
        let head = tokio::time::timeout(Duration::from_mins(1), head).await;
        let head = head.expect("the proxy gets a request").unwrap();
        assert!(head.starts_with("connect api.abuseipdb.com:443 http/1.1\r\n"), "{head}");
        assert!(head.contains("proxy-authorization: basic ") && !head.contains("k3y"), "{head}");
    }

    #[test]
    fn bulk_report_with_line_breaks_has_one_line_per_address() {
        let form = Form {
            address: Address::new("2001:db8::1").unwrap(),
            categories: "18,22".to_owned(),
            comment: "say \"hi\",\nthere".to_owned(),
            timestamp: Some("2026-11-22T10:16:28+00:00".to_owned()),
        };
        let expected =
            "2001:db8::1,\"18,22\",2026-11-22T10:16:28+00:00,\"say \"\"hi\"\", there\"\n";
        assert_eq!(form.csv_line(), expected);
        let shown = "POST https://api.abuseipdb.com/api/v2/report\ncomment=say \"hi\",\nthere\n\
                     ip=2001:db8::1\ncategories=18,22\ntimestamp=2026-11-22T10:16:28+00:00\n";
        assert_eq!(form.to_string(), shown);
    }
}
