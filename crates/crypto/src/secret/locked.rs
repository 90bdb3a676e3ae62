//! Memory that stays out of swap and core dumps, as far as the operating system grants it.

use zeroize::Zeroize;

/// Bytes of the pre-key. Read by a memory disclosure bug or a side channel, every bit of them must be right.
pub(super) const PRE_KEY_BYTES: usize = 16 * 1024;

/// The pre-key, on pages of its own.
#[repr(align(4096))]
pub(super) struct PreKey(pub(super) [u8; PRE_KEY_BYTES]);

impl PreKey {
    /// A zeroed pre-key, and whether it is locked.
    pub(super) fn locked() -> (Box<Self>, bool) {
        let mut key = Box::new(Self([0; PRE_KEY_BYTES]));
        let locked = lock(&mut key);
        (key, locked)
    }
}

impl Drop for PreKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

fn lock(_key: &mut PreKey) -> bool {
    false
}
