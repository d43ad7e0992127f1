//! A product whose sum is finished by whoever reads it first.

use super::{Act, Gemm, Mat, RowMap, nt};
use crate::gpu::{Gpu, Tensor};

/// The result of a product. Where the device cuts the product along k, its parts are there and the result is not, until it
/// is read for the first time: by [`rms_norm::forward_sum`](crate::ops::rms_norm::forward_sum) and its backward, which add up
/// the parts on the way, or by [`Sum::whole`].
#[must_use = "the result may not be there yet"]
pub struct Sum {
    to: Tensor,
    parts: Option<Parts>,
}

/// What is left of the work: `Σ sums (+ residual)`.
pub(crate) struct Parts {
    /// `[splits, m, n]` f32
    pub sums: Tensor,
    pub residual: Option<Tensor>,
}

impl From<&Tensor> for Sum {
    fn from(whole: &Tensor) -> Sum {
        Sum {
            to: whole.clone(),
            parts: None,
        }
    }
}

impl Sum {
    /// The result; adds up the parts, where there are some.
    pub fn whole(self, gpu: &Gpu) -> Tensor {
        let (to, parts) = self.split();
        if let Some(Parts { sums, residual }) = parts {
            // The second half of a product does not look at the operands.
            let mut epilogue = nt(&to, &to);
            if let Some(residual) = &residual {
                epilogue = epilogue.residual(residual);
            }
            epilogue.finish(gpu, &sums, &Mat::from(&to), false);
        }
        to
    }

    /// Where the result goes, and what it is to be made of.
    pub(crate) fn split(self) -> (Tensor, Option<Parts>) {
        (self.to, self.parts)
    }
}

impl Gemm {
    /// `C [m, n] = …`, of a product without an epilogue but for a residual: the parts, if the device cuts it along k.
    pub fn sum_to(self, gpu: &Gpu, c: &Tensor) -> Sum {
        let to = Mat::from(c);
        let residual = match &self.extra {
            None => Some(None),
            Some((m, RowMap::Same)) if m.ld == m.cols && m.batch == 1 => Some(Some(m.tensor.view([m.rows, m.cols]))),
            Some(_) => None,
        };
        let bare = self.bias.is_none() && self.pre.is_none() && self.scale.is_none() && self.act == Act::None;
        let parts = match residual {
            Some(residual) if bare && !self.gated && self.groups.is_none() => {
                self.launch(gpu, &to, false).map(|sums| Parts { sums, residual })
            }
            _ => {
                self.to(gpu, to);
                None
            }
        };
        Sum { to: c.clone(), parts }
    }
}
