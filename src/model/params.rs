//! Parameters: names and shapes.
//!
//! A [`ParamTable`] lists *units* (one transformer block, the embedding table, …). A unit is a list of *groups*: runs
//! of tensors that are used as one matrix (`q | k | v`, `gate | up`). A [`Placement`] gives every group a range of
//! flat pages, the same in weights, gradients, moments and averages, so that optimizer, clip, averaging and
//! checkpoints work on flat memory and know nothing of layers.

pub use super::lookup::{LookedUp, Touched};
pub use super::placement::{Placement, Special};
pub use super::store::{ParamStore, Scope};

/// Which part of the system a unit belongs to: for freezing, and for norms in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Room {
    /// SigLIP and the projection of its tokens.
    Vision,
    /// Prompt embedding and language layers.
    Language,
    /// Action expert and action heads.
    Expert,
    /// Critic ensemble.
    Critic,
}

impl Room {
    /// Every room; a room's place here is its number.
    pub const ALL: [Room; 4] = [Room::Vision, Room::Language, Room::Expert, Room::Critic];
    /// Those of π₀.
    pub const PI0: [Room; 3] = [Room::Vision, Room::Language, Room::Expert];

    /// Name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Room::Vision => "vision",
            Room::Language => "language",
            Room::Expert => "expert",
            Room::Critic => "critic",
        }
    }
}

/// How a tensor starts when there are no weights to load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Zeros,
    Ones,
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform in ± sqrt(3 / fan_in): variance 1 / fan_in.
    LecunUniform {
        fan_in: usize,
    },
}

/// One named tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamTensor {
    /// Name in an openpi PyTorch checkpoint.
    pub name: String,
    pub shape: Vec<usize>,
    pub init: Init,
}

impl ParamTensor {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// No elements?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Tensors that lie next to each other and are used as one `[rows, cols]` matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub tensors: Vec<ParamTensor>,
    /// Shape of the whole.
    pub shape: Vec<usize>,
    /// Does it change in training? [`Freeze`](super::freeze::Freeze) says so.
    pub learns: bool,
}

impl Group {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// No elements?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One block of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    pub name: String,
    pub room: Room,
    pub groups: Vec<Group>,
}

impl Unit {
    /// An empty unit.
    pub fn new(name: impl Into<String>, room: Room) -> Unit {
        Unit {
            name: name.into(),
            room,
            groups: Vec::new(),
        }
    }

    /// Adds a group of one tensor.
    #[must_use]
    pub fn one(mut self, name: impl Into<String>, shape: &[usize], init: Init) -> Unit {
        let tensor = ParamTensor {
            name: name.into(),
            shape: shape.to_vec(),
            init,
        };
        self.groups.push(Group {
            shape: shape.to_vec(),
            tensors: vec![tensor],
            learns: true,
        });
        self
    }

    /// Adds a group of matrices (or vectors) stacked along their first axis.
    #[must_use]
    pub fn stacked(mut self, parts: &[(String, &[usize])], init: Init) -> Unit {
        let mut shape = parts[0].1.to_vec();
        shape[0] = parts.iter().map(|p| p.1[0]).sum();
        let tensors = parts
            .iter()
            .map(|(name, shape)| ParamTensor {
                name: name.clone(),
                shape: shape.to_vec(),
                init,
            })
            .collect();
        self.groups.push(Group {
            shape,
            tensors,
            learns: true,
        });
        self
    }

    /// Number of elements, without padding.
    pub fn len(&self) -> usize {
        self.groups.iter().map(Group::len).sum()
    }

    /// No elements?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// All parameters of a network.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ParamTable {
    pub units: Vec<Unit>,
}

impl ParamTable {
    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.units.iter().map(Unit::len).sum()
    }

    /// No parameters?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every tensor, in order.
    pub fn tensors(&self) -> impl Iterator<Item = &ParamTensor> {
        self.units.iter().flat_map(|u| &u.groups).flat_map(|g| &g.tensors)
    }
}
