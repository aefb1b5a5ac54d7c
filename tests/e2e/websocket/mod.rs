//! WebSockets: every policy at the handshake, every byte untouched, an end that both sides are told of.

mod end;
mod frames;
mod handshake;
mod relay;

use crate::support::prelude::*;
use crate::support::websocket::*;

/// A gateway whose route `/s/*` has WebSockets.
fn in_front_of(chat: &Chat) -> Conf {
    Conf::at(&[chat.addr()]).route("websocket", "{}")
}
