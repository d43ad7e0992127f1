//! Batches of random numbers in which nothing can be left out: every camera, every sample cloned, valid and
//! bootstrapping. What a step costs must not depend on luck, and zeros would cost a GPU less than numbers do.

use crate::config::Config;
use crate::rng::Key;
use crate::step::{MicroBatch, Observations, Pictures};
use crate::train::plan::fullest;

/// The micro-batches of one optimizer step of `config`, with prompts of `tokens`.
pub fn random_parts(config: &Config, tokens: usize) -> Vec<MicroBatch> {
    let key = Key::new(config.seed);
    (0..config.accumulation() as u64)
        .map(|i| random_part(config, tokens, key.fold(i)))
        .collect()
}

fn random_part(config: &Config, tokens: usize, key: Key) -> MicroBatch {
    let dims = config.pi0_dims();
    let mut part = fullest(config, tokens.min(dims.max_token_len), 1);
    let vocab = dims.vocab as u64;
    observations(&mut part.current, vocab, key.fold(1));
    observations(&mut part.next, vocab, key.fold(2));
    // The task stays the same within an episode.
    part.next.masks.prompts.clone_from(&part.current.masks.prompts);
    key.fold(3).normals(&mut part.actions);
    key.fold(4).normals(&mut part.reward);
    key.fold(5).normals(&mut part.noise.candidates);
    key.fold(6).normals(&mut part.noise.next);
    key.fold(7).normals(&mut part.noise.bc);
    let times = key.fold(8);
    for (i, time) in part.noise.bc_time.iter_mut().enumerate() {
        *time = times.range(i as u64, 0.05, 1.0);
    }
    part
}

/// Tokens that random prompts are made of: a dataset's instructions share most of their words.
const WORDS: u64 = 256;

fn observations(all: &mut Observations, vocab: u64, key: Key) {
    key.fold(1).normals(&mut all.state);
    let ids = key.fold(2);
    for (i, id) in all.masks.prompts.iter_mut().flatten().enumerate() {
        *id = ids.below(i as u64, vocab.min(WORDS)) as _;
    }
    let pixels = key.fold(3);
    if let Pictures::Bytes { bytes, .. } = &mut all.pictures {
        for (i, eight) in bytes.chunks_mut(8).enumerate() {
            let [a, b] = pixels.bits(i as u64);
            let random = u64::from(a) << 32 | u64::from(b);
            eight.copy_from_slice(&random.to_le_bytes()[..eight.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::step::cases;

    #[test]
    fn everything_is_there_and_nothing_is_zero() {
        let config = &cases(&Config::load("rl_fold_box").expect("a preset"), &[64], &[])[0].config;
        let parts = random_parts(config, 8);
        assert_eq!(parts.len(), config.accumulation());
        let samples: usize = parts.iter().map(MicroBatch::len).sum();
        assert_eq!(samples, config.batch_size);
        for part in &parts {
            assert!(part.positive.iter().all(|p| *p) && part.discount.iter().all(|d| *d != 0.0));
            let noise = &part.noise;
            for values in [
                &part.actions,
                &noise.candidates,
                &noise.next,
                &noise.bc,
                &part.current.state,
            ] {
                let (n, mean) = (values.len() as f32, values.iter().sum::<f32>() / values.len() as f32);
                assert!(
                    values.iter().all(|v| *v != 0.0) && mean.abs() < 6.0 / n.sqrt(),
                    "{mean}"
                );
            }
        }
        let bytes = |part: &MicroBatch| match &part.current.pictures {
            Pictures::Bytes { bytes, .. } => bytes.clone(),
            Pictures::Floats(_) => Vec::new(),
        };
        let (one, other) = (bytes(&parts[0]), bytes(&parts[1]));
        assert!(one != other && one.iter().any(|b| *b > 250) && one.iter().any(|b| *b < 5));
        assert_eq!(bytes(&random_parts(config, 8)[0]), one, "the same again");
    }
}
