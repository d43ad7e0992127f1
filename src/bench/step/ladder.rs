//! The same step at several sizes: all widths divided, depth, tokens, samples and candidates as they are, so that there
//! are about as many launches.

use crate::config::Config;

/// Narrowest head of SigLIP, and narrowest critic layer.
const LEAST_HEAD: usize = 8;
const LEAST_CRITIC: usize = 8;

/// One size.
#[derive(Clone, Debug)]
pub struct Case {
    /// The configuration's name, what its widths are divided by, and what else is special.
    pub name: String,
    pub config: Config,
}

/// `config` with its widths divided by each of `divisors` (1: as it is), and with each number of `candidates` (none: its
/// own).
pub fn cases(config: &Config, divisors: &[usize], candidates: &[usize]) -> Vec<Case> {
    let mut all = Vec::new();
    for &divisor in divisors {
        let scaled = narrowed(config, divisor);
        let size = match divisor {
            1 => config.name.clone(),
            _ => format!("{} 1/{divisor}", config.name),
        };
        if candidates.is_empty() {
            all.push(Case {
                name: size.clone(),
                config: scaled.clone(),
            });
        }
        for &n in candidates {
            let mut config = scaled.clone();
            config.acrlpd.num_action_samples = n;
            all.push(Case {
                name: format!("{size} N{n}"),
                config,
            });
        }
    }
    all
}

fn narrowed(config: &Config, divisor: usize) -> Config {
    let mut config = config.clone();
    if divisor == 1 {
        return config;
    }
    let dims = config.pi0_dims();
    let even = |width: usize| (width / divisor).next_multiple_of(2).max(2);
    let vision = even(dims.vision.width);
    let over = &mut config.model.dims;
    over.vision_width = Some(vision);
    over.vision_mlp = Some(even(dims.vision.mlp));
    over.vision_heads = Some(heads(vision, dims.vision_heads));
    over.language_width = Some(even(dims.language.width));
    over.language_mlp = Some(even(dims.language.mlp));
    over.expert_width = Some(even(dims.expert.width));
    over.expert_mlp = Some(even(dims.expert.mlp));
    over.head_dim = Some(even(dims.head_dim));
    for width in &mut config.acrlpd.critic_hidden_dims {
        *width = (*width / divisor).max(LEAST_CRITIC);
    }
    config
}

/// The most heads, at most `wanted`, that divide `width` into heads that are not too narrow.
fn heads(width: usize, wanted: usize) -> usize {
    let fits = |&heads: &usize| width.is_multiple_of(heads) && width / heads >= LEAST_HEAD;
    (1..=wanted).rev().find(fits).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Caps;
    use crate::train::plan::plan;

    fn preset() -> Config {
        Config::load("rl_fold_box").expect("a preset")
    }

    #[test]
    fn every_size_is_the_same_step() {
        let config = preset();
        let all = cases(&config, &[1, 4, 16, 64], &[]);
        let plans: Vec<_> = all
            .iter()
            .map(|case| plan(&case.config, Caps::planning(), 8).expect("it is consistent"))
            .collect();
        // Wide and narrow operands have kernels of their own, some of which do two things at once.
        let launches = |p: &crate::train::plan::Plan| p.launches as f64 / plans[0].launches as f64;
        assert!(
            plans.iter().all(|p| (0.9..=1.1).contains(&launches(p))),
            "about as many launches"
        );
        let names: Vec<&str> = all.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(
            names,
            ["rl_fold_box", "rl_fold_box 1/4", "rl_fold_box 1/16", "rl_fold_box 1/64"]
        );
        // Products and their weights go with the square of the width, attention and the table with the width.
        for pair in plans.windows(2) {
            let (work, size) = (
                pair[0].tflop_per_sample / pair[1].tflop_per_sample,
                pair[0].parameters as f64 / pair[1].parameters as f64,
            );
            assert!(
                (3.5..16.5).contains(&work) && (3.5..16.5).contains(&size),
                "{work} {size}"
            );
        }
        assert!(
            (15.0..17.0).contains(&plans[0].tflop_per_sample),
            "{}",
            plans[0].tflop_per_sample
        );
    }

    #[test]
    fn candidates_make_cases_of_their_own() {
        let all = cases(&preset(), &[64], &[4, 32]);
        let told: Vec<_> = all
            .iter()
            .map(|case| (case.name.as_str(), case.config.acrlpd.num_action_samples))
            .collect();
        assert_eq!(told, [("rl_fold_box 1/64 N4", 4), ("rl_fold_box 1/64 N32", 32)]);
    }

    #[test]
    fn heads_divide_the_width() {
        assert_eq!(
            [heads(288, 16), heads(72, 16), heads(18, 16), heads(7, 16)],
            [16, 9, 2, 1]
        );
    }
}
