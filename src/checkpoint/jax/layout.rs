//! Orders of elements: of the parts of JAX arrays, and of the tensors they become.

/// How the elements of a part of an array become a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In the same order, as one vector or with the same axes.
    Same,
    /// All axes in one: biases of heads.
    Flat,
    /// `[1, rows, columns]`: without the first axis.
    Squeezed,
    /// `[in, out…]` to `[out…, in]`, the outs as one axis.
    InOuts,
    /// `[in…, out]` to `[out, in…]`, the ins as one axis.
    InsOut,
    /// `[heads, in, out]` to `[heads · out, in]`.
    Heads,
    /// Of patches: `[height, width, colour, out]` to `[out, colour, height, width]`.
    Patches,
}

impl Layout {
    /// Shape of the tensor that a part of shape `from` becomes; none if the part has not the axes of the layout.
    pub fn shape(self, from: &[usize]) -> Option<Vec<usize>> {
        match (self, from) {
            (Layout::Same, [_] | [_, _]) => Some(from.to_vec()),
            (Layout::Flat, _) => Some(vec![from.iter().product()]),
            (Layout::Squeezed, [1, rows, columns]) => Some(vec![*rows, *columns]),
            (Layout::InOuts, [first, rest @ ..]) if !rest.is_empty() => Some(vec![rest.iter().product(), *first]),
            (Layout::InsOut, [rest @ .., last]) if !rest.is_empty() => Some(vec![*last, rest.iter().product()]),
            (Layout::Heads, [heads, fan_in, out]) => Some(vec![heads * out, *fan_in]),
            (Layout::Patches, [height, width, colours, out]) => Some(vec![*out, *colours, *height, *width]),
            _ => None,
        }
    }

    /// The values of a part of shape `from` in the order of the tensor.
    pub fn arrange(self, values: Vec<f32>, from: &[usize]) -> Vec<f32> {
        match (self, from) {
            (Layout::InOuts, [first, ..]) => transposed(&values, *first, values.len() / first.max(&1)),
            (Layout::InsOut, [.., last]) => transposed(&values, values.len() / last.max(&1), *last),
            (Layout::Heads, [_, fan_in, out]) => {
                let heads = values.chunks_exact((fan_in * out).max(1));
                heads.flat_map(|head| transposed(head, *fan_in, *out)).collect()
            }
            (Layout::Patches, [height, width, colours, out]) => {
                // The pixels of a colour lie `colours` apart: colours first, then the outs.
                let pixels = height * width;
                let by_out = transposed(&values, pixels * colours, *out);
                let patches = by_out.chunks_exact((pixels * colours).max(1));
                patches.flat_map(|patch| transposed(patch, pixels, *colours)).collect()
            }
            _ => values,
        }
    }
}

/// `[rows, columns]` to `[columns, rows]`, in tiles that fit into a cache.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; values.len()];
    for first_row in (0..rows).step_by(TILE) {
        for first_column in (0..columns).step_by(TILE) {
            for row in first_row..rows.min(first_row + TILE) {
                for column in first_column..columns.min(first_column + TILE) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::Layout::{Flat, Heads, InOuts, InsOut, Patches, Same, Squeezed};
    use super::*;

    #[test]
    fn layouts() {
        let count = |n: usize| (0..n).map(|i| i as f32).collect::<Vec<_>>();
        let check = |layout: Layout, from: &[usize], to: &[usize], order: &[f32]| {
            assert_eq!(layout.shape(from).as_deref(), Some(to), "{layout:?}");
            assert_eq!(layout.arrange(count(from.iter().product()), from), order, "{layout:?}");
        };
        check(Same, &[3], &[3], &[0.0, 1.0, 2.0]);
        check(Flat, &[2, 2], &[4], &[0.0, 1.0, 2.0, 3.0]);
        check(Squeezed, &[1, 2, 1], &[2, 1], &[0.0, 1.0]);
        // [in 2, heads 1, out 3].
        check(InOuts, &[2, 1, 3], &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        // [heads 2, in 1, out 2]: out by (head, in).
        check(InsOut, &[2, 1, 2], &[2, 2], &[0.0, 2.0, 1.0, 3.0]);
        // [heads 2, in 2, out 1].
        check(Heads, &[2, 2, 1], &[2, 2], &[0.0, 1.0, 2.0, 3.0]);
        check(Heads, &[1, 2, 2], &[2, 2], &[0.0, 2.0, 1.0, 3.0]);
        // Height 1, width 2, colours 2, out 2: element (x, c, o) is 4 x + 2 c + o.
        check(
            Patches,
            &[1, 2, 2, 2],
            &[2, 2, 1, 2],
            &[0.0, 4.0, 2.0, 6.0, 1.0, 5.0, 3.0, 7.0],
        );
        assert_eq!(Patches.shape(&[1, 2]), None);
        assert_eq!(transposed(&transposed(&count(35 * 70), 35, 70), 70, 35), count(35 * 70));
    }
}
