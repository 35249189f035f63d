//! Random numbers that come back: every run draws the same ones, and a failed test says from which seed.
//!
//! Set `COWIMG_TEST_SEED` to a number to run with other draws.
#![allow(dead_code, reason = "each test binary uses its own part")]

/// xorshift64*: small, fast, and good enough to choose operations.
#[derive(Debug)]
pub(crate) struct Rng {
    state: u64,
    seed: u64,
    purpose: String,
}

impl Rng {
    /// A generator for `purpose`, which is part of the seed and is printed when the test panics.
    pub(crate) fn new(purpose: impl Into<String>) -> Rng {
        let seed = match std::env::var("COWIMG_TEST_SEED") {
            Ok(text) => text.parse().expect("COWIMG_TEST_SEED is a number"),
            Err(_) => 1,
        };
        let purpose = purpose.into();
        // FNV-1a, so that tests that run beside each other draw differently.
        let hash = purpose
            .bytes()
            .fold(0xcbf29ce484222325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100000001b3));
        let state = hash ^ u64::wrapping_mul(seed, 0x9e3779b97f4a7c15);
        Rng { state: state.max(1), seed, purpose }
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545f4914f6cdd1d)
    }

    /// A number below `limit`, which is above 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// One of the choices.
    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }
}

impl Drop for Rng {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: drawn with COWIMG_TEST_SEED={}", self.purpose, self.seed);
        }
    }
}

/// Whether this run may take its time (`make soak` says so with `COWIMG_SOAK`): what is drawn otherwise is then done whole.
pub(crate) fn is_soak() -> bool {
    std::env::var_os("COWIMG_SOAK").is_some()
}

/// `len` bytes that do not compress and that differ from those of every other `salt`.
pub(crate) fn noise(salt: u64, len: usize) -> Vec<u8> {
    let mut state = salt.wrapping_mul(0x9e3779b97f4a7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
