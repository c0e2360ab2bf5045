//! Chance that can be had again: random choices from a seed that a failure names.

/// A generator of random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Chance {
    seed: u64,
    state: u64,
}

impl Chance {
    /// Begins with the seed that `LARIAT_TEST_SEED` names, else with one that nobody foresees.
    #[must_use]
    pub fn new() -> Self {
        let given = std::env::var("LARIAT_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let fresh = || {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.map_or(1, |since| since.as_nanos() as u64) ^ u64::from(std::process::id()) << 40
        };
        Self::of(given.unwrap_or_else(fresh))
    }

    /// Begins with this seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// Returns the seed, for messages.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// Returns one of these.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).expect("an index")]
    }
}

impl Default for Chance {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns how often a test with chance in it tries: `usual`, times what `LARIAT_TEST_ROUNDS` says.
#[must_use]
pub fn rounds(usual: usize) -> usize {
    let times: Option<usize> = std::env::var("LARIAT_TEST_ROUNDS").ok().and_then(|text| text.parse().ok());
    usual * times.unwrap_or(1)
}
