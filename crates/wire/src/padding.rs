//! How long a blob may be.
//!
//! A blob has one of the sizes 512, 1 Ki, 2 Ki, 4 Ki and 16 Ki bytes, or past that a PADME size: at most 12 % over,
//! and the length tells an observer only its order of magnitude and a few bits.

use crate::limits::MAX_BLOB_BYTES;

/// The fixed sizes.
pub const BUCKETS: [usize; 5] = [512, 1024, 2048, 4096, 16 * 1024];

/// The block of the strict policy, in which all blobs look alike.
pub const STRICT_BLOCK: usize = 16 * 1024;

/// The smallest allowed size that holds `length` bytes; `None` when it would exceed
/// [`MAX_BLOB_BYTES`].
///
/// ```
/// use stvor_wire::padding::bucket_for;
/// assert_eq!((bucket_for(0), bucket_for(513), bucket_for(4097)), (Some(512), Some(1024), Some(16_384)));
/// assert_eq!(bucket_for(16_385), Some(17_408));
/// assert_eq!(bucket_for(73_729), None);
/// ```
#[must_use]
pub fn bucket_for(length: usize) -> Option<usize> {
    let fixed = BUCKETS.iter().copied().find(|bucket| length <= *bucket);
    fixed.or_else(|| padme(length)).filter(|bucket| *bucket <= MAX_BLOB_BYTES)
}

/// As [`bucket_for`] in the strict policy: whole blocks of [`STRICT_BLOCK`]; `None` when it would exceed
/// [`MAX_BLOB_BYTES`].
#[must_use]
pub fn strict_bucket_for(length: usize) -> Option<usize> {
    length.max(1).checked_next_multiple_of(STRICT_BLOCK).filter(|size| is_bucket(*size))
}

/// Whether a blob may have this size.
#[must_use]
pub fn is_bucket(size: usize) -> bool {
    bucket_for(size) == Some(size)
}

/// PADME (Nikitin and others, "Reducing Metadata Leakage from Encrypted Files"): with E the exponent of the length and
/// S the number of bits of E, the lowest E - S bits of the padded length are zero. For lengths past 16 KiB.
fn padme(length: usize) -> Option<usize> {
    let exponent = length.checked_ilog2()?;
    let kept = exponent.checked_ilog2()? + 1;
    length.checked_next_multiple_of(1 << exponent.checked_sub(kept)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_up_to_the_largest_blob_has_the_smallest_bucket_that_holds_it() {
        let buckets: Vec<usize> = (1..=MAX_BLOB_BYTES + 4096).filter(|size| is_bucket(*size)).collect();
        assert_eq!(buckets[..5], BUCKETS);
        assert_eq!(buckets.last(), Some(&MAX_BLOB_BYTES));
        for length in 0..=MAX_BLOB_BYTES {
            let expected = buckets[buckets.partition_point(|bucket| *bucket < length)];
            assert_eq!(bucket_for(length), Some(expected), "{length}");
        }
        assert_eq!(bucket_for(MAX_BLOB_BYTES + 1), None);
        assert_eq!(bucket_for(usize::MAX), None);
    }

    #[test]
    fn padme_costs_at_most_twelve_percent() {
        for length in 16 * 1024 + 1..=MAX_BLOB_BYTES {
            let size = bucket_for(length).unwrap();
            assert!((size - length) * 100 <= length * 12, "{length} -> {size}");
        }
    }

    #[test]
    fn strict_blobs_are_whole_blocks_and_allowed_by_the_relay() {
        assert_eq!(strict_bucket_for(0), Some(STRICT_BLOCK));
        assert_eq!(strict_bucket_for(STRICT_BLOCK + 1), Some(2 * STRICT_BLOCK));
        assert_eq!(strict_bucket_for(64 * 1024 + 1), None);
        assert!((1..=4).all(|blocks| is_bucket(blocks * STRICT_BLOCK)));
    }

    #[test]
    fn a_plaintext_of_64_kib_with_its_envelope_fits_a_bucket() {
        // Envelope, prekey part (two keys, base key, KEM ciphertext of 1088), header and tag stay below 4 KiB.
        assert!(bucket_for(64 * 1024 + 4096).is_some());
    }
}
