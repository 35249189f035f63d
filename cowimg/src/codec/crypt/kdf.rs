//! From passphrase to key: PBKDF2 over any of the hashes, and how many of its iterations take a given time.

use std::time::{Duration, Instant};

use super::HashAlgorithm;

/// Calls a generic function with the type of a hash.
macro_rules! with_hash {
    ($hash:expr, $function:ident ( $($argument:expr),* )) => {
        match $hash {
            HashAlgorithm::Md5 => $function::<md5::Md5>($($argument),*),
            HashAlgorithm::Sha1 => $function::<sha1::Sha1>($($argument),*),
            HashAlgorithm::Sha224 => $function::<sha2::Sha224>($($argument),*),
            HashAlgorithm::Sha256 => $function::<sha2::Sha256>($($argument),*),
            HashAlgorithm::Sha384 => $function::<sha2::Sha384>($($argument),*),
            HashAlgorithm::Sha512 => $function::<sha2::Sha512>($($argument),*),
            HashAlgorithm::Ripemd160 => $function::<ripemd::Ripemd160>($($argument),*),
            HashAlgorithm::Sm3 => $function::<sm3::Sm3>($($argument),*),
        }
    };
}

impl HashAlgorithm {
    /// Bytes of its digest.
    pub(crate) fn len(self) -> usize {
        fn len<D: sha1::Digest>() -> usize {
            <D as sha1::Digest>::output_size()
        }
        with_hash!(self, len())
    }

    /// The digest of `parts`, one after the other.
    pub(crate) fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        fn digest<D: sha1::Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut hash = D::new();
            for part in parts {
                hash.update(part);
            }
            hash.finalize().to_vec()
        }
        with_hash!(self, digest(parts))
    }

    /// Fills `key` from a secret.
    pub(crate) fn pbkdf2(self, secret: &[u8], salt: &[u8], iterations: u32, key: &mut [u8]) {
        use pbkdf2::pbkdf2_hmac;
        with_hash!(self, pbkdf2_hmac(secret, salt, iterations, key));
    }

    /// How many iterations take `time` on this machine, for a key of `key_len` bytes.
    pub(crate) fn iterations_in(self, time: Duration, key_len: usize) -> u64 {
        let mut iterations: u32 = 1 << 10;
        let mut key = vec![0; key_len];
        loop {
            let start = Instant::now();
            self.pbkdf2(b"how fast is it?", &[0; 32], iterations, &mut key);
            let taken = start.elapsed();
            // Long enough to be measured, and no longer than it has to be.
            if taken >= Duration::from_millis(20) || iterations >= 1 << 26 {
                return in_proportion(iterations, taken, time);
            }
            iterations *= 2;
        }
    }
}

/// How many iterations take `time` where some took `taken`.
fn in_proportion(iterations: u32, taken: Duration, time: Duration) -> u64 {
    let count = u128::from(iterations) * time.as_nanos() / taken.as_nanos().max(1);
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(HashAlgorithm::Sha256.len(), 32);
        // RFC 6070, test 2.
        let mut key = [0; 20];
        HashAlgorithm::Sha1.pbkdf2(b"password", b"salt", 2, &mut key);
        assert_eq!(key[..4], [0xea, 0x6c, 0x01, 0x4d]);
        assert_eq!(HashAlgorithm::Md5.digest(&[b"a", b"bc"])[..4], [0x90, 0x01, 0x50, 0x98]);
    }

    #[test]
    fn more_time_is_more_iterations() {
        let (some, long) = (Duration::from_millis(20), Duration::from_secs(2));
        assert_eq!(in_proportion(1024, some, long), 102_400);
        assert_eq!(in_proportion(1024, long, some), 10);
        assert_eq!(in_proportion(u32::MAX, Duration::ZERO, Duration::from_secs(1 << 40)), u64::MAX);
        assert!(HashAlgorithm::Sha256.iterations_in(long, 32) > 0);
    }
}
