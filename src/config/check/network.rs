//! `[model]`, and what of it is held fixed.

use super::rules::Rules;
use crate::config::choices::{ExpertVariant, Features, PaligemmaVariant, Part};
use crate::config::range::Range;
use crate::config::schema::Config;
use crate::config::source::is_address;
use crate::model::dims::PATCH;
use crate::model::freeze::{Freeze, Reach};
use crate::model::tables;

impl Config {
    pub(super) fn network(&self, r: &mut Rules) {
        let (m, dims) = (&self.model, self.pi0_dims());
        r.forbid(
            m.image_size == 0 || !m.image_size.is_multiple_of(PATCH),
            "model.image_size",
            || {
                let fix = "use 224 (π₀'s), or another multiple of 14";
                format!("{} pixels do not divide into patches of {PATCH}; {fix}", m.image_size)
            },
        );
        r.ranges.push(("model.image_size".into(), Range::MultipleOf(PATCH)));
        let address = m
            .weights
            .as_ref()
            .is_some_and(|path| is_address(&path.to_string_lossy()));
        r.forbid(address, "model.weights", || {
            "it is an address; download the weights and give their folder, e.g. with --set model.weights=DIR".into()
        });
        r.at_least_one("model.action_horizon", m.action_horizon);
        r.at_least_one("model.action_dim", m.action_dim);
        r.at_least_one("model.max_token_len", dims.max_token_len);
        let (vlm, expert) = (m.paligemma_variant, m.action_expert_variant);
        let tiny = matches!(vlm, PaligemmaVariant::Tiny | PaligemmaVariant::TinyLora);
        let mixed = tiny != matches!(expert, ExpertVariant::Tiny | ExpertVariant::TinyLora);
        r.forbid(mixed, "model.action_expert_variant", || {
            let why = format!("which has other layers than model.paligemma_variant `{vlm}`");
            format!("`{expert}` cannot be used, {why}; make both `tiny` or neither")
        });
        self.adapters(r);
        for (key, size) in m.dims.sizes() {
            r.at_least_one(key, size.unwrap_or(1));
        }
        let repeated = dims
            .cameras
            .iter()
            .enumerate()
            .any(|(i, camera)| dims.cameras[..i].contains(camera));
        r.forbid(repeated, "model.dims.cameras", || {
            "it names a camera twice; keep one".into()
        });
        let problem = dims.problem();
        r.forbid(problem.is_some(), "model.dims", || problem.unwrap_or_default());
    }

    fn adapters(&self, r: &mut Rules) {
        let (m, has) = (&self.model, self.pi0_dims().lora);
        let stacks = [
            (
                "language",
                m.lora.language_rank,
                m.lora.language_alpha,
                has.language.is_some(),
                "paligemma_variant",
            ),
            (
                "expert",
                m.lora.expert_rank,
                m.lora.expert_alpha,
                has.expert.is_some(),
                "action_expert_variant",
            ),
        ];
        for (stack, rank, alpha, has, variant) in stacks {
            let (of_rank, of_alpha) = (format!("model.lora.{stack}_rank"), format!("model.lora.{stack}_alpha"));
            r.at_least_one(&of_rank, rank.unwrap_or(1));
            r.positive(of_alpha.as_str(), alpha.unwrap_or(1.0));
            for (key, given) in [(of_rank, rank.is_some()), (of_alpha, alpha.is_some())] {
                r.forbid(given && !has, key, || {
                    format!(
                        "there are no adapters; set model.{variant} to a variant that ends in _lora, or leave it out"
                    )
                });
            }
        }
    }

    /// What is held fixed.
    pub(super) fn frozen(&self, r: &mut Rules) {
        let (a, freeze) = (&self.acrlpd, self.freeze());
        let repeated = a
            .freeze
            .iter()
            .enumerate()
            .find(|(i, part)| a.freeze[..*i].contains(part));
        r.forbid(repeated.is_some(), "acrlpd.freeze", || {
            let part = repeated.map_or(Part::Vision, |(_, part)| *part);
            format!("it names `{part}` twice; keep one")
        });
        let dims = self.pi0_dims();
        if dims.problem().is_some() {
            return; // Another rule says so, and there are no names to compare with.
        }
        let table = tables::pi0(&dims);
        let filters = a
            .freeze_filter
            .iter()
            .fold(Freeze::NOTHING, |all, pattern| all.names(pattern));
        let idle = filters.idle(&table).map(String::from);
        r.forbid(idle.is_some(), "acrlpd.freeze_filter", || {
            let pattern = idle.unwrap_or_default();
            format!("no parameter has a name like `{pattern}`; * stands for any text, as in \"*.self_attn.*\"")
        });
        let divided = freeze.divided(&table);
        r.forbid(divided.is_some(), "acrlpd.freeze_filter", || {
            let (learns, frozen) = divided.unwrap_or_default();
            format!("`{frozen}` and `{learns}` are one matrix here, of which it freezes a part; name both or neither")
        });
        let reach = Reach::of(&freeze.mark(table), &dims);
        let fixed = match a.features {
            Features::Embedding => !reach.tokens(),
            Features::Llm => !reach.prefix(dims.depth),
        };
        r.forbid(a.feature_grad && fixed, "acrlpd.feature_grad", || {
            let why = "it trains vision and prompt embedding through the critics' features";
            format!("{why}, but acrlpd.freeze holds both fixed; set it to false, or thaw one")
        });
    }
}
