//! What to do about a step that does not fit, as a sentence.

use std::fmt;

use super::Plan;
use super::fit::{Alternative, LESS, Search, Tried, flags, owned, seconds};
use crate::config::{Config, PaligemmaVariant};
use crate::gpu::Caps;
use crate::train::error::Result;

/// What to do about a step that does not fit.
#[derive(Clone, Debug)]
pub enum Advice {
    /// The cheapest settings that make it fit.
    Set {
        alternative: Box<Alternative>,
        /// Of the step that does not fit.
        tflop_per_sample: f64,
        seconds_per_sample: f64,
        /// It trains fewer parameters.
        less: bool,
    },
    /// Nothing does; the least that it can need.
    Nothing { least_bytes: u64 },
}

/// Looks for what makes a step fit into `room` bytes; `planned` is its plan on `caps`.
///
/// # Errors
/// Settings that cannot be planned.
pub fn advice(config: &Config, planned: &Plan, caps: &Caps, prompt_tokens: usize, room: u64) -> Result<Advice> {
    // A closure would tie all configurations to one lifetime.
    fn search<'a>(config: &'a Config, caps: &'a Caps, prompt_tokens: usize) -> Search<'a> {
        Search {
            config,
            caps,
            prompt_tokens,
        }
    }
    let set = |alternative, less| Advice::Set {
        alternative: Box::new(alternative),
        tflop_per_sample: planned.tflop_per_sample,
        seconds_per_sample: seconds(config, planned),
        less,
    };
    let same = search(config, caps, prompt_tokens);
    let sides = same.sides(Tried::Cheaper)?;
    if let Some(found) = same.pick(&sides, room)? {
        return Ok(set(found, false));
    }
    let mut least_bytes = sides.least_bytes();
    // What is frozen already is a choice, and other sizes have no adapters by name.
    let choose = config.acrlpd.freeze.is_empty() && config.model.paligemma_variant == PaligemmaVariant::Gemma2b;
    for settings in LESS.into_iter().filter(|_| choose) {
        let mut smaller = config.clone();
        for (key, value) in settings {
            smaller.set(key, value)?;
        }
        let less = search(&smaller, caps, prompt_tokens);
        let sides = less.sides(Tried::Cheaper)?;
        if let Some(mut found) = less.pick(&sides, room)? {
            found.settings = [owned(settings), found.settings].concat();
            return Ok(set(found, true));
        }
        least_bytes = least_bytes.min(sides.least_bytes());
    }
    Ok(Advice::Nothing { least_bytes })
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
        match self {
            Advice::Set {
                alternative,
                tflop_per_sample,
                seconds_per_sample,
                less,
            } => {
                let percent = |new: f64, old: f64| format!("{:+.1} %", 100.0 * (new / old - 1.0));
                let what = match less {
                    false => "the cheapest change that makes it fit is",
                    true => "all that fits trains less:",
                };
                write!(
                    f,
                    "{what} {}, with which it needs {} ({} FLOPs a sample, {} time by a roofline)",
                    flags(&alternative.settings),
                    gigabytes(alternative.reserved_bytes),
                    percent(alternative.tflop_per_sample, *tflop_per_sample),
                    percent(alternative.seconds_per_sample, *seconds_per_sample),
                )
            }
            Advice::Nothing { least_bytes } => write!(
                f,
                "no setting makes it fit: the least it can need is {}",
                gigabytes(*least_bytes)
            ),
        }
    }
}
