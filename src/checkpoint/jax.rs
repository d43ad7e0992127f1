//! From the parameter tree of the JAX model to the tensors of the PyTorch model: names and layouts.
//!
//! JAX stacks the layers of a transformer in one array, keeps matrices as `[in, out]` and gives heads an axis of their
//! own; here every layer has its tensors, and matrices are `[out, in]` with the heads in `out` (of the output
//! projection: in `in`).

mod layout;
mod table;

use std::ops::Range;

pub use layout::Layout;
use table::{GROUPS, Stack};

/// A tensor as it lies in an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Rows (indices of the first axis) of the array to read.
    pub rows: Range<usize>,
    /// Elements of these rows that belong to the tensor.
    pub elements: Range<usize>,
    /// Shape of these elements.
    pub part: Vec<usize>,
    /// Shape of the tensor.
    pub shape: Vec<usize>,
    pub layout: Layout,
}

impl Origin {
    /// An array that is a tensor as it is.
    pub fn whole(shape: &[usize]) -> Origin {
        Origin {
            rows: 0..shape.first().copied().unwrap_or(1),
            elements: 0..shape.iter().product(),
            part: shape.to_vec(),
            shape: shape.to_vec(),
            layout: Layout::Same,
        }
    }
}

/// No model has more; an array that claims to is none of π₀.
const MOST_LAYERS: usize = 1000;

/// The tensors that the array at `path` holds, with their names; none if π₀ has no such array, or not of this rank.
pub fn tensors(path: &str, shape: &[usize]) -> Option<Vec<(String, Origin)>> {
    let (group, row) = GROUPS.iter().find_map(|group| {
        let rest = path.strip_prefix(group.path)?;
        let row = group.rows.iter().find(|row| row.0.replace('*', group.star) == rest)?;
        Some((group, row))
    })?;
    let (_, name, stack, layout) = *row;
    let name = format!("{}{name}", group.name);
    let mut found = Vec::new();
    let mut add = |name: String, rows: Range<usize>, elements: Range<usize>, part: &[usize]| {
        let shape = layout.shape(part)?;
        let origin = Origin {
            rows,
            elements,
            part: part.to_vec(),
            shape,
            layout,
        };
        found.push((name, origin));
        Some(())
    };
    match (stack, shape) {
        (Stack::Layers | Stack::Pairs(_), [layers, ..]) if *layers > MOST_LAYERS => return None,
        (Stack::Single, [rows, ..]) => add(name, 0..*rows, 0..shape.iter().product(), shape)?,
        (Stack::Layers, [layers, part @ ..]) => {
            for layer in 0..*layers {
                let name = name.replace('#', &layer.to_string());
                add(name, layer..layer + 1, 0..part.iter().product(), part)?;
            }
        }
        (Stack::Pairs(members), [layers, 2, part @ ..]) => {
            let n: usize = part.iter().product();
            for (layer, half) in (0..*layers).flat_map(|layer| [(layer, 0), (layer, 1)]) {
                let name = name.replace('#', &layer.to_string()).replace('@', members[half]);
                add(name, layer..layer + 1, half * n..(half + 1) * n, part)?;
            }
        }
        _ => return None,
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_model_does_not_have() {
        assert_eq!(
            tensors("PaliGemma/llm/layers/attn/q_einsum/lora_c", &[1, 2, 3, 4]),
            None
        );
        assert_eq!(tensors("PaliGemma/llm/layers/attn/q_einsum/lora_a", &[1, 2, 3]), None);
        assert_eq!(tensors("PaliGemma/llm/layers/attn/kv_einsum/w", &[1, 3, 1, 4, 4]), None);
        assert_eq!(tensors("state_proj/kernel", &[]), None);
    }
}
