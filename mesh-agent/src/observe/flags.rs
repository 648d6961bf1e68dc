//! Why a connection or request ended the way it did, in Envoy's terms.
//!
//! Spec: Envoy access log, `%RESPONSE_FLAGS%`.

use std::fmt;

use serde::{Serialize, Serializer};

macro_rules! response_flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $short:literal;)*) => {
        /// One reason, named as Envoy's `%RESPONSE_FLAGS%` names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ResponseFlag {
            $($(#[$doc])* $name,)*
        }

        impl ResponseFlag {
            const ALL: &[Self] = &[$(Self::$name),*];

            /// Envoy's short name, for example `UF`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $short,)* }
            }

            /// Whether it is one of these short names.
            pub fn is_known(name: &str) -> bool {
                Self::ALL.iter().any(|flag| flag.as_str() == name)
            }

            const fn bit(self) -> u32 {
                match self { $(Self::$name => 1 << $bit,)* }
            }
        }
    };
}

response_flags! {
    // First what Envoy notes before it knows how it ends.
    /// DI: the request was delayed by a fault.
    DelayInjected = 19, "DI";
    /// URX: the upstream retry or connection attempt limit was reached.
    UpstreamRetryLimitExceeded = 7, "URX";
    /// UO: a pool or circuit breaker was full.
    UpstreamOverflow = 5, "UO";
    /// UH: no healthy endpoint in the cluster.
    NoHealthyUpstream = 0, "UH";
    /// UF: the upstream could not be connected, or its TLS handshake failed.
    UpstreamConnectionFailure = 1, "UF";
    /// UC: the upstream ended the connection before it answered.
    UpstreamConnectionTermination = 2, "UC";
    /// UT: the route's timeout passed.
    UpstreamRequestTimeout = 3, "UT";
    /// UR: the upstream reset the stream.
    UpstreamRemoteReset = 4, "UR";
    /// UPE: the upstream broke the protocol.
    UpstreamProtocolError = 6, "UPE";
    /// NR: no route, or no filter chain, for this connection or request.
    NoRouteFound = 8, "NR";
    /// NC: the route's cluster is not there.
    NoClusterFound = 9, "NC";
    /// UAEX: authorization denied it.
    Denied = 10, "UAEX";
    /// DC: the downstream ended the connection.
    DownstreamConnectionTermination = 11, "DC";
    /// DPE: the downstream broke the protocol.
    DownstreamProtocolError = 12, "DPE";
    /// DT: the connection reached its longest permitted life.
    DurationTimeout = 13, "DT";
    /// SI: the stream was idle for too long.
    StreamIdleTimeout = 14, "SI";
    /// OM: the agent shed load.
    OverloadManager = 15, "OM";
    /// NFCF: a filter's configuration was asked for and is not there.
    NoFilterConfigFound = 16, "NFCF";
    /// DO: the control plane has a share of the cluster's traffic dropped.
    DropOverload = 17, "DO";
    /// UDO: the control plane has all of the cluster's traffic dropped.
    UnconditionalDropOverload = 18, "UDO";
    /// FI: the request was aborted by a fault.
    FaultInjected = 20, "FI";
    /// RL: the request was over a limit.
    RateLimited = 21, "RL";
    /// RLSE: the rate limit server had no answer, and requests do not pass without.
    RateLimitServiceError = 22, "RLSE";
}

impl fmt::Display for ResponseFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A set of [`ResponseFlag`]s; shown as `URX,UF`, and as `-` where empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ResponseFlags(u32);

impl ResponseFlags {
    /// Nothing went wrong.
    pub const NONE: Self = Self(0);

    /// Whether nothing went wrong.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `flag` is set.
    pub fn contains(self, flag: ResponseFlag) -> bool {
        self.0 & flag.bit() != 0
    }

    /// Adds `flag`.
    pub fn insert(&mut self, flag: ResponseFlag) {
        self.0 |= flag.bit();
    }

    /// The flags that are set, in a fixed order.
    pub fn iter(self) -> impl Iterator<Item = ResponseFlag> {
        ResponseFlag::ALL.iter().copied().filter(move |flag| self.contains(*flag))
    }
}

impl From<ResponseFlag> for ResponseFlags {
    fn from(flag: ResponseFlag) -> Self {
        Self(flag.bit())
    }
}

impl FromIterator<ResponseFlag> for ResponseFlags {
    fn from_iter<I: IntoIterator<Item = ResponseFlag>>(flags: I) -> Self {
        Self(flags.into_iter().fold(0, |bits, flag| bits | flag.bit()))
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (i, flag) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(flag.as_str())?;
        }
        Ok(())
    }
}

impl Serialize for ResponseFlags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_read_as_envoy_writes_them() {
        assert_eq!(ResponseFlags::NONE.to_string(), "-");
        assert_eq!(ResponseFlags::from(ResponseFlag::NoRouteFound).to_string(), "NR");
        let both: ResponseFlags =
            [ResponseFlag::UpstreamRetryLimitExceeded, ResponseFlag::UpstreamConnectionFailure]
                .into_iter()
                .collect();
        assert_eq!(both.to_string(), "URX,UF");
    }

    #[test]
    fn every_flag_has_its_own_bit_and_name() {
        let all: ResponseFlags = ResponseFlag::ALL.iter().copied().collect();
        assert_eq!(all.iter().count(), ResponseFlag::ALL.len());
        let names: std::collections::HashSet<_> =
            ResponseFlag::ALL.iter().map(|flag| flag.as_str()).collect();
        assert_eq!(names.len(), ResponseFlag::ALL.len());
    }
}
