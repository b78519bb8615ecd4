//! A small reproducible generator (Marsaglia, "Xorshift RNGs").

pub(crate) struct Random(u64);

impl Random {
    /// Any seed but 0.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}
