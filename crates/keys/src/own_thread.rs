//! Calls of libraries of others.

use crate::KeyError;

/// Does `work`, which calls a library of others, on a thread that has ended when this returns, with all that the library
/// keeps for a thread. `holder` is what fails when there is no thread.
///
/// Modules of tokens and the TPM software link OpenSSL, which frees what it keeps for a thread when that ends, and all of it
/// when the process does. Called on a thread of a pool, which may end while the process does, both would free the same.
pub(crate) fn on_own_thread<T: Send>(
    holder: &'static str,
    work: impl FnOnce() -> Result<T, KeyError> + Send,
) -> Result<T, KeyError> {
    let failed = |reason: String| KeyError::Unavailable { holder, reason };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("stvor-key".into()).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| failed(format!("there is no thread to ask it ({error})")))?;
        // Unlike the end of the scope, this waits for the destructors of what is kept for the thread.
        thread.join().unwrap_or_else(|_| Err(failed("a call of its library did not finish".into())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn what_a_library_keeps_for_a_thread_is_gone_when_its_call_has_returned() {
        struct Kept(&'static AtomicBool);
        impl Drop for Kept {
            fn drop(&mut self) {
                // Long enough for a caller that does not wait to be seen.
                std::thread::sleep(std::time::Duration::from_millis(50));
                self.0.store(true, Ordering::SeqCst);
            }
        }
        static GONE: AtomicBool = AtomicBool::new(false);
        thread_local!(static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) });
        let kept = on_own_thread("token", || {
            KEPT.with(|kept| *kept.borrow_mut() = Some(Kept(&GONE)));
            Ok(())
        });
        assert!(kept.is_ok());
        assert!(GONE.load(Ordering::SeqCst));
    }

    #[test]
    fn a_panic_in_a_call_is_an_error() {
        let ended = on_own_thread::<()>("token", || panic!("within"));
        assert!(matches!(ended, Err(KeyError::Unavailable { holder: "token", .. })), "{ended:?}");
    }
}
