//! May it go on? What a request must pass before it is sent anywhere, in the order in which it is asked.

pub mod address;
pub mod auth;
pub mod chunks;
pub mod cors;
pub mod head;
pub mod limits;
pub mod path;
pub mod permissions;
pub mod request_id;
pub mod size;
