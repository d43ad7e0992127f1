//! What would make a step fit: settings that need less memory, tried by planning them.
//!
//! A row of `CHANGES` is one setting with its values, the cheapest in time first. States and activations lie in arenas of
//! their own and do not depend on each other's settings, so each side is planned by itself; sums say which combination is
//! the fastest that fits, and that one is planned as a whole. What changes the numbers is tried when nothing else fits.

use super::{Plan, plan};
use crate::config::Config;
use crate::gpu::Caps;
use crate::train::error::Result;
use crate::train::recipe;

/// Rates that alternatives are ranked by: an H100 at half of its matrix rate, with its memory and its link to the host.
const FLOPS_PER_S: f64 = 400e12;
const BYTES_PER_S: f64 = 3e12;
const LINK_BYTES_PER_S: f64 = 50e9;

/// Which memory a setting changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    States,
    Activations,
}

/// Values of a setting.
#[derive(Clone, Copy, Debug)]
enum Values {
    /// These, from the fastest to the one that needs least.
    Listed(&'static [&'static str]),
    /// Numbers of micro-batches: those that divide the batch.
    MicroBatches,
}

/// A setting that trades time for memory, and trains the same.
struct Change {
    key: &'static str,
    values: Values,
    side: Side,
    /// Values that change the numbers a little; without them nothing but time and memory differs.
    inexact: &'static [&'static str],
}

const CHANGES: [Change; 4] = [
    Change {
        key: ACCUMULATION,
        values: Values::MicroBatches,
        side: Side::Activations,
        inexact: &[],
    },
    Change {
        key: "memory.remat",
        values: Values::Listed(&["none", "mlp", "full"]),
        side: Side::Activations,
        inexact: &[],
    },
    Change {
        key: "memory.ema_on_host",
        values: Values::Listed(&["false", "true"]),
        side: Side::States,
        inexact: &[],
    },
    Change {
        key: "memory.moments",
        values: Values::Listed(&["float32", "blockwise8"]),
        side: Side::States,
        inexact: &["blockwise8"],
    },
];

/// Settings that train less, for where nothing else fits: from what leaves most of the model to learn.
pub(super) const LESS: [&[(&str, &str)]; 3] = [&[("acrlpd.freeze", "[\"vision\"]")], LORA, EXPERT];

/// Adapters on both streams, as openpi has them.
pub const LORA: &[(&str, &str)] = &[
    ("model.paligemma_variant", "gemma_2b_lora"),
    ("model.action_expert_variant", "gemma_300m_lora"),
];

/// Action expert and critics alone.
pub const EXPERT: &[(&str, &str)] = &[("acrlpd.freeze", "[\"vision\", \"language\"]")];

const ACCUMULATION: &str = "acrlpd.gradient_accumulation_steps";

/// A key and its value, as `--set` takes them.
pub type Setting = (&'static str, String);

/// Settings on top of a configuration, and what they cost.
#[derive(Clone, Debug)]
pub struct Alternative {
    pub settings: Vec<Setting>,
    pub config: Config,
    pub reserved_bytes: u64,
    pub tflop_per_sample: f64,
    /// By a roofline of fixed rates: for comparing.
    pub seconds_per_sample: f64,
}

/// Which values of the settings are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// Those that need less memory than the configured ones.
    Cheaper,
    /// All.
    All,
}

/// A device that stands for one with `memory` bytes in plans.
pub fn planning(memory: Option<u64>) -> Caps {
    let caps = Caps::planning();
    let pool_page_bytes = memory.map_or(caps.pool_page_bytes, |bytes| bytes / 4);
    Caps {
        memory_bytes: memory,
        pool_page_bytes,
        ..caps
    }
}

/// The least time a step takes at the rates of this file, for each sample.
pub(super) fn seconds(config: &Config, plan: &Plan) -> f64 {
    let of = |p: &super::Phase| (p.tflop * 1e12 / FLOPS_PER_S).max(p.gigabytes * 1e9 / BYTES_PER_S);
    // An average on the host reads the weights that learn, as many bytes as their gradients have.
    let gradients = plan
        .map
        .groups
        .iter()
        .filter(|g| g.name == "π₀ gradients")
        .map(|g| g.bytes);
    let read = match config.acrlpd.use_ema && config.ema_on_host() {
        true => gradients.sum::<u64>(),
        false => 0,
    };
    (plan.phases.iter().map(of).sum::<f64>() + read as f64 / LINK_BYTES_PER_S) / plan.samples as f64
}

/// Does a setting change the numbers?
fn inexact((key, value): &Setting) -> bool {
    let of_key = CHANGES.iter().filter(|c| c.key == *key);
    of_key.flat_map(|c| c.inexact).any(|v| v == value)
}

/// Searches alternatives of one configuration on one device.
pub struct Search<'a> {
    pub config: &'a Config,
    pub caps: &'a Caps,
    /// Of every prompt, where work is counted.
    pub prompt_tokens: usize,
}

/// Alternatives of each side by itself.
pub struct Sides {
    /// The configuration as it is.
    base: Alternative,
    states: Vec<Alternative>,
    activations: Vec<Alternative>,
}

impl Sides {
    /// The least that any combination needs.
    pub fn least_bytes(&self) -> u64 {
        let least = |side: &[Alternative]| side.iter().map(|a| a.reserved_bytes).min().unwrap_or(0);
        (least(&self.states) + least(&self.activations)).saturating_sub(self.base.reserved_bytes)
    }
}

/// How far the sum of both sides may be off: pages that uploads lie in differ a little between devices.
const SLACK: f64 = 1.01;

impl Search<'_> {
    /// Plans every combination of the settings of each side.
    ///
    /// # Errors
    /// Settings that cannot be planned.
    pub fn sides(&self, tried: Tried) -> Result<Sides> {
        let base = self.planned(Vec::new(), usize::MAX)?;
        Ok(Sides {
            states: self.side(Side::States, tried, &base)?,
            activations: self.side(Side::Activations, tried, &base)?,
            base,
        })
    }

    /// The fastest combination of both sides that needs at most `room` bytes; exact ones first.
    ///
    /// # Errors
    /// Settings that cannot be planned.
    pub fn pick(&self, sides: &Sides, room: u64) -> Result<Option<Alternative>> {
        let base = &sides.base;
        // What both sides together come to, by differences from the base.
        let mut pairs: Vec<(bool, f64, Vec<Setting>)> = Vec::new();
        for s in &sides.states {
            for a in &sides.activations {
                let bytes = (s.reserved_bytes + a.reserved_bytes).saturating_sub(base.reserved_bytes);
                let time = s.seconds_per_sample + a.seconds_per_sample - base.seconds_per_sample;
                if bytes as f64 <= SLACK * room as f64 {
                    let settings = [&s.settings[..], &a.settings].concat();
                    pairs.push((settings.iter().any(inexact), time, settings));
                }
            }
        }
        pairs.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        for (.., settings) in pairs {
            let whole = self.planned(settings, self.prompt_tokens)?;
            if whole.reserved_bytes <= room {
                return Ok(Some(whole));
            }
        }
        Ok(None)
    }

    /// Plans every combination of the settings of one side.
    fn side(&self, side: Side, tried: Tried, base: &Alternative) -> Result<Vec<Alternative>> {
        let mut combinations: Vec<Vec<Setting>> = vec![Vec::new()];
        for change in CHANGES.iter().filter(|c| c.side == side) {
            let values = self.values(change, tried);
            let with = |value: &String| -> Vec<Vec<Setting>> {
                let on_top = |c: &Vec<Setting>| [&c[..], &[(change.key, value.clone())]].concat();
                combinations.iter().map(on_top).collect()
            };
            let more: Vec<Vec<Setting>> = values.iter().flat_map(with).collect();
            combinations.extend(more);
        }
        let planned = |settings: &Vec<Setting>| match settings.is_empty() {
            true => Ok(base.clone()),
            // One length of prompts for work and memory: half of the planning.
            false => self.planned(settings.clone(), usize::MAX),
        };
        // Plans are independent of each other: every core makes some.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let part = combinations.len().div_ceil(cores).max(1);
        std::thread::scope(|scope| {
            let work = |part: &'_ [Vec<Setting>]| part.iter().map(planned).collect::<Vec<_>>();
            let threads: Vec<_> = combinations
                .chunks(part)
                .map(|part| scope.spawn(move || work(part)))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<Result<Alternative>>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().flat_map(join).collect()
        })
    }

    /// Values of a setting that differ from the configured one.
    fn values(&self, change: &Change, tried: Tried) -> Vec<String> {
        match change.values {
            Values::MicroBatches => {
                let now = self.config.accumulation();
                let fits = |&k: &usize| self.config.batch_size.is_multiple_of(k) && k != now;
                let chain = self.config.acrlpd.chain_batches.max(1);
                let whole = |&k: &usize| (self.config.batch_size / k).is_multiple_of(chain);
                let wanted = |&k: &usize| tried == Tried::All || k > now;
                let all = (1..=self.config.batch_size).filter(fits).filter(whole).filter(wanted);
                all.map(|k| k.to_string()).collect()
            }
            Values::Listed(values) => {
                let with = |value: &str| {
                    let mut config = self.config.clone();
                    config.set(change.key, value).ok().map(|()| config)
                };
                // An unset key may stand for one of the values: what the step makes of it counts.
                let step = recipe::step_config(self.config);
                let same = |config: Config| recipe::step_config(&config) == step;
                let now = values.iter().position(|v| with(v).is_some_and(same));
                let first = now.map_or(0, |now| if tried == Tried::All { 0 } else { now + 1 });
                let others = values
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| *i >= first && Some(*i) != now);
                others.map(|(_, v)| (*v).to_owned()).collect()
            }
        }
    }

    /// Plans the configuration with `settings` on top.
    fn planned(&self, settings: Vec<Setting>, prompt_tokens: usize) -> Result<Alternative> {
        let mut config = self.config.clone();
        for (key, value) in &settings {
            config.set(key, value)?;
            if *key == ACCUMULATION {
                config.acrlpd.enable_gradient_accumulation = true;
            }
        }
        config.validate()?;
        let plan = plan(&config, self.caps.clone(), prompt_tokens)?;
        Ok(Alternative {
            settings,
            reserved_bytes: plan.reserved_bytes,
            tflop_per_sample: plan.tflop_per_sample,
            seconds_per_sample: seconds(&config, &plan),
            config,
        })
    }
}

/// Settings of a table of this program.
pub fn owned(settings: &[(&'static str, &str)]) -> Vec<Setting> {
    settings
        .iter()
        .map(|(key, value)| (*key, (*value).to_owned()))
        .collect()
}

/// Settings as flags.
pub fn flags(settings: &[Setting]) -> String {
    let flag = |(key, value): &Setting| match value.contains([' ', '"', '[']) {
        true => format!("--set '{key}={value}'"),
        false => format!("--set {key}={value}"),
    };
    settings.iter().map(flag).collect::<Vec<_>>().join(" ")
}
