//! Times that hold on a busy machine.
//!
//! Contenders take turns in short batches, so that a slow spell of the machine hits all of them, and the least time of
//! all batches counts: noise only ever adds. A ratio between two contenders of one race is steadier than either.

use std::time::{Duration, Instant};

/// How long one batch runs, about: long against the clock's resolution, short against the scheduler's slice.
const BATCH: Duration = Duration::from_millis(1);

/// Fewest batches of a contender, however slow it is.
const FEWEST_BATCHES: u32 = 20;

/// Something to time.
pub struct Contender<'a> {
    name: &'a str,
    /// Runs it this many times and returns how long that took, without what it had to prepare.
    batch: Box<dyn FnMut(u32) -> Duration + 'a>,
}

impl<'a> Contender<'a> {
    /// Times `step` as it stands.
    pub fn new(name: &'a str, mut step: impl FnMut() + 'a) -> Self {
        let batch = Box::new(move |times| {
            let start = Instant::now();
            (0..times).for_each(|_| step());
            start.elapsed()
        });
        Self { name, batch }
    }

    /// Times `step` on inputs that `prepare` makes outside of the clock. All inputs of a batch exist at once.
    pub fn prepared<I, O>(
        name: &'a str,
        mut prepare: impl FnMut() -> I + 'a,
        mut step: impl FnMut(I) -> O + 'a,
    ) -> Self {
        let batch = Box::new(move |times| {
            let inputs: Vec<I> = (0..times).map(|_| prepare()).collect();
            let mut outputs = Vec::with_capacity(inputs.len());
            let start = Instant::now();
            outputs.extend(inputs.into_iter().map(&mut step));
            start.elapsed()
        });
        Self { name, batch }
    }
}

/// The least time of one contender's step.
#[derive(Clone, Debug, PartialEq)]
pub struct Time {
    /// The contender.
    pub name: String,
    /// Nanoseconds.
    pub nanoseconds: f64,
}

/// Lets the contenders run in turns for about `budget` each and returns their least times, in the order given.
///
/// ```
/// use std::time::Duration;
/// use stvor_bench::timing::{Contender, race};
/// let times = race(Duration::from_millis(5), vec![Contender::new("nothing", || ())]);
/// assert!(times[0].nanoseconds >= 0.0);
/// ```
#[must_use]
pub fn race(budget: Duration, mut contenders: Vec<Contender<'_>>) -> Vec<Time> {
    let sizes: Vec<u32> = contenders.iter_mut().map(|contender| batch_size(&mut contender.batch)).collect();
    let mut least = vec![f64::INFINITY; contenders.len()];
    let deadline = Instant::now() + budget * u32::try_from(contenders.len()).unwrap_or(u32::MAX);
    let mut round = 0;
    while round < FEWEST_BATCHES || Instant::now() < deadline {
        for ((contender, times), least) in contenders.iter_mut().zip(&sizes).zip(&mut least) {
            let each = (contender.batch)(*times).as_secs_f64() * 1e9 / f64::from(*times);
            *least = least.min(each);
        }
        round += 1;
    }
    let named = contenders.iter().zip(least);
    named.map(|(contender, nanoseconds)| Time { name: contender.name.to_owned(), nanoseconds }).collect()
}

/// Doubles the batch until it is long enough; this warms caches up too.
fn batch_size(batch: &mut dyn FnMut(u32) -> Duration) -> u32 {
    let mut times = 1_u32;
    // The least of three: one that was interrupted must not end the search.
    let mut least = |times| (0..3).map(|_| batch(times)).min().unwrap_or_default();
    while least(times) < BATCH && times < 1 << 20 {
        times *= 2;
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn times_come_in_the_order_of_the_contenders() {
        let contenders = vec![Contender::new("first", || ()), Contender::new("second", || ())];
        let times = race(Duration::ZERO, contenders);
        assert_eq!(times.iter().map(|time| time.name.as_str()).collect::<Vec<_>>(), ["first", "second"]);
        assert!(times.iter().all(|time| time.nanoseconds.is_finite()));
    }

    #[test]
    fn each_prepared_input_is_used_once_and_only_the_step_is_timed() {
        let (prepared, used) = (Cell::new(0), Cell::new(0));
        let step = |number: u32| {
            assert_eq!(number, used.get(), "the inputs come in the order of their making");
            used.set(number + 1);
        };
        let prepare = || {
            prepared.set(prepared.get() + 1);
            prepared.get() - 1
        };
        let mut contender = Contender::prepared("steps", prepare, step);
        let start = Instant::now();
        let timed = (contender.batch)(100);
        assert!(timed <= start.elapsed());
        drop(contender);
        assert_eq!((prepared.get(), used.get()), (100, 100));
    }
}
