//! Both ends of the differential corpus: who asks and who is asked.

mod http1;
pub(crate) mod questions;
pub(crate) mod witness;
