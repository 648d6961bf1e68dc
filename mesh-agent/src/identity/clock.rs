//! Wall-clock time as certificates count it: whole seconds.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    pki_types::UnixTime,
    time_provider::{DefaultTimeProvider, TimeProvider},
};
use serde::{Serialize, Serializer};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::time::ASN1Time;

/// Tells the time to certificates, handshakes and rotation alike; tests replace it.
pub type Clock = Arc<dyn TimeProvider>;

/// The system's clock.
pub fn system_clock() -> Clock {
    Arc::new(DefaultTimeProvider)
}

/// A moment in whole seconds since 1970, shown as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub const fn from_unix_seconds(seconds: u64) -> Self {
        Self(seconds)
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub const fn unix_seconds(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }

    /// What `clock` says now. A clock that cannot tell the time says the end of all
    /// time, so that every certificate counts as expired.
    pub(super) fn now(clock: &Clock) -> Self {
        clock.current_time().map_or(Self(u64::MAX), Self::from)
    }

    pub(super) const fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_secs()))
    }

    pub(super) const fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration.as_secs()))
    }

    pub(super) const fn unix_time(self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(self.0))
    }

    /// `None` past the year 9999.
    pub(super) fn date_time(self) -> Option<OffsetDateTime> {
        i64::try_from(self.0).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
    }
}

impl From<UnixTime> for Timestamp {
    fn from(time: UnixTime) -> Self {
        Self(time.as_secs())
    }
}

/// Nothing that is valid lies before 1970.
impl From<ASN1Time> for Timestamp {
    fn from(time: ASN1Time) -> Self {
        Self(u64::try_from(time.timestamp()).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.date_time().map(|t| t.format(&Rfc3339)) {
            Some(Ok(text)) => f.write_str(&text),
            _ => write!(f, "@{}", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
