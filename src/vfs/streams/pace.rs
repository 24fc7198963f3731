//! How fast a stream is, and whether it could do with company. Pure.

use std::time::{Duration, Instant};

/// One measurement of a stream.
const EVIDENCE: u64 = 4 * 1024 * 1024;

/// A stream that brings more in a second is limited by the line or by processors, not by a window
/// or a rate that somebody set for one connection.
const FAST: u64 = 50 * 1024 * 1024;

/// How fast one stream brings bytes. Pure.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    since: Option<Instant>,
    bytes: u64,
    waited: Duration,
    /// Bytes in a second, of the measurement before.
    last: Option<u64>,
}

impl Pace {
    /// The stream was left.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// So many bytes came after such a wait. The rate of a stream that could do with company: its
    /// reader waits for it, it has levelled off, and it is not fast.
    pub(crate) fn note(&mut self, count: usize, waited: Duration, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        self.bytes += count as u64;
        self.waited += waited;
        if self.bytes < EVIDENCE {
            return None;
        }
        let elapsed = now.duration_since(since);
        let rate = rate(self.bytes, elapsed);
        let is_waited_for = self.waited * 2 > elapsed;
        let has_levelled_off = self.last.is_some_and(|last| rate <= last / 4 * 5);
        *self = Self { since: Some(now), last: Some(rate), ..Self::default() };
        (is_waited_for && has_levelled_off && rate < FAST).then_some(rate)
    }
}

/// Bytes in a second.
pub(super) fn rate(bytes: u64, elapsed: Duration) -> u64 {
    let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1_000_000) / micros
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream of so many bytes a second tells after each measurement, its reader waiting for
    /// so much of the time.
    fn told(rates: &[u64], waits: f64) -> Vec<Option<u64>> {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        pace.note(0, Duration::ZERO, now);
        let mut measure = |rate: &u64| {
            let took = Duration::from_secs_f64(EVIDENCE as f64 / *rate as f64);
            now += took;
            pace.note(EVIDENCE as usize, took.mul_f64(waits), now)
        };
        rates.iter().map(|rate| measure(rate).map(|rate| rate / 1_000_000)).collect()
    }

    #[test]
    fn only_a_slow_stream_that_has_levelled_off_and_is_waited_for_wants_company() {
        const MB: u64 = 1_000_000;
        assert_eq!(told(&[2 * MB, 2 * MB], 0.9), [None, Some(2)]);
        assert_eq!(told(&[2 * MB, 4 * MB, 8 * MB, 8 * MB], 0.9), [None, None, None, Some(8)]);
        assert_eq!(told(&[2 * MB, 2 * MB], 0.2), [None, None], "the reader is slower");
        assert_eq!(told(&[900 * MB, 900 * MB], 0.9), [None, None], "nothing to be gained");
    }
}
