//! When a failed attempt is tried again: the retry law, pure.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};

/// The number of retries a job has where nothing else is said.
pub const DEFAULT_MAX_RETRIES: u32 = 3;

/// No delay is longer than this, whatever a policy computes: 366 days.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// How often and how late a failed job is tried again.
///
/// ```
/// use std::time::Duration;
/// use tidemill::{Backoff, RetryPolicy};
///
/// let policy = RetryPolicy::new(5, Backoff::fixed(Duration::from_secs(10)));
/// assert_eq!(policy.max_attempts(), 6);
/// ```
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Retries after the first attempt; 0 means that the first failure buries.
    pub max_retries: u32,
    /// The delay before each retry.
    pub backoff: Backoff,
}

impl RetryPolicy {
    /// `max_retries` retries after the first attempt, delayed by `backoff`.
    pub fn new(max_retries: u32, backoff: Backoff) -> Self {
        Self { max_retries, backoff }
    }

    /// How many attempts a job gets in all.
    pub fn max_attempts(&self) -> u32 {
        self.max_retries.saturating_add(1)
    }
}

impl Default for RetryPolicy {
    /// Three retries with the default [`Backoff`].
    fn default() -> Self {
        Self::new(DEFAULT_MAX_RETRIES, Backoff::default())
    }
}

/// The delay before a retry, as a law over the number of the attempt that failed.
#[derive(Clone)]
pub struct Backoff(Law);

#[derive(Clone)]
enum Law {
    Exponential { base: Duration, factor: f64, cap: Duration },
    Linear { step: Duration },
    Fixed { delay: Duration },
    Custom(Arc<dyn Fn(u32) -> Duration + Send + Sync>),
}

impl Backoff {
    /// Full jitter over `base * factor^(attempt - 1)`, at most `cap`: the delay is spread evenly
    /// between nothing and that, so that jobs which failed together do not come back together
    /// (M. Brooker, "Exponential Backoff And Jitter", 2015). A factor below 1 counts as 1.
    pub fn exponential(base: Duration, factor: f64, cap: Duration) -> Self {
        Self(Law::Exponential { base, factor: factor.max(1.0), cap })
    }

    /// `step`, twice `step`, three times `step`, …
    pub fn linear(step: Duration) -> Self {
        Self(Law::Linear { step })
    }

    /// The same delay each time.
    pub fn fixed(delay: Duration) -> Self {
        Self(Law::Fixed { delay })
    }

    /// Any law: the delay after attempt number `attempt`, counted from 1. It stays with the worker;
    /// it cannot travel in a job's headers.
    pub fn custom(law: impl Fn(u32) -> Duration + Send + Sync + 'static) -> Self {
        Self(Law::Custom(Arc::new(law)))
    }

    /// The delay after attempt `attempt` failed; `chance` in 0 to 1 stands for the jitter.
    pub fn delay(&self, attempt: u32, chance: f64) -> Duration {
        let delay = match &self.0 {
            Law::Exponential { base, factor, cap } => {
                let power = attempt.saturating_sub(1).min(1_000) as i32;
                let seconds = (base.as_secs_f64() * factor.powi(power)).min(cap.as_secs_f64());
                Duration::from_secs_f64((seconds * chance).clamp(0.0, MAX_DELAY.as_secs_f64()))
            }
            Law::Linear { step } => step.saturating_mul(attempt),
            Law::Fixed { delay } => *delay,
            Law::Custom(law) => law(attempt),
        };
        delay.min(MAX_DELAY)
    }

    /// The text that the header `Tidemill-Backoff` carries; `None` for a custom law.
    pub(crate) fn to_wire(&self) -> Option<String> {
        match &self.0 {
            Law::Exponential { base, factor, cap } => {
                Some(format!("exp:{}:{factor}:{}", base.as_millis(), cap.as_millis()))
            }
            Law::Linear { step } => Some(format!("linear:{}", step.as_millis())),
            Law::Fixed { delay } => Some(format!("fixed:{}", delay.as_millis())),
            Law::Custom(_) => None,
        }
    }
}

impl Default for Backoff {
    /// Exponential: base 2 s, factor 2, cap 1 h, full jitter.
    fn default() -> Self {
        Self::exponential(Duration::from_secs(2), 2.0, Duration::from_secs(3600))
    }
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_wire().as_deref().unwrap_or("custom"))
    }
}

impl FromStr for Backoff {
    type Err = Error;

    /// Reads `exp:<base ms>:<factor>:<cap ms>`, `linear:<step ms>` or `fixed:<delay ms>`.
    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| {
            Error::invalid(format!(
                "backoff {text:?} is not valid: use exp:<base ms>:<factor>:<cap ms>, \
                 linear:<step ms> or fixed:<delay ms>"
            ))
        })
    }
}

fn parse(text: &str) -> Option<Backoff> {
    let mut parts = text.split(':');
    let law = parts.next()?;
    let millis = |parts: &mut std::str::Split<'_, char>| -> Option<Duration> {
        parts.next()?.parse().ok().map(Duration::from_millis).filter(|delay| *delay <= MAX_DELAY)
    };
    let backoff = match law {
        "exp" => {
            let base = millis(&mut parts)?;
            let factor: f64 = parts.next()?.parse().ok()?;
            let cap = millis(&mut parts)?;
            if !(1.0..=100.0).contains(&factor) {
                return None;
            }
            Backoff::exponential(base, factor, cap)
        }
        "linear" => Backoff::linear(millis(&mut parts)?),
        "fixed" => Backoff::fixed(millis(&mut parts)?),
        _ => return None,
    };
    parts.next().is_none().then_some(backoff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_laws_as_a_table() {
        let exponential = Backoff::default();
        let table = [
            (&exponential, 1, 1.0, secs(2)),
            (&exponential, 2, 1.0, secs(4)),
            (&exponential, 3, 0.5, secs(4)),
            (&exponential, 3, 0.0, secs(0)),
            (&exponential, 12, 1.0, secs(3600)),
            (&exponential, u32::MAX, 1.0, secs(3600)),
            (&Backoff::linear(secs(2)), 1, 0.3, secs(2)),
            (&Backoff::linear(secs(2)), 3, 0.3, secs(6)),
            (&Backoff::fixed(secs(7)), 9, 0.9, secs(7)),
            (&Backoff::custom(|attempt| secs(u64::from(attempt) * 10)), 4, 0.9, secs(40)),
        ];
        for (law, attempt, chance, delay) in table {
            assert_eq!(law.delay(attempt, chance), delay, "{law:?} attempt {attempt}");
        }
    }

    #[test]
    fn wire_text_round_trips_and_rubbish_is_refused() {
        for good in ["exp:2000:2:3600000", "exp:1:1.5:10", "linear:2000", "fixed:500"] {
            assert_eq!(good.parse::<Backoff>().expect(good).to_wire().as_deref(), Some(good));
        }
        for bad in ["", "exp", "exp:1:2", "exp:1:0.5:9", "exp:1:NaN:9", "fixed:-1", "fixed:1:2"] {
            assert!(bad.parse::<Backoff>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_delay_stays_within_its_law(
            base in 0u64..100_000, factor in 1.0f64..10.0, cap in 0u64..10_000_000,
            attempt in 1u32.., chance in 0.0f64..=1.0,
        ) {
            let cap = Duration::from_millis(cap);
            let law = Backoff::exponential(Duration::from_millis(base), factor, cap);
            prop_assert!(law.delay(attempt, chance) <= cap);
            prop_assert!(law.delay(attempt, chance) <= law.delay(attempt, 1.0));
        }

        #[test]
        fn the_ceiling_is_base_times_factor_to_the_power_up_to_the_cap(
            base in 1u64..100_000, factor in 1.0f64..10.0, cap in 0u64..10_000_000,
            attempt in 1u32..60,
        ) {
            let law = Backoff::exponential(
                Duration::from_millis(base), factor, Duration::from_millis(cap),
            );
            let ceiling = (base as f64 * factor.powi(attempt as i32 - 1)).min(cap as f64) / 1000.0;
            let got = law.delay(attempt, 1.0).as_secs_f64();
            prop_assert!((got - ceiling).abs() <= 1e-6 + ceiling * 1e-9, "{got} for {ceiling}");
            prop_assert!(law.delay(attempt, 1.0) <= law.delay(attempt + 1, 1.0));
        }

        #[test]
        fn jitter_is_spread_evenly_from_nothing_to_the_ceiling(
            attempt in 1u32..40, chance in 0.0f64..=1.0,
        ) {
            let law = Backoff::default();
            let ceiling = law.delay(attempt, 1.0).as_secs_f64();
            let got = law.delay(attempt, chance).as_secs_f64();
            prop_assert!((got - ceiling * chance).abs() < 1e-6);
            // Only the exponential law has jitter.
            for law in [Backoff::linear(secs(2)), Backoff::fixed(secs(2))] {
                prop_assert_eq!(law.delay(attempt, chance), law.delay(attempt, 0.0));
            }
        }

        #[test]
        fn no_law_is_longer_than_the_longest_delay_whatever_it_is_given(
            millis in any::<u64>(), factor in any::<f64>(), cap in any::<u64>(),
            attempt in any::<u32>(), chance in 0.0f64..=1.0,
        ) {
            let (delay, cap) = (Duration::from_millis(millis), Duration::from_millis(cap));
            for law in [
                Backoff::exponential(delay, factor, cap),
                Backoff::linear(delay),
                Backoff::fixed(delay),
                Backoff::custom(move |_| delay),
            ] {
                prop_assert!(law.delay(attempt, chance) <= MAX_DELAY, "{law:?}");
            }
        }

        #[test]
        fn a_law_travels_as_it_is(
            base in 0u64..1_000_000_000, factor in 1.0f64..=100.0, cap in 0u64..30_000_000_000,
        ) {
            let (base, cap) = (Duration::from_millis(base), Duration::from_millis(cap));
            for law in
                [Backoff::exponential(base, factor, cap), Backoff::linear(cap), Backoff::fixed(cap)]
            {
                let text = law.to_wire().expect("no custom law");
                let read: Backoff = text.parse().expect("valid");
                prop_assert_eq!(read.to_wire(), Some(text));
                for (attempt, chance) in [(1, 1.0), (7, 0.3), (u32::MAX, 1.0)] {
                    prop_assert_eq!(read.delay(attempt, chance), law.delay(attempt, chance));
                }
            }
        }
    }
}
