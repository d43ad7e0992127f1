//! Which frames start the chunks of a step.
//!
//! A draw depends on (seed, step, slot) and on nothing that happened before, so a resumed run continues with the batches
//! it would have seen, and any number of loader threads sees the same ones.

use super::DataError;
use super::pool::Pool;
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
    /// The dataset it belongs to, where several are mixed.
    pub source: usize,
}

/// Draws start frames, with replacement.
#[derive(Clone, Debug)]
pub struct Sampler {
    key: Key,
    classes: Classes,
    /// Consecutive chunks of a chain (L), and the frames from one to the next.
    chain: usize,
    stride: usize,
}

#[derive(Clone, Debug)]
enum Classes {
    Uniform(Pool),
    Balanced { ratio: f64, positive: Pool, negative: Pool },
}

impl Sampler {
    /// Draws from `starts`, each slot on its own. With a `positive_batch_ratio` in `[0, 1]`, exactly
    /// `round(batch_size * ratio)` slots of each batch come from successful episodes and the rest from failures; each
    /// slot is uniform over the frames of its class. Without it, or if one class has no frames, slots are uniform over
    /// all frames.
    ///
    /// # Errors
    /// [`DataError::Spec`] if there is nothing to draw from or the ratio is outside `[0, 1]`.
    pub fn new(seed: u64, starts: &[StartFrames], positive_batch_ratio: Option<f64>) -> Result<Self, DataError> {
        Sampler::mixed(seed, starts, positive_batch_ratio, &[])
    }

    /// The same over several datasets: a slot first chooses among those that have a frame of its class, in proportion
    /// to `weights[source]`, then a frame of it. Without weights all frames are equally likely.
    ///
    /// # Errors
    /// Those of [`Sampler::new`].
    pub fn mixed(
        seed: u64,
        starts: &[StartFrames],
        positive_batch_ratio: Option<f64>,
        weights: &[f64],
    ) -> Result<Self, DataError> {
        let pool = |of: &dyn Fn(&StartFrames) -> bool| Pool::new(starts.iter().filter(|s| of(s)), weights);
        let all = pool(&|_| true);
        if all.is_empty() {
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
                let (positive, negative) = (pool(&|s| s.positive), pool(&|s| !s.positive));
                if positive.is_empty() || negative.is_empty() {
                    let missing = if positive.is_empty() { "successful" } else { "failed" };
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
            chain: 1,
            stride: 1,
        })
    }

    /// Draws chains of `length` chunks instead of single ones: each but the first of a chain starts `stride` frames after
    /// the one before. Where no start is left that far on in the episode, the rest of the chain is drawn anew. With
    /// balanced classes, `round(chains * ratio)` chains of a batch come from successful episodes.
    pub fn chained(self, length: usize, stride: usize) -> Sampler {
        Sampler {
            chain: length.max(1),
            stride,
            ..self
        }
    }

    /// How many chains of a batch come from successful episodes (without chains: how many slots); `None` where they are
    /// not divided.
    pub fn positives(&self, batch_size: usize) -> Option<usize> {
        match &self.classes {
            Classes::Uniform(_) => None,
            Classes::Balanced { ratio, .. } => Some((batch_size.div_ceil(self.chain) as f64 * ratio).round() as usize),
        }
    }

    /// The global start frames of one step's batch, `[B]`.
    pub fn draw(&self, step: u64, batch_size: usize) -> Vec<usize> {
        let key = self.key.fold(step);
        let chains = batch_size.div_ceil(self.chain);
        let positives = self.positives(batch_size).unwrap_or(0);
        let pool_of = |chain: usize| match &self.classes {
            Classes::Uniform(all) => all,
            Classes::Balanced { positive, negative, .. } => {
                // Spread over the batch, so that micro-batches and ranks get their share of each class.
                let is_positive = (chain + 1) * positives / chains > chain * positives / chains;
                if is_positive { positive } else { negative }
            }
        };
        let mut frames: Vec<usize> = Vec::with_capacity(batch_size);
        for slot in 0..batch_size {
            let pool = pool_of(slot / self.chain);
            let before = frames.last().filter(|_| slot % self.chain > 0);
            let after = before.and_then(|frame| pool.later(*frame, self.stride));
            frames.push(after.unwrap_or_else(|| pool.draw(key, slot as u64)));
        }
        frames
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
                source: 0,
            },
            StartFrames {
                episode: 1,
                first: 30,
                count: 0,
                positive: false,
                source: 0,
            },
            StartFrames {
                episode: 2,
                first: 50,
                count: 40,
                positive: false,
                source: 0,
            },
            StartFrames {
                episode: 3,
                first: 200,
                count: 50,
                positive: true,
                source: 0,
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
    fn chains_go_on_through_their_episode() {
        let (length, stride) = (4, 7);
        let sampler = Sampler::new(1, &starts(), Some(0.5)).unwrap().chained(length, stride);
        let episode = |frame: usize| {
            starts()
                .into_iter()
                .find(|s| (s.first..s.first + s.count).contains(&frame))
        };
        let (mut linked, mut broken) = (0, 0);
        for step in 0..100 {
            let drawn = sampler.draw(step, 16);
            for chain in drawn.chunks(length) {
                let classes = chain.iter().map(|f| episode(*f).unwrap().positive);
                assert!(
                    classes.clone().all(|c| c) || classes.clone().all(|c| !c),
                    "a chain has one class"
                );
                for pair in chain.windows(2) {
                    let room = episode(pair[0]) == episode(pair[0] + stride);
                    assert!(!room || pair[1] == pair[0] + stride, "{pair:?}");
                    linked += usize::from(room);
                    broken += usize::from(!room);
                }
            }
            let positive = drawn.iter().filter(|f| episode(**f).unwrap().positive).count();
            assert_eq!(positive, 8);
        }
        assert!(
            linked > 400 && broken > 100,
            "{linked} links, {broken} ends of episodes"
        );
        let single = Sampler::new(1, &starts(), Some(0.5)).unwrap();
        assert_eq!(single.clone().chained(1, stride).draw(3, 16), single.draw(3, 16));
    }

    #[test]
    fn datasets_are_mixed_by_weight_within_each_class() {
        let starts: Vec<_> = starts()
            .into_iter()
            .map(|s| StartFrames {
                source: s.episode / 3,
                ..s
            })
            .collect();
        // Dataset 0: ten positive and forty negative starts. Dataset 1: fifty positive ones. Dataset 2: nothing.
        let of = |frames: &[usize], range: std::ops::Range<usize>| frames.iter().filter(|f| range.contains(f)).count();
        let draw = |ratio, weights: &[f64]| -> Vec<usize> {
            let sampler = Sampler::mixed(2, &starts, ratio, weights).unwrap();
            (0..100).flat_map(|step| sampler.draw(step, 100)).collect()
        };
        let drawn = draw(None, &[3.0, 1.0, 5.0]);
        let (first, second) = (of(&drawn, 0..100), of(&drawn, 200..250));
        assert_eq!(first + second, 10_000);
        assert!((7300..7700).contains(&first), "{first}");
        assert!(
            (1300..1700).contains(&of(&drawn, 0..10)),
            "a dataset's frames are alike"
        );
        let drawn = draw(Some(0.5), &[3.0, 1.0, 5.0]);
        assert!((3600..3900).contains(&of(&drawn, 0..10)));
        assert_eq!(of(&drawn, 50..90), 5000, "only one dataset has failures");
        assert_eq!(draw(None, &[1.0]), draw(None, &[]));
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
