//! Storage of activations, and the gradients of residual streams.
//!
//! A residual stream adds up what every layer contributes. In half precision each addition rounds the whole sum; the
//! stream can therefore be kept in f32, forward and backward, while the operands of products stay halves: norms read
//! the stream and write operands, products and gates add to it. Backward needs a gradient of the stream twice, as the sum
//! that travels on and as the operand of the products that made the branches: the norm that finishes it writes both.

use std::ops::Range;

use crate::gpu::{DType, Gpu, Shape, Tensor};
use crate::ops::fill;

/// How activations, and the weights that compute, are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Operands and results of products.
    pub dtype: DType,
    /// Residual streams in f32, whatever the rest is.
    pub f32_residual: bool,
}

impl Storage {
    /// Of residual streams and their gradients.
    pub fn residual(self) -> DType {
        if self.f32_residual { DType::F32 } else { self.dtype }
    }
}

impl From<DType> for Storage {
    /// One type for everything.
    fn from(dtype: DType) -> Storage {
        Storage {
            dtype,
            f32_residual: false,
        }
    }
}

/// A gradient of a residual stream.
#[derive(Clone)]
pub struct StreamGrad {
    /// As it is added up.
    pub sum: Tensor,
    /// As products read it: the same tensor where the types agree.
    pub operand: Tensor,
}

impl StreamGrad {
    /// Room for the gradient of a stream stored as `residual`, of which products read `dtype`.
    pub fn new(gpu: &Gpu, residual: DType, dtype: DType, shape: impl Into<Shape>) -> StreamGrad {
        let shape = shape.into();
        let sum = gpu.alloc(residual, shape);
        let operand = if residual == dtype {
            sum.clone()
        } else {
            gpu.alloc(dtype, shape)
        };
        StreamGrad { sum, operand }
    }

    /// Nothing comes from above.
    pub fn zero(&self, gpu: &Gpu) {
        fill::zero(gpu, &self.sum);
        if let Some(rounded) = self.rounded() {
            fill::zero(gpu, rounded);
        }
    }

    /// Some of the rows.
    pub fn rows(&self, range: Range<usize>) -> StreamGrad {
        StreamGrad {
            sum: self.sum.rows(range.clone()),
            operand: self.operand.rows(range),
        }
    }

    /// Where the operand must be written beside the sum.
    pub fn rounded(&self) -> Option<&Tensor> {
        (self.sum.dtype() != self.operand.dtype()).then_some(&self.operand)
    }
}
