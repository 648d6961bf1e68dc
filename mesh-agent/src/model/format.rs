//! Text with places that a request, a response or their connection fills in.
//!
//! Spec: Envoy's "Access logging", "Command operators"; used in header values and access
//! logs alike.

mod start_time;

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

pub use self::start_time::TimeFormat;

/// The longest format, in bytes, that is accepted.
const FORMAT_MAX_BYTES: usize = 16 * 1024;

/// A format, taken apart once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Format {
    pieces: Box<[Piece]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Operator {
        operator: Operator,
        /// The value is cut behind as many bytes.
        max_bytes: Option<usize>,
    },
}

/// What stands between two `%`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    Request(HeaderNames),
    Response(HeaderNames),
    Trailer(HeaderNames),
    DynamicMetadata {
        namespace: Box<str>,
        path: Box<[Box<str>]>,
    },
    StartTime(TimeFormat),
    /// When the client's certificate begins or ends to be valid.
    PeerValidity(ValidityEnd, TimeFormat),
    Plain(PlainOperator),
}

/// One of a certificate's two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValidityEnd {
    NotBefore,
    NotAfter,
}

/// A header, and the one to take where it is not there; lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderNames {
    pub first: Box<str>,
    pub otherwise: Option<Box<str>>,
}

macro_rules! plain_operators {
    ($($name:ident = $text:literal;)*) => {
        /// Those that take nothing.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum PlainOperator {
            $(#[doc = $text] $name,)*
        }

        impl PlainOperator {
            const ALL: &[Self] = &[$(Self::$name),*];

            /// As it is written.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

plain_operators! {
    Protocol = "PROTOCOL";
    Duration = "DURATION";
    ResponseCode = "RESPONSE_CODE";
    ResponseFlags = "RESPONSE_FLAGS";
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS";
    GrpcStatus = "GRPC_STATUS";
    GrpcStatusNumber = "GRPC_STATUS_NUMBER";
    BytesReceived = "BYTES_RECEIVED";
    BytesSent = "BYTES_SENT";
    UpstreamHost = "UPSTREAM_HOST";
    UpstreamHostName = "UPSTREAM_HOST_NAME";
    UpstreamHostNameWithoutPort = "UPSTREAM_HOST_NAME_WITHOUT_PORT";
    UpstreamRemoteAddress = "UPSTREAM_REMOTE_ADDRESS";
    UpstreamRemoteAddressWithoutPort = "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT";
    UpstreamRemotePort = "UPSTREAM_REMOTE_PORT";
    UpstreamLocalAddress = "UPSTREAM_LOCAL_ADDRESS";
    UpstreamLocalAddressWithoutPort = "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT";
    UpstreamLocalPort = "UPSTREAM_LOCAL_PORT";
    UpstreamTransportFailureReason = "UPSTREAM_TRANSPORT_FAILURE_REASON";
    UpstreamRequestAttemptCount = "UPSTREAM_REQUEST_ATTEMPT_COUNT";
    UpstreamCluster = "UPSTREAM_CLUSTER";
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW";
    FilterChainName = "FILTER_CHAIN_NAME";
    VirtualClusterName = "VIRTUAL_CLUSTER_NAME";
    ConnectionTerminationDetails = "CONNECTION_TERMINATION_DETAILS";
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS";
    DownstreamRemoteAddressWithoutPort = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT";
    DownstreamRemotePort = "DOWNSTREAM_REMOTE_PORT";
    DownstreamDirectRemoteAddress = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS";
    DownstreamDirectRemoteAddressWithoutPort = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT";
    DownstreamDirectRemotePort = "DOWNSTREAM_DIRECT_REMOTE_PORT";
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS";
    DownstreamLocalAddressWithoutPort = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT";
    DownstreamLocalPort = "DOWNSTREAM_LOCAL_PORT";
    DownstreamPeerUriSan = "DOWNSTREAM_PEER_URI_SAN";
    DownstreamLocalUriSan = "DOWNSTREAM_LOCAL_URI_SAN";
    DownstreamLocalDnsSan = "DOWNSTREAM_LOCAL_DNS_SAN";
    DownstreamLocalIpSan = "DOWNSTREAM_LOCAL_IP_SAN";
    DownstreamLocalEmailSan = "DOWNSTREAM_LOCAL_EMAIL_SAN";
    DownstreamLocalOthernameSan = "DOWNSTREAM_LOCAL_OTHERNAME_SAN";
    DownstreamLocalSubject = "DOWNSTREAM_LOCAL_SUBJECT";
    DownstreamPeerDnsSan = "DOWNSTREAM_PEER_DNS_SAN";
    DownstreamPeerIpSan = "DOWNSTREAM_PEER_IP_SAN";
    DownstreamPeerEmailSan = "DOWNSTREAM_PEER_EMAIL_SAN";
    DownstreamPeerOthernameSan = "DOWNSTREAM_PEER_OTHERNAME_SAN";
    DownstreamPeerSubject = "DOWNSTREAM_PEER_SUBJECT";
    DownstreamPeerIssuer = "DOWNSTREAM_PEER_ISSUER";
    DownstreamPeerSerial = "DOWNSTREAM_PEER_SERIAL";
    DownstreamPeerFingerprint256 = "DOWNSTREAM_PEER_FINGERPRINT_256";
    DownstreamPeerFingerprint1 = "DOWNSTREAM_PEER_FINGERPRINT_1";
    DownstreamPeerChainFingerprints256 = "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256";
    DownstreamPeerChainFingerprints1 = "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1";
    DownstreamPeerChainSerials = "DOWNSTREAM_PEER_CHAIN_SERIALS";
    DownstreamPeerCert = "DOWNSTREAM_PEER_CERT";
    DownstreamTlsVersion = "DOWNSTREAM_TLS_VERSION";
    DownstreamTlsCipher = "DOWNSTREAM_TLS_CIPHER";
    DownstreamTlsGroup = "DOWNSTREAM_TLS_GROUP";
    DownstreamTlsSessionId = "DOWNSTREAM_TLS_SESSION_ID";
    RequestedServerName = "REQUESTED_SERVER_NAME";
    RouteName = "ROUTE_NAME";
    StreamId = "STREAM_ID";
    LocalReplyBody = "LOCAL_REPLY_BODY";
}

impl PlainOperator {
    /// Whether its value is a number.
    pub fn is_number(self) -> bool {
        matches!(
            self,
            Self::Duration
                | Self::ResponseCode
                | Self::GrpcStatusNumber
                | Self::BytesReceived
                | Self::BytesSent
                | Self::DownstreamRemotePort
                | Self::DownstreamDirectRemotePort
                | Self::DownstreamLocalPort
                | Self::UpstreamRemotePort
                | Self::UpstreamLocalPort
                | Self::UpstreamRequestAttemptCount
        )
    }
}

/// Why a text is no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("{0} bytes are more than {FORMAT_MAX_BYTES}")]
    TooLong(usize),
    #[error("a `%` at byte {0} begins no operator; write `%%` for the sign itself")]
    NoOperator(usize),
    #[error("%{0}% is not supported")]
    Unknown(String),
    #[error("%{0}% takes neither argument nor length")]
    TakesNothing(&'static str),
    #[error("%{0}% takes no length")]
    NoLength(String),
    #[error("`{0}` names no header, or more than two")]
    Headers(String),
    #[error("`{0}` is no length")]
    Length(String),
    #[error("`{0}` is not supported as a format of time")]
    Time(String),
    #[error("`{0}` names no metadata: NAMESPACE or NAMESPACE:KEY:...")]
    Metadata(String),
}

/// Where values come from.
pub trait Values {
    /// Appends an operator's value; `false` where there is none.
    fn append(&self, operator: &Operator, out: &mut Vec<u8>) -> bool;

    /// Whether an operator's value is a text, whatever it looks like.
    fn is_text(&self, _: &Operator) -> bool {
        false
    }
}

impl Format {
    /// Appends the text with every place filled in, `absent` where there is no value.
    pub fn append(&self, values: &impl Values, absent: &str, out: &mut Vec<u8>) {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Operator { operator, max_bytes } => {
                    let start = out.len();
                    if !values.append(operator, out) {
                        out.truncate(start);
                        out.extend_from_slice(absent.as_bytes());
                    }
                    if let Some(max) = max_bytes {
                        out.truncate(start.saturating_add(*max));
                    }
                }
            }
        }
    }

    /// The text itself, where nothing is to be filled in.
    pub fn literal(&self) -> Option<&str> {
        match &*self.pieces {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The operator that is all there is to it.
    pub fn only_operator(&self) -> Option<&Operator> {
        match &*self.pieces {
            [Piece::Operator { operator, .. }] => Some(operator),
            _ => None,
        }
    }

    /// Appends the value of [`Format::only_operator`]; `false` where there is none.
    pub fn append_only(&self, values: &impl Values, out: &mut Vec<u8>) -> bool {
        let [Piece::Operator { operator, max_bytes }] = &*self.pieces else { return false };
        let start = out.len();
        let there = values.append(operator, out);
        if let Some(max) = max_bytes {
            out.truncate(start.saturating_add(*max));
        }
        there
    }

    /// Every operator in it.
    pub fn operators(&self) -> impl Iterator<Item = &Operator> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Operator { operator, .. } => Some(operator),
            Piece::Text(_) => None,
        })
    }
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        if text.len() > FORMAT_MAX_BYTES {
            return Err(FormatError::TooLong(text.len()));
        }
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(percent) = rest.find('%') {
            plain.push_str(&rest[..percent]);
            rest = &rest[percent + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            let at = text.len() - rest.len() - 1;
            let (command, after) = command(rest).ok_or(FormatError::NoOperator(at))?;
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain).into()));
            }
            pieces.push(command.parse()?);
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain.into()));
        }
        Ok(Self { pieces: pieces.into() })
    }
}

/// `NAME`, `NAME(argument)`, each with `:length` or without.
struct Command<'a> {
    name: &'a str,
    argument: Option<&'a str>,
    length: Option<&'a str>,
}

/// One command up to its `%`, and what follows.
fn command(text: &str) -> Option<(Command<'_>, &str)> {
    let of_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let (name, rest) = text.split_at(text.find(|c| !of_name(c))?);
    if name.is_empty() {
        return None;
    }
    let (argument, rest) = match rest.strip_prefix('(') {
        Some(inner) => {
            let (argument, rest) = inner.split_once(')')?;
            (Some(argument), rest)
        }
        None => (None, rest),
    };
    let (length, rest) = match rest.strip_prefix(':') {
        Some(length) => {
            let (length, rest) = length.split_once('%')?;
            (Some(length), rest)
        }
        None => (None, rest.strip_prefix('%')?),
    };
    Some((Command { name, argument, length }, rest))
}

impl Command<'_> {
    fn parse(&self) -> Result<Piece, FormatError> {
        let Self { name, argument, length } = *self;
        let max_bytes =
            length.map(|length| length.parse().map_err(|_| FormatError::Length(length.to_owned())));
        let max_bytes = max_bytes.transpose()?;
        let operator = match (name, argument) {
            ("REQ" | "REQUEST_HEADER", Some(names)) => Operator::Request(header_names(names)?),
            ("RESP" | "RESPONSE_HEADER", Some(names)) => Operator::Response(header_names(names)?),
            ("TRAILER" | "RESPONSE_TRAILER", Some(names)) => {
                Operator::Trailer(header_names(names)?)
            }
            ("DYNAMIC_METADATA", Some(path)) => metadata(path)?,
            ("START_TIME", format) => Operator::StartTime(self.time(format)?),
            ("DOWNSTREAM_PEER_CERT_V_START", format) => {
                Operator::PeerValidity(ValidityEnd::NotBefore, self.time(format)?)
            }
            ("DOWNSTREAM_PEER_CERT_V_END", format) => {
                Operator::PeerValidity(ValidityEnd::NotAfter, self.time(format)?)
            }
            _ => {
                let known = PlainOperator::ALL.iter().find(|known| known.as_str() == name);
                let Some(plain) = known else {
                    return Err(FormatError::Unknown(name.to_owned()));
                };
                if argument.is_some() || length.is_some() {
                    return Err(FormatError::TakesNothing(plain.as_str()));
                }
                Operator::Plain(*plain)
            }
        };
        Ok(Piece::Operator { operator, max_bytes })
    }

    /// An argument that says how a time is written.
    fn time(&self, format: Option<&str>) -> Result<TimeFormat, FormatError> {
        if self.length.is_some() {
            return Err(FormatError::NoLength(self.name.to_owned()));
        }
        let format = format.unwrap_or_default();
        format.parse().map_err(|()| FormatError::Time(format.to_owned()))
    }
}

fn header_names(text: &str) -> Result<HeaderNames, FormatError> {
    let wrong = || FormatError::Headers(text.to_owned());
    let name = |name: &str| -> Result<Box<str>, FormatError> {
        let bare = name.strip_prefix(':').unwrap_or(name);
        match http::HeaderName::try_from(bare) {
            Ok(_) => Ok(name.to_ascii_lowercase().into()),
            Err(_) => Err(wrong()),
        }
    };
    let (first, otherwise) = match text.split_once('?') {
        Some((first, otherwise)) => (first, Some(otherwise)),
        None => (text, None),
    };
    Ok(HeaderNames { first: name(first)?, otherwise: otherwise.map(name).transpose()? })
}

fn metadata(text: &str) -> Result<Operator, FormatError> {
    let mut parts = text.split(':').map(Box::from);
    let namespace: Box<str> = parts.next().unwrap_or_default();
    let path: Box<[Box<str>]> = parts.collect();
    if namespace.is_empty() || path.iter().any(|part| part.is_empty()) {
        return Err(FormatError::Metadata(text.to_owned()));
    }
    Ok(Operator::DynamicMetadata { namespace, path })
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => f.write_str(&text.replace('%', "%%"))?,
                Piece::Operator { operator, max_bytes } => {
                    write!(f, "%{operator}")?;
                    if let Some(max) = max_bytes {
                        write!(f, ":{max}")?;
                    }
                    f.write_str("%")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(names) => write!(f, "REQ({names})"),
            Self::Response(names) => write!(f, "RESP({names})"),
            Self::Trailer(names) => write!(f, "TRAILER({names})"),
            Self::DynamicMetadata { namespace, path } => {
                write!(f, "DYNAMIC_METADATA({namespace}")?;
                for part in path {
                    write!(f, ":{part}")?;
                }
                f.write_str(")")
            }
            Self::StartTime(format) => write!(f, "START_TIME{format}"),
            Self::PeerValidity(ValidityEnd::NotBefore, format) => {
                write!(f, "DOWNSTREAM_PEER_CERT_V_START{format}")
            }
            Self::PeerValidity(ValidityEnd::NotAfter, format) => {
                write!(f, "DOWNSTREAM_PEER_CERT_V_END{format}")
            }
            Self::Plain(plain) => f.write_str(plain.as_str()),
        }
    }
}

impl fmt::Display for HeaderNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first)?;
        match &self.otherwise {
            Some(otherwise) => write!(f, "?{otherwise}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests;
