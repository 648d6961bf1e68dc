//! Requests by an unmodified curl in a pod.

use crate::{Pod, Ran, eventually::patience_factor};

/// A request to be made; the `expect_*` methods and [`Curl::send`] make it.
#[must_use]
#[derive(Debug)]
pub struct Curl<'a> {
    pod: &'a Pod,
    url: String,
    arguments: Vec<String>,
}

/// What came of a request.
#[derive(Debug)]
pub struct Response {
    ran: Ran,
    status: Option<u16>,
    headers: Vec<(String, String)>,
    body: String,
}

impl<'a> Curl<'a> {
    pub(crate) fn new(pod: &'a Pod, url: &str) -> Self {
        Self { pod, url: url.to_owned(), arguments: Vec::new() }
    }

    /// Adds curl's own arguments.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&a| a.to_owned()));
        self
    }

    /// With this method.
    pub fn method(self, method: &str) -> Self {
        self.arguments(&["-X", method])
    }

    /// With this header, as `name: value`.
    pub fn header(self, header: &str) -> Self {
        self.arguments(&["-H", header])
    }

    /// With this body.
    pub fn body(self, body: &str) -> Self {
        self.arguments(&["--data-binary", body])
    }

    /// As cleartext HTTP/2 with prior knowledge.
    pub fn http2(self) -> Self {
        self.arguments(&["--http2-prior-knowledge"])
    }

    /// Makes the request.
    pub fn send(self) -> Response {
        let seconds = (15 * patience_factor()).to_string();
        let mut argv = vec!["curl", "-sS", "-i", "--max-time", &seconds, "--noproxy", "*"];
        argv.extend(self.arguments.iter().map(String::as_str));
        argv.push(&self.url);
        Response::parse(self.pod.run(&argv))
    }

    /// # Panics
    /// Unless the answer has this status.
    #[track_caller]
    pub fn expect_status(self, status: u16) -> Response {
        let response = self.send();
        assert_eq!(response.status, Some(status), "{}", response.ran);
        response
    }

    /// # Panics
    /// Unless the connection was refused or reset without a single byte of an answer.
    #[track_caller]
    pub fn expect_refused(self) -> Response {
        const COULD_NOT_CONNECT: i32 = 7;
        const EMPTY_REPLY: i32 = 52;
        // A reset may come while the request is being sent.
        const SEND_FAILED: i32 = 55;
        const RECEIVE_FAILED: i32 = 56;
        let response = self.send();
        let refused = [COULD_NOT_CONNECT, EMPTY_REPLY, SEND_FAILED, RECEIVE_FAILED];
        assert!(
            response.ran.code().is_some_and(|code| refused.contains(&code)),
            "must be refused: {}",
            response.ran
        );
        assert_eq!(response.status, None, "must be refused: {}", response.ran);
        response
    }
}

impl Response {
    fn parse(ran: Ran) -> Self {
        let (mut status, mut headers, mut rest) = (None, Vec::new(), ran.stdout());
        // Informational answers come before the final one.
        while rest.starts_with("HTTP/") {
            let (head, behind) = rest.split_once("\r\n\r\n").unwrap_or((rest, ""));
            let mut lines = head.split("\r\n");
            status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse::<u16>().ok());
            headers = lines
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect();
            rest = behind;
            if status.is_none_or(|s| s >= 200) {
                break;
            }
        }
        let body = rest.to_owned();
        Self { ran, status, headers, body }
    }

    /// The status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// The answer's body.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// The answer's first header of this name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| &**value)
    }

    /// How curl ended.
    pub fn ran(&self) -> &Ran {
        &self.ran
    }

    /// # Panics
    /// Unless the body contains `text`.
    #[track_caller]
    pub fn expect_body(self, text: &str) -> Self {
        assert!(self.body.contains(text), "no `{text}` in the body: {}", self.ran);
        self
    }
}
