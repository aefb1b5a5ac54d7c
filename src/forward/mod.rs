//! Where to, how often, how long? From the choice of an instance to the head of its answer.

pub mod aggregate;
pub mod batch;
pub mod breaker;
pub mod call;

pub mod deadline;
pub mod exchange;
pub mod headers;
pub mod overload;
pub mod pool;
pub mod retry;
pub mod verdict;
mod window;
