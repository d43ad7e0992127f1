//! Adapters merged into the matrices they are for: `W + s · B A`, in f64.

use super::dims::Adapters;
use super::params::{ParamTable, ParamTensor};

/// The names of an adapter's matrices end in these.
pub const A: &str = ".lora_a";
pub const B: &str = ".lora_b";

/// Is this the name of an adapter's matrix?
pub fn is_adapter(name: &str) -> bool {
    name.ends_with(A) || name.ends_with(B)
}

/// The values of `tensor` with what its adapter adds to them, if `table` has one. `read` gives the values of a tensor.
///
/// # Errors
/// Those of `read`.
pub fn merge<E>(
    tensor: &ParamTensor,
    table: &ParamTable,
    adapters: Adapters,
    read: impl Fn(&ParamTensor) -> Result<Vec<f32>, E>,
) -> Result<Vec<f32>, E> {
    let mut values = read(tensor)?;
    let Some(stem) = tensor.name.strip_suffix(".weight") else {
        return Ok(values);
    };
    let of = |end: &str| {
        let name = format!("{stem}{end}");
        table.tensors().find(|t| t.name == name)
    };
    let expert = stem.contains(".gemma_expert.");
    let lora = if expert { adapters.expert } else { adapters.language };
    let (Some(lora), Some(a), Some(b), [outputs, inputs]) = (lora, of(A), of(B), &tensor.shape[..]) else {
        return Ok(values);
    };
    let (a_values, b_values) = (read(a)?, read(b)?);
    let (rank, scale) = (lora.rank, lora.scale());
    // Each of these has its own A and its part of the outputs; columns of B beyond the rank are of heads to be summed.
    let outputs_of_group = outputs / (a.shape[0] / rank);
    let mut row = vec![0.0f64; *inputs];
    for (o, b_row) in b_values.chunks_exact(b.shape[1]).enumerate() {
        row.fill(0.0);
        let first = o / outputs_of_group * rank;
        for l in 0..rank {
            let factor: f64 = b_row.iter().skip(l).step_by(rank).map(|&b| f64::from(b)).sum();
            let from = &a_values[(first + l) * inputs..(first + l + 1) * inputs];
            row.iter_mut()
                .zip(from)
                .for_each(|(sum, &a)| *sum += factor * f64::from(a));
        }
        let to = &mut values[o * inputs..(o + 1) * inputs];
        to.iter_mut()
            .zip(&row)
            .for_each(|(w, delta)| *w = (f64::from(*w) + scale * delta) as f32);
    }
    Ok(values)
}
