//! What a key leaves in memory when it is gone. A process of its own: no other test may hold what is looked for.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // Clippy exempts `#[test]` functions, not their helpers.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use stvor_crypto::{Secret, aead::Aes256Gcm};
use zeroize::Zeroize as _;

/// The third and fourth round keys of AES-256 under the key 00 01 02 .. 1f (FIPS 197, C.3): only a key that is set up has them. In the program's
/// file, and copied nowhere.
static ROUND_KEYS: [u8; 32] = [
    0xa5, 0x73, 0xc2, 0x9f, 0xa1, 0x76, 0xc4, 0x98, 0xa9, 0x7f, 0xce, 0x93, 0xa5, 0x72, 0xc0, 0x9c, 0x16,
    0x51, 0xa8, 0xcd, 0x02, 0x44, 0xbe, 0xda, 0x1a, 0x5d, 0xa4, 0xc1, 0x06, 0x40, 0xba, 0xde,
];

/// Bytes of memory that are looked at together.
const PART: usize = 1 << 20;

/// Whether they are anywhere in the memory of this process that is no file's.
fn in_memory(part: &mut [u8]) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = File::open("/proc/self/mem").unwrap();
    let mut found = false;
    for line in maps.lines().filter(|line| line.contains(" rw") && line.contains(" 00:00 0")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-')).unwrap();
        let [mut from, end] = [range.0, range.1].map(|at| u64::from_str_radix(at, 16).unwrap());
        while from < end {
            let length = usize::try_from(end - from).unwrap().min(PART);
            let part = &mut part[..length];
            // What was unmapped meanwhile is nobody's.
            if memory.read_at(part, from).is_ok() {
                found |= part.windows(ROUND_KEYS.len()).any(|bytes| bytes == ROUND_KEYS);
            }
            // Or the next look would find this one's copy.
            part.zeroize();
            if length < PART {
                break;
            }
            from += (PART - ROUND_KEYS.len()) as u64;
        }
    }
    found
}

#[test]
fn an_aes_key_that_was_dropped_is_in_memory_no_more() {
    let mut part = vec![0; PART];
    let key = Aes256Gcm::new(&Secret::new(core::array::from_fn(|at| u8::try_from(at).unwrap())));
    let mut bytes = b"words".to_vec();
    key.seal(&[0; 12], b"", &mut bytes).unwrap();
    if !in_memory(&mut part) {
        #[cfg(target_arch = "x86_64")]
        assert!(!std::arch::is_x86_feature_detected!("aes"), "what is there is found");
        eprintln!("skipped: on this processor the library keeps round keys in another form");
        return;
    }
    key.open(&[0; 12], b"", &mut bytes).unwrap();
    drop(key);
    assert!(!in_memory(&mut part));
}
