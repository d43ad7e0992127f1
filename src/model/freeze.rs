//! Which parameters learn, and how far gradients therefore have to travel.
//!
//! What is used as one matrix learns or not as a whole. Parameters that do not learn have no gradients, moments or
//! averages, and nothing is computed for them: backward leaves out their products, and stops where nothing below
//! learns.

use super::dims::{Adapters, Pi0Dims};
use super::params::{ParamTable, Room};
use super::tables::Pi0Units;

/// What a rule speaks of.
#[derive(Clone, Debug, PartialEq)]
enum What {
    Room(Room),
    /// Names that this pattern fits: `*` is any text, `?` any character.
    Name(String),
}

/// Which parameters are held fixed: rules, of which the last one that fits a parameter decides. Without one it learns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Freeze {
    rules: Vec<(What, bool)>,
}

impl Freeze {
    /// Everything learns.
    pub const NOTHING: Freeze = Freeze { rules: Vec::new() };

    /// What adapters are for: the transformer that has them is fixed but for them, its norms and the prompt embedding of
    /// the language stream too, as openpi's filter says; vision and the projections of state, actions and time learn.
    pub fn under(adapters: Adapters) -> Freeze {
        let fixed = |freeze: Freeze, has: bool, names: &str| if has { freeze.names(names) } else { freeze };
        let freeze = fixed(Freeze::NOTHING, adapters.language.is_some(), "*.language_model.*");
        fixed(freeze, adapters.expert.is_some(), "*.gemma_expert.*").names("!*.lora_?")
    }

    /// Holds a room fixed.
    #[must_use]
    pub fn room(mut self, room: Room) -> Freeze {
        self.rules.push((What::Room(room), true));
        self
    }

    /// Holds all parameters fixed whose names fit `pattern`; with `!` in front of it they learn.
    #[must_use]
    pub fn names(mut self, pattern: &str) -> Freeze {
        let (pattern, frozen) = match pattern.strip_prefix('!') {
            Some(pattern) => (pattern, false),
            None => (pattern, true),
        };
        self.rules.push((What::Name(pattern.into()), frozen));
        self
    }

    /// Does a parameter of this room and name learn?
    pub fn learns(&self, room: Room, name: &str) -> bool {
        let fits = |what: &What| match what {
            What::Room(of) => *of == room,
            What::Name(pattern) => fits(pattern, name),
        };
        let last = self.rules.iter().rev().find(|(what, _)| fits(what));
        last.is_none_or(|(_, frozen)| !frozen)
    }

    /// Notes in `table` what learns. A group of which only a part is frozen learns: see [`Freeze::divided`].
    #[must_use]
    pub fn mark(&self, mut table: ParamTable) -> ParamTable {
        for unit in &mut table.units {
            for group in &mut unit.groups {
                group.learns = group.tensors.iter().any(|t| self.learns(unit.room, &t.name));
            }
        }
        table
    }

    /// Two parameters that are used as one matrix, of which only the first learns.
    pub fn divided(&self, table: &ParamTable) -> Option<(String, String)> {
        table.units.iter().find_map(|unit| {
            let learns = |name: &str| self.learns(unit.room, name);
            unit.groups.iter().find_map(|group| {
                let mut names = group.tensors.iter().map(|t| &t.name);
                let learning = names.clone().find(|name| learns(name))?;
                Some((learning.clone(), names.find(|name| !learns(name))?.clone()))
            })
        })
    }

    /// The first pattern that fits no parameter.
    pub fn idle(&self, table: &ParamTable) -> Option<&str> {
        self.rules.iter().find_map(|(what, _)| match what {
            What::Name(pattern) if !table.tensors().any(|t| fits(pattern, &t.name)) => Some(pattern.as_str()),
            _ => None,
        })
    }
}

/// Does `pattern` fit all of `name`?
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // The last star seen, and up to where it reaches: it grows when what follows does not fit.
    let mut star = None;
    while n < name.len() {
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p, n));
            p += 1;
        } else if p < pattern.len() && (pattern[p] == '?' || pattern[p] == name[n]) {
            p += 1;
            n += 1;
        } else if let Some((at, end)) = star {
            star = Some((at, end + 1));
            p = at + 1;
            n = end + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// How far down gradients have to travel: layers are counted from below, and a stack's last norm is the layer above its
/// blocks. `None`: nothing of it learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Lowest part of the vision tower that learns: 0 the patches, 1 + i block i, then its last norm and projection.
    pub vision: Option<usize>,
    /// The prompt embedding learns.
    pub embedding: bool,
    /// Lowest layer of the language stream that learns.
    pub language: Option<usize>,
    /// Lowest layer of the expert that learns.
    pub expert: Option<usize>,
    /// The projection of the state learns.
    pub state: bool,
    /// Any of the projections of state, actions and time learns.
    pub heads: bool,
}

impl Reach {
    /// Everything learns.
    pub const ALL: Reach = Reach {
        vision: Some(0),
        embedding: true,
        language: Some(0),
        expert: Some(0),
        state: true,
        heads: true,
    };

    /// Of a table of these sizes in which [`Freeze::mark`] has noted what learns.
    pub fn of(table: &ParamTable, d: &Pi0Dims) -> Reach {
        let units = Pi0Units::new(d);
        let learns = |unit: usize| table.units[unit].groups.iter().any(|g| g.learns);
        let lowest = |n: usize, unit: &dyn Fn(usize) -> usize| (0..n).find(|i| learns(unit(*i)));
        let heads = &table.units[units.heads()].groups;
        let of_state = |g: &&super::params::Group| g.tensors.iter().any(|t| t.name.starts_with("state_proj."));
        Reach {
            vision: lowest(d.vision_depth + 2, &|i| units.patches() + i),
            embedding: learns(units.embedding()),
            language: lowest(d.depth + 1, &|i| units.language(i)),
            expert: lowest(d.depth + 1, &|i| units.expert(i)),
            state: heads.iter().filter(of_state).any(|g| g.learns),
            heads: heads.iter().any(|g| g.learns),
        }
    }

    /// Does anything of π₀ learn?
    pub fn any(self) -> bool {
        self.tokens() || self.language.is_some() || self.suffix()
    }

    /// Does any part of the expert or the projections around it learn?
    pub fn suffix(self) -> bool {
        self.expert.is_some() || self.heads
    }

    /// Do gradients reach the embedded tokens?
    pub fn tokens(self) -> bool {
        self.vision.is_some() || self.embedding
    }

    /// Do gradients reach the prefix rows of layer `l`, or its parameters?
    pub fn prefix(self, l: usize) -> bool {
        self.tokens() || self.language.is_some_and(|lowest| lowest <= l)
    }

    /// Do gradients reach the state's row in layer `l`? It attends to the prefix, so it has a part in its gradients.
    pub fn state(self, l: usize) -> bool {
        self.state || self.prefix(l) || self.expert.is_some_and(|lowest| lowest <= l)
    }

    /// Do gradients have to come out at the prefix rows below layer `l`?
    pub fn below_prefix(self, l: usize) -> bool {
        match l {
            0 => self.tokens(),
            _ => self.prefix(l - 1),
        }
    }

    /// Do gradients have to come out at the state's row below layer `l`?
    pub fn below_state(self, l: usize) -> bool {
        match l {
            0 => self.state,
            _ => self.state(l - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tables;

    #[test]
    fn patterns() {
        for (pattern, name, fit) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "a.b", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*norm*", "model.layers.3.input_layernorm.weight", true),
            ("*norm", "model.norm.weight", false),
            ("*.1?.mlp.*", "layers.12.mlp.up", true),
            ("*.1?.mlp.*", "layers.1.mlp.up", false),
            ("a*b*c", "abbc", true),
            ("a*b*c", "acb", false),
            ("*ab", "aab", true),
            ("π*", "π₀", true),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
    }

    #[test]
    fn the_last_rule_that_fits_decides() {
        let freeze = Freeze::NOTHING.room(Room::Vision).names("*").names("!*self_attn*");
        assert!(freeze.learns(Room::Vision, "x.self_attn.q"));
        assert!(!freeze.learns(Room::Expert, "x.mlp.up"));
        assert!(Freeze::NOTHING.learns(Room::Expert, "x"));
        let freeze = Freeze::NOTHING.names("!*norm*").room(Room::Language);
        assert!(!freeze.learns(Room::Language, "norm.weight"));
    }

    #[test]
    fn how_far_gradients_travel() {
        let d = Pi0Dims::full(50, false);
        let reach = |freeze: Freeze| Reach::of(&freeze.mark(tables::pi0(&d)), &d);
        assert_eq!(reach(Freeze::NOTHING), Reach::ALL);
        let attention = reach(
            Freeze::NOTHING
                .names("*")
                .names("!*language_model.layers.1?.self_attn*"),
        );
        assert_eq!(
            attention,
            Reach {
                vision: None,
                embedding: false,
                language: Some(10),
                expert: None,
                state: false,
                heads: false,
            }
        );
        assert!(attention.prefix(10) && !attention.prefix(9) && !attention.below_prefix(10));
        assert!(attention.state(10) && !attention.state(9) && !attention.suffix() && attention.any());
        assert!(!reach(Freeze::NOTHING.names("*")).any());
        let table = tables::pi0(&d);
        let divided = Freeze::NOTHING
            .names("*language_model.layers.0.self_attn.k_proj*")
            .divided(&table);
        let (learns, frozen) = divided.unwrap();
        assert!(learns.ends_with("q_proj.weight") && frozen.ends_with("k_proj.weight"));
        assert_eq!(
            Freeze::NOTHING.names("*_proj*").names("nothing").idle(&table),
            Some("nothing")
        );
    }
}
