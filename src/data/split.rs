//! Which episodes are held out for evaluation.

use super::{DataError, StartFrames};
use crate::rng::{Key, Stream};

/// Episodes for training and episodes held out from it. Both lists ascend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpisodeSplit {
    pub train: Vec<usize>,
    pub eval: Vec<usize>,
}

impl EpisodeSplit {
    /// Holds out `round(episodes * eval_fraction)` of the episodes, chosen by the seed alone: at least one if the
    /// fraction is positive, and never all.
    ///
    /// # Errors
    /// [`DataError::Spec`] if the fraction is outside `[0, 1)`, or if a single episode should be divided.
    pub fn new(seed: u64, episodes: usize, eval_fraction: f64) -> Result<Self, DataError> {
        let wrong = |reason: String| DataError::Spec {
            field: "eval_fraction",
            reason,
        };
        if !(0.0..1.0).contains(&eval_fraction) {
            return Err(wrong(format!(
                "{eval_fraction} is not a share of at least 0 and below 1"
            )));
        }
        if eval_fraction == 0.0 {
            return Ok(EpisodeSplit {
                train: (0..episodes).collect(),
                eval: Vec::new(),
            });
        }
        if episodes < 2 {
            return Err(wrong(format!("{episodes} episodes cannot be divided; set it to 0")));
        }
        let held_out = ((episodes as f64 * eval_fraction).round() as usize).clamp(1, episodes - 1);
        // Steps never reach this sub-space of the sampler's key.
        let key = Key::stream(seed, Stream::Sampler).fold(u64::MAX);
        let mut order: Vec<usize> = (0..episodes).collect();
        order.sort_by_key(|episode| (key.bits(*episode as u64), *episode));
        let mut train = order.split_off(held_out);
        train.sort_unstable();
        order.sort_unstable();
        Ok(EpisodeSplit { train, eval: order })
    }

    /// Those of `starts` that belong to `episodes` (one of the two lists).
    pub fn select(starts: &[StartFrames], episodes: &[usize]) -> Vec<StartFrames> {
        starts
            .iter()
            .filter(|s| episodes.binary_search(&s.episode).is_ok())
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_split_is_disjoint_complete_and_seeded() {
        let split = EpisodeSplit::new(4, 100, 0.1).unwrap();
        assert_eq!((split.train.len(), split.eval.len()), (90, 10));
        let mut all = [split.train.clone(), split.eval.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert_eq!(split, EpisodeSplit::new(4, 100, 0.1).unwrap());
        assert_ne!(split, EpisodeSplit::new(5, 100, 0.1).unwrap());
        assert_eq!(EpisodeSplit::new(4, 3, 0.01).unwrap().eval.len(), 1);
        assert_eq!(EpisodeSplit::new(4, 3, 0.99).unwrap().train.len(), 1);
        assert_eq!(EpisodeSplit::new(4, 3, 0.0).unwrap().train, [0, 1, 2]);
        let start = |episode| StartFrames {
            episode,
            first: 10 * episode,
            count: 5,
            positive: true,
            source: 0,
        };
        let train = EpisodeSplit::select(&[0, 1, 3].map(start), &[0, 2, 3]);
        assert_eq!(train.iter().map(|s| s.episode).collect::<Vec<_>>(), [0, 3]);
    }

    #[test]
    fn impossible_fractions_are_errors() {
        for fraction in [-0.1, 1.0, f64::NAN] {
            assert!(EpisodeSplit::new(1, 10, fraction).is_err());
        }
        assert!(EpisodeSplit::new(1, 1, 0.5).is_err());
    }
}
