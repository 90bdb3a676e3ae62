//! Memory that stays out of swap and core dumps, as far as the operating system grants it.

use zeroize::Zeroize;

/// Bytes of the pre-key: one page. Read by a memory disclosure bug or a side channel, every bit of them must be right.
pub(super) const PRE_KEY_BYTES: usize = 4 * 1024;

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
        unlock(self);
        self.0.zeroize();
    }
}

/// Keeps the pages of `key` out of core dumps and swap. Whether the latter worked: a limit (`ulimit -l`) may forbid it.
#[allow(unsafe_code)]
fn lock(key: &mut PreKey) -> bool {
    // SAFETY: the address and length are those of a live allocation that this reference owns. `mlock` and the `madvise`
    // before it change neither its content nor its mapping, only whether the kernel swaps or dumps its pages.
    unsafe { memsec::mlock(key.0.as_mut_ptr(), PRE_KEY_BYTES) }
}

/// Gives the pages back to ordinary use. Only a pre-key that lost the race to be the process's one comes here.
#[allow(unsafe_code)]
fn unlock(key: &mut PreKey) {
    // SAFETY: as in `lock`. `munlock` wipes the bytes first, which any value of them allows.
    unsafe {
        memsec::munlock(key.0.as_mut_ptr(), PRE_KEY_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pre_key_starts_on_a_page_and_owns_whole_pages() {
        let (key, _) = PreKey::locked();
        assert_eq!(key.0.as_ptr().addr() % 4096, 0);
        assert_eq!(size_of::<PreKey>() % 4096, 0);
    }
}
