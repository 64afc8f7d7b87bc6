//! How fast a count grows, as load averages are kept: over a minute, five and fifteen, the latest counting most.

use std::time::Duration;

/// Per minute, over so many minutes.
pub const MINUTES: [u32; 3] = [1, 5, 15];

/// The averages of one count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    last: u64,
    per_minute: [f64; 3],
}

impl Load {
    /// The count has come to `total`, so long after it was told last.
    #[expect(clippy::cast_precision_loss, reason = "an average need not be exact")]
    pub fn told(&mut self, total: u64, after: Duration) {
        let grown = total.saturating_sub(self.last) as f64;
        self.last = total;
        let seconds = after.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let rate = grown * 60.0 / seconds;
        for (average, minutes) in self.per_minute.iter_mut().zip(MINUTES) {
            let kept = (-seconds / (60.0 * f64::from(minutes))).exp();
            *average = rate + kept * (*average - rate);
        }
    }

    /// For each of [`MINUTES`].
    #[must_use]
    pub fn per_minute(&self) -> [f64; 3] {
        self.per_minute
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_evenly_comes_to_its_rate_the_shortest_first_and_is_forgotten_likewise() {
        let (mut load, mut total) = (Load::default(), 0);
        let mut minute = |load: &mut Load, more: u64| {
            for _ in 0..6 {
                total += more;
                load.told(total, Duration::from_secs(10));
            }
        };
        minute(&mut load, 100);
        let [one, five, fifteen] = load.per_minute();
        assert!((one - 600.0 * (1.0 - (-1.0_f64).exp())).abs() < 1e-6, "{one}");
        assert!(one > five && five > fifteen && fifteen > 30.0);
        for _ in 0..200 {
            minute(&mut load, 100);
        }
        assert!(load.per_minute().iter().all(|average| (average - 600.0).abs() < 0.01), "{load:?}");
        minute(&mut load, 0);
        let [one, five, fifteen] = load.per_minute();
        assert!(one < five && five < fifteen && one < 230.0);
        load.told(0, Duration::ZERO);
        assert!(load.per_minute()[0] > 0.0, "no time, no rate");
    }
}
