//! Where does a permitted connection or request go? Synchronous; randomness and
//! time are passed in.
//!
//! Takes the permits that `policy` makes and turns them into a [`Destination`], the
//! only thing `proxy` dials. This room knows no sockets and no tasks.

#![forbid(unsafe_code)]

mod clusters;
pub mod decide;
pub mod hash;
pub mod lb;
pub mod match_http;
pub mod retry;
pub mod scope;

pub use clusters::{Chosen, choose};
pub use decide::{
    Destination, NoDestination, Target, decide_call, decide_check, decide_passthrough,
    decide_request, decide_tcp,
};
pub use hash::{connection_cookie, request_hash};
pub use lb::{
    Around, Balancers, CheckResult, Choice, Due, LoadGuard, Outcome, Reporter, WantedHost, below,
    shares,
};
pub use match_http::{Matched, NoRoute, cookie, match_route, route_matches};
pub use retry::{Reset, RetryState, Verdict};
pub use scope::{NoScope, configuration_for};
