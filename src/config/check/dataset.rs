//! `[data]`.

use super::rules::Rules;
use crate::config::names::nearest_of;
use crate::config::range::Range;
use crate::config::schema::Config;

impl Config {
    pub(super) fn dataset(&self, r: &mut Rules) {
        let (d, cameras, real) = (&self.data, self.pi0_dims().cameras, self.qchunking.action_dim);
        let list = || cameras.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ");
        for name in d.cameras.keys() {
            r.forbid(!cameras.contains(name), "data.cameras", || {
                match nearest_of(name, cameras.iter().map(String::as_str)) {
                    Some(near) => format!("the model has no camera `{name}`; did you mean `{near}`?"),
                    None => format!("the model has no camera `{name}`; it has {}", list()),
                }
            });
        }
        r.forbid(d.cameras.is_empty(), "data.cameras", || {
            format!(
                "the model would see nothing; give the dataset feature of at least one of {}",
                list()
            )
        });
        let blank = d.default_prompt.as_ref().is_some_and(|text| text.trim().is_empty());
        r.forbid(blank, "data.default_prompt", || {
            "it is empty; write what the robot shall do, or leave it out and set data.prompt_from_task = true".into()
        });
        r.forbid(
            !d.prompt_from_task && d.default_prompt.is_none(),
            "data.default_prompt",
            || "there is no prompt; give one, or set data.prompt_from_task = true".into(),
        );
        for (i, transform) in d.transforms.iter().enumerate() {
            let (name, width) = (transform.name(), transform.width().unwrap_or(real));
            r.forbid(width != real, "data.transforms", || {
                format!("`{name}` is for {width} coordinates, but qchunking.action_dim is {real}; take it out")
            });
            r.forbid(d.transforms[..i].contains(transform), "data.transforms", || {
                format!("it names `{name}` twice; keep one")
            });
        }
        if let Some(runs) = &d.delta_mask {
            let width = runs.iter().fold(0u64, |sum, n| sum.saturating_add(n.unsigned_abs()));
            r.forbid(width > real as u64, "data.delta_mask", || {
                format!("it speaks of {width} coordinates, but qchunking.action_dim is {real}; shorten it")
            });
        }
        for (key, parts) in [("data.state_key", &d.state_key), ("data.action_key", &d.action_key)] {
            r.forbid(
                parts.0.is_empty() || parts.0.iter().any(|p| p.feature.is_empty()),
                key,
                || "it must name a feature of the dataset".into(),
            );
        }
        r.ranges.push(("data.mix_weights".into(), Range::NotNegative));
        let (weights, datasets) = (d.mix_weights.len(), 1 + d.mix.len());
        r.forbid(weights > 0 && weights != datasets, "data.mix_weights", || {
            format!("it lists {weights} weights for {datasets} datasets; give one each, that of data.path first")
        });
        let wrong = d.mix_weights.iter().find(|w| !Range::NotNegative.holds(**w));
        r.forbid(wrong.is_some(), "data.mix_weights", || {
            format!("{} is {}", wrong.unwrap_or(&0.0), Range::NotNegative.complaint())
        });
        r.forbid(
            weights > 0 && d.mix_weights.iter().sum::<f64>() == 0.0,
            "data.mix_weights",
            || "all weights are 0; give one above 0".into(),
        );
        r.forbid(d.mix.iter().any(String::is_empty), "data.mix", || {
            "it lists an empty path; name a dataset or leave it out".into()
        });
        r.at_least_one("data.loader_threads", d.loader_threads);
        r.at_least_one("data.queue_depth", d.queue_depth);
        r.below_one(
            "data.eval_fraction",
            d.eval_fraction,
            "some episodes must remain to train on",
        );
        r.forbid(
            self.eval_interval > 0 && d.eval_fraction == 0.0,
            "data.eval_fraction",
            || {
                "with 0 no episode is left to evaluate on; set eval_interval = 0, or hold out a share of the episodes"
                    .into()
            },
        );
    }
}
