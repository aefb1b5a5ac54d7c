//! Where to, how often, how long? From the choice of an instance to the head of its answer.

pub mod breaker;
pub mod deadline;
pub mod headers;
pub mod pool;
pub mod verdict;
