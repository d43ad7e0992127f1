//! Which frames start the chunks of a step.
//!
//! A draw depends on (seed, step, slot) and on nothing that happened before, so a resumed run continues with the batches
//! it would have seen, and any number of loader threads sees the same ones.

use super::DataError;
use crate::rng::{Key, Stream};

/// The starts one episode offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartFrames {
    /// The episode's number.
    pub episode: usize,
    /// The global index of the first start.
    pub first: usize,
    /// Number of starts; they are consecutive frames.
    pub count: usize,
    /// Whether the episode is a success.
    pub positive: bool,
}

/// Draws start frames, independently and with replacement.
#[derive(Clone, Debug)]
pub struct Sampler {
    key: Key,
    classes: Classes,
}

#[derive(Clone, Debug)]
enum Classes {
    Uniform(Pool),
    Balanced { ratio: f64, positive: Pool, negative: Pool },
}

impl Sampler {
    /// Draws from `starts`. With a `positive_batch_ratio` in `[0, 1]`, exactly `round(batch_size * ratio)` slots of
    /// each batch come from successful episodes and the rest from failures; each slot is uniform over the frames of its
    /// class. Without it, or if one class has no frames, slots are uniform over all frames.
    ///
    /// # Errors
    /// [`DataError::Spec`] if there is nothing to draw from or the ratio is outside `[0, 1]`.
    pub fn new(seed: u64, starts: &[StartFrames], positive_batch_ratio: Option<f64>) -> Result<Self, DataError> {
        let all = Pool::new(starts.iter());
        if all.total == 0 {
            return Err(DataError::Spec {
                field: "episodes",
                reason: "the chosen episodes offer no frame to start a chunk from; choose longer ones".to_owned(),
            });
        }
        let classes = match positive_batch_ratio {
            None => Classes::Uniform(all),
            Some(ratio) if !(0.0..=1.0).contains(&ratio) => {
                return Err(DataError::Spec {
                    field: "positive_batch_ratio",
                    reason: format!("{ratio} is not a share between 0 and 1"),
                });
            }
            Some(ratio) => {
                let positive = Pool::new(starts.iter().filter(|s| s.positive));
                let negative = Pool::new(starts.iter().filter(|s| !s.positive));
                if positive.total == 0 || negative.total == 0 {
                    let missing = if positive.total == 0 { "successful" } else { "failed" };
                    tracing::warn!(
                        "positive_batch_ratio = {ratio} cannot be met: no frame of a {missing} episode to draw, so frames \
                         are drawn uniformly"
                    );
                    Classes::Uniform(all)
                } else {
                    Classes::Balanced {
                        ratio,
                        positive,
                        negative,
                    }
                }
            }
        };
        Ok(Sampler {
            key: Key::stream(seed, Stream::Sampler),
            classes,
        })
    }

    /// How many slots of a batch come from successful episodes; `None` where slots are not divided.
    pub fn positives(&self, batch_size: usize) -> Option<usize> {
        match &self.classes {
            Classes::Uniform(_) => None,
            Classes::Balanced { ratio, .. } => Some((batch_size as f64 * ratio).round() as usize),
        }
    }

    /// The global start frames of one step's batch, `[B]`.
    pub fn draw(&self, step: u64, batch_size: usize) -> Vec<usize> {
        let key = self.key.fold(step);
        let positives = self.positives(batch_size).unwrap_or(0);
        let slot = |slot: usize| {
            let pool = match &self.classes {
                Classes::Uniform(all) => all,
                Classes::Balanced { positive, negative, .. } => {
                    // Spread over the batch, so that micro-batches and ranks get their share of each class.
                    let is_positive = (slot + 1) * positives / batch_size > slot * positives / batch_size;
                    if is_positive { positive } else { negative }
                }
            };
            pool.frame(key.below(slot as u64, pool.total as u64) as usize)
        };
        (0..batch_size).map(slot).collect()
    }
}

/// Runs of consecutive frames, addressed as if they were one.
#[derive(Clone, Debug)]
struct Pool {
    /// (frames before this run, first frame of this run)
    runs: Vec<(usize, usize)>,
    total: usize,
}

impl Pool {
    fn new<'a>(starts: impl Iterator<Item = &'a StartFrames>) -> Self {
        let mut pool = Pool {
            runs: Vec::new(),
            total: 0,
        };
        for start in starts.filter(|s| s.count > 0) {
            pool.runs.push((pool.total, start.first));
            pool.total += start.count;
        }
        pool
    }

    fn frame(&self, i: usize) -> usize {
        let (before, first) = self.runs[self.runs.partition_point(|(before, _)| *before <= i) - 1];
        first + (i - before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts() -> Vec<StartFrames> {
        vec![
            StartFrames {
                episode: 0,
                first: 0,
                count: 10,
                positive: true,
            },
            StartFrames {
                episode: 1,
                first: 30,
                count: 0,
                positive: false,
            },
            StartFrames {
                episode: 2,
                first: 50,
                count: 40,
                positive: false,
            },
            StartFrames {
                episode: 3,
                first: 200,
                count: 50,
                positive: true,
            },
        ]
    }

    #[test]
    fn every_start_is_drawn_equally_often_and_nothing_else_is() {
        let sampler = Sampler::new(5, &starts(), None).unwrap();
        let mut counts = vec![0usize; 300];
        (0..1000)
            .flat_map(|step| sampler.draw(step, 100))
            .for_each(|f| counts[f] += 1);
        for (frame, count) in counts.into_iter().enumerate() {
            let eligible = frame < 10 || (50..90).contains(&frame) || (200..250).contains(&frame);
            // 1000 expected, standard deviation 32.
            assert!(
                if eligible {
                    (850..1150).contains(&count)
                } else {
                    count == 0
                },
                "frame {frame}: {count}"
            );
        }
    }

    #[test]
    fn classes_fill_exactly_their_slots() {
        for (ratio, batch, expected) in [(0.5, 8, 4), (0.4, 7, 3), (0.0, 5, 0), (1.0, 5, 5), (0.3, 1, 0)] {
            let sampler = Sampler::new(1, &starts(), Some(ratio)).unwrap();
            assert_eq!(sampler.positives(batch), Some(expected));
            for step in 0..50 {
                let drawn = sampler.draw(step, batch);
                assert_eq!(
                    drawn.iter().filter(|f| !(50..90).contains(*f)).count(),
                    expected,
                    "{ratio} {batch}"
                );
            }
        }
    }

    #[test]
    fn micro_batches_share_the_positives() {
        let drawn = Sampler::new(1, &starts(), Some(0.5)).unwrap().draw(3, 16);
        for micro in drawn.chunks(4) {
            assert_eq!(micro.iter().filter(|f| (50..90).contains(*f)).count(), 2);
        }
    }

    #[test]
    fn a_balanced_batch_is_uniform_within_each_class() {
        let sampler = Sampler::new(9, &starts(), Some(0.25)).unwrap();
        let mut counts = vec![0usize; 300];
        (0..2000)
            .flat_map(|step| sampler.draw(step, 80))
            .for_each(|f| counts[f] += 1);
        // 40,000 positives over 60 frames, 120,000 failures over 40.
        assert!(
            counts[..10]
                .iter()
                .chain(&counts[200..250])
                .all(|c| (550..790).contains(c))
        );
        assert!(counts[50..90].iter().all(|c| (2750..3250).contains(c)));
    }

    #[test]
    fn a_missing_class_falls_back_to_all_frames() {
        let only_success: Vec<_> = starts().into_iter().filter(|s| s.positive).collect();
        let sampler = Sampler::new(1, &only_success, Some(0.5)).unwrap();
        assert_eq!(sampler.positives(8), None);
        assert_eq!(
            sampler.draw(0, 8),
            Sampler::new(1, &only_success, None).unwrap().draw(0, 8)
        );
    }

    #[test]
    fn draws_depend_on_seed_and_step() {
        let sampler = Sampler::new(1, &starts(), None).unwrap();
        assert_eq!(sampler.draw(7, 16), sampler.draw(7, 16));
        assert_ne!(sampler.draw(7, 16), sampler.draw(8, 16));
        assert_ne!(
            sampler.draw(7, 16),
            Sampler::new(2, &starts(), None).unwrap().draw(7, 16)
        );
        assert_eq!(sampler.draw(7, 32)[..16], sampler.draw(7, 16));
    }

    #[test]
    fn impossible_requests_are_errors() {
        assert!(Sampler::new(1, &[], None).is_err());
        assert!(Sampler::new(1, &starts()[1..2], None).is_err());
        for ratio in [-0.1, 1.1, f64::NAN] {
            assert!(Sampler::new(1, &starts(), Some(ratio)).is_err());
        }
    }
}
