//! Random numbers from a seed, and bytes from a seed.

/// SplitMix64: small, fast, and the same numbers for the same seed everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 to `end` - 1.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Waiting times between events that know nothing of each other: exponentially distributed.
    pub(crate) fn wait(&mut self, mean: f64) -> f64 {
        let uniform = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        -mean * (1.0 - uniform).ln()
    }
}

fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Adds `length` bytes that depend on the seed and on where they stand: moved, cut and mixed bytes
/// are all seen.
pub(crate) fn pattern(seed: u64, length: usize, bytes: &mut Vec<u8>) {
    bytes.reserve(length + 8);
    let end = bytes.len() + length;
    let mut index = 0u64;
    while bytes.len() < end {
        bytes.extend_from_slice(
            &mix(seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes(),
        );
        index += 1;
    }
    bytes.truncate(end);
}
