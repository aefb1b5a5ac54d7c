//! What a process remembers of what others may change, and how it hears of it.

/// A memory that is told when it must forget.
pub trait Remembers: Send + Sync {
    /// What stands under this key in Redis is no longer what it was.
    fn forget(&self, key: &[u8]);

    /// Changes may have been missed.
    fn forget_all(&self);

    /// Somebody has said on [`super::keys::CACHE_PURGE`] what answers are out of date.
    fn purge(&self, _: &[u8]) {}

    /// Whether that is heard.
    fn hears_purges(&self, _: bool) {}
}
