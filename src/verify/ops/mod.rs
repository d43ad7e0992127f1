//! Single operations: `OP/in/NAME`, `OP/out/y`, `OP/cot/dy`, `OP/grad/NAME` (the gradient of `Σ y·dy`).

mod attention;
mod critic;
mod layers;
mod losses;
mod norms;
mod tokens;
mod updates;

use super::{Fixture, Kind, Report, Result, VerifyError, axes};
use crate::gpu::{DType, Gpu, Shape, Tensor};
use crate::model::stream::{Storage, StreamGrad};
use crate::ops::activation::Activation;
use crate::ops::fill;

/// Operations whose operands are stored as the model is. The others (losses, critics, optimizer, what the host does) are
/// f32 always.
const STORED: [&str; 14] = [
    "rms_norm",
    "ada_rms_norm",
    "layer_norm",
    "linear",
    "rope",
    "gqa_prefix_lm",
    "gqa_cached",
    "gelu_tanh",
    "swish",
    "geglu",
    "gelu_mlp",
    "patch_embed",
    "vit_block",
    "embed_lookup",
];

/// Runs every operation of the group.
pub(super) fn run(
    gpu: &Gpu,
    f: &Fixture,
    storage: Storage,
    wanted: &dyn Fn(&str) -> bool,
    report: &mut Report,
) -> Result<()> {
    for op in f.prefixes(wanted) {
        let op = op.as_str();
        let storage = if STORED.contains(&op) {
            storage
        } else {
            DType::F32.into()
        };
        let Some((runner, shapes)) = runner(op) else {
            report.unknown.push(op.to_string());
            continue;
        };
        report.with_storage(storage.dtype, |report| -> Result<()> {
            let mut case = Case {
                gpu,
                f,
                op,
                dtype: storage.dtype,
                residual: storage.residual(),
                report,
            };
            case.expect(shapes)?;
            runner(&mut case)
        })?;
        let mine = format!("{op}/");
        report.untouched(f, |n| n.starts_with(&mine) && wanted(n));
    }
    report.rows.retain(|r| wanted(&r.tensor));
    Ok(())
}

type Runner = fn(&mut Case<'_>) -> Result<()>;

/// What checks an operation, and the shapes it can take ([`axes`]).
fn runner(op: &str) -> Option<(Runner, &'static str)> {
    let activation = "in/x *n; cot/dy *n";
    Some(match op {
        "rms_norm" => (norms::rms_norm_case, "in/x *n d; in/scale d; cot/dy *n d"),
        "ada_rms_norm" => (
            norms::ada_rms_norm_case,
            "in/x b l d; in/cond b c; in/w 3d c; in/b 3d; cot/dy0 b l d; cot/dy1 b 1 d",
        ),
        "layer_norm" => (norms::layer_norm_case, "in/x *n d; in/weight d; in/bias d; cot/dy *n d"),
        "linear" => (layers::linear_case, "in/x *n d; in/w f d; in/b f; cot/dy *n f"),
        "rope" => (attention::rope_case, "in/x b l n k; in/positions b l; cot/dy b l n k"),
        "attn_mask" => (attention::attn_mask_case, "in/valid b l; in/block_start l"),
        "gqa_prefix_lm" | "gqa_cached" => (
            attention::attention_case,
            "in/q b t n k; in/k b s g k; in/v b s g k; in/mask b t s; cot/dy b t n k",
        ),
        "softmax_masked" => (attention::softmax_case, "in/z *n w; in/mask *n w; cot/dy *n w"),
        "gelu_tanh" => (|c| layers::activation_case(c, Activation::Gelu), activation),
        "swish" => (|c| layers::activation_case(c, Activation::Swish), activation),
        "relu" => (|c| layers::activation_case(c, Activation::Relu), activation),
        "geglu" => (
            layers::geglu_case,
            "in/x *n d; in/gate f d; in/up f d; in/down d f; cot/dy *n d",
        ),
        "gelu_mlp" => (
            layers::gelu_mlp_case,
            "in/x *n d; in/fc1 f d; in/b1 f; in/fc2 e f; in/b2 e; cot/dy *n e",
        ),
        "patch_embed" => (
            layers::patch_embed_case,
            "in/image b h w 3; in/weight o 3 p p; in/bias o; cot/dy b t o",
        ),
        "vit_block" => (
            layers::vit_block_case,
            "in/x b t w; cot/dy b t w; in/layer_norm1.weight w; in/layer_norm1.bias w; in/layer_norm2.weight w; \
             in/layer_norm2.bias w; in/self_attn.q_proj.weight w w; in/self_attn.q_proj.bias w; \
             in/self_attn.k_proj.weight w w; in/self_attn.k_proj.bias w; in/self_attn.v_proj.weight w w; \
             in/self_attn.v_proj.bias w; in/self_attn.out_proj.weight w w; in/self_attn.out_proj.bias w; \
             in/mlp.fc1.weight f w; in/mlp.fc1.bias f; in/mlp.fc2.weight w f; in/mlp.fc2.bias w; out/y b t w",
        ),
        "embed_lookup" => (tokens::embedding_case, "in/table v d; in/tokens *n; cot/dy *n d"),
        "sincos" => (tokens::time_embedding_case, "in/t n; out/y n w; cot/dy n w"),
        "masked_mean" => (tokens::mean_pool_case, "in/tokens b l d; in/valid b l; cot/dy b d"),
        "mse_velocity" => (losses::velocity_case, "in/v *n a; in/u *n a; cot/dy *n"),
        "ensemble_min" => (losses::ensemble_case, "in/q e b; cot/dy b"),
        "best_of_n" => (losses::best_of_n_case, "in/q n e b; cot/dy b"),
        "critic" => (critic::critic_case, "in/feats b d; in/actions b h a"),
        "entropy_estimate" => (losses::entropy_case, "in/samples n b h a; cot/dy"),
        "adamw" => (updates::adamw_case, "in/p n; in/grads t n"),
        "lr_schedule" => (updates::lr_case, "in/step n"),
        "soft_update" => (updates::soft_update_case, "in/target *n; in/online *n"),
        _ if op.starts_with("huber") => (losses::huber_case, "in/e *n; cot/dy *n"),
        _ if op.starts_with("clip_") => (updates::clip_case, "in/a *a; in/b *b"),
        _ => return None,
    })
}

/// One operation of the group, and where results go.
pub(super) struct Case<'a> {
    pub gpu: &'a Gpu,
    pub f: &'a Fixture,
    pub op: &'a str,
    /// How activations and the weights that compute are stored; gradients of weights are f32.
    pub dtype: DType,
    /// How residual streams are.
    pub residual: DType,
    pub report: &'a mut Report,
}

impl Case<'_> {
    pub fn name(&self, part: &str) -> String {
        format!("{}/{part}", self.op)
    }

    /// The lengths of a tensor's N axes.
    pub fn axes<const N: usize>(&self, part: &str) -> Result<[usize; N]> {
        let shape = self.f.shape(&self.name(part))?;
        let axes = shape.try_into();
        axes.map_err(|_| self.broken(format!("{part} is {shape:?}, but should have {N} axes")))
    }

    /// The length of a tensor's last axis.
    pub fn width(&self, part: &str) -> Result<usize> {
        let last = self.f.shape(&self.name(part))?.last();
        last.copied().ok_or_else(|| self.broken(format!("{part} has no axes")))
    }

    /// Fails unless the operation's tensors have these shapes ([`axes`]).
    pub fn expect(&self, shapes: &str) -> Result<()> {
        axes::expect(self.f, &self.name(""), shapes)
    }

    /// Has the operation this tensor?
    pub fn has(&self, part: &str) -> bool {
        self.f.get(&self.name(part)).is_some()
    }

    pub fn host(&self, part: &str) -> Result<Vec<f32>> {
        self.f.f32(&self.name(part))
    }

    /// An f32 input on the device, in its own shape.
    pub fn tensor(&self, part: &str) -> Result<Tensor> {
        self.upload(part, DType::F32)
    }

    /// An input stored as the model is, in its own shape.
    pub fn stored(&self, part: &str) -> Result<Tensor> {
        self.upload(part, self.dtype)
    }

    fn upload(&self, part: &str, dtype: DType) -> Result<Tensor> {
        let shape = self.f.shape(&self.name(part))?;
        let shape = if shape.is_empty() { &[1] } else { shape };
        Ok(self.gpu.upload_as(&self.host(part)?, dtype, shape))
    }

    /// An f32 input as `[rows, width]`, the width being its last axis.
    pub fn rows(&self, part: &str) -> Result<Tensor> {
        self.as_rows(part, self.tensor(part)?)
    }

    /// The same, stored as the model is.
    pub fn stored_rows(&self, part: &str) -> Result<Tensor> {
        self.as_rows(part, self.stored(part)?)
    }

    /// The same, stored as residual streams are.
    pub fn stream_rows(&self, part: &str) -> Result<Tensor> {
        self.as_rows(part, self.upload(part, self.residual)?)
    }

    /// An input that is the gradient of a residual stream.
    pub fn stream_grad(&self, part: &str) -> Result<StreamGrad> {
        let sum = self.stream_rows(part)?;
        let operand = if self.residual == self.dtype {
            sum.clone()
        } else {
            self.stored_rows(part)?
        };
        Ok(StreamGrad { sum, operand })
    }

    /// Memory for the gradient of a residual stream.
    pub fn stream_like(&self, x: &Tensor) -> StreamGrad {
        StreamGrad::new(self.gpu, self.residual, self.dtype, x.shape())
    }

    fn as_rows(&self, part: &str, t: Tensor) -> Result<Tensor> {
        let width = self.width(part)?;
        Ok(t.view([t.len() / width, width]))
    }

    /// Values stored as the model is.
    pub fn put(&self, values: &[f32], shape: impl Into<Shape>) -> Tensor {
        self.gpu.upload_as(values, self.dtype, shape)
    }

    /// Memory for an activation.
    pub fn activation(&self, shape: impl Into<Shape>) -> Tensor {
        self.gpu.alloc(self.dtype, shape)
    }

    /// Zeros in f32, for the gradient of a weight.
    pub fn zeros(&self, like: &Tensor) -> Tensor {
        let t = self.gpu.f32(like.shape());
        fill::zero(self.gpu, &t);
        t
    }

    /// Memory of a tensor's shape and type.
    pub fn like(&self, t: &Tensor) -> Tensor {
        self.gpu.alloc(t.dtype(), t.shape())
    }

    pub fn check(&mut self, part: &str, kind: Kind, got: &Tensor) -> Result<()> {
        let got = self.gpu.read_f32(got)?;
        self.check_host(part, kind, &got)
    }

    pub fn check_host(&mut self, part: &str, kind: Kind, got: &[f32]) -> Result<()> {
        let want = self.host(part)?;
        self.report.compare(self.name(part), kind, got, &want);
        Ok(())
    }

    pub fn output(&mut self, part: &str, got: &Tensor) -> Result<()> {
        self.check(&format!("out/{part}"), Kind::Forward, got)
    }

    pub fn gradient(&mut self, part: &str, got: &Tensor) -> Result<()> {
        self.check(&format!("grad/{part}"), Kind::Gradient, got)
    }

    /// The gradient of a residual stream, and what products read of it.
    pub fn stream_gradient(&mut self, part: &str, got: &StreamGrad) -> Result<()> {
        self.gradient(part, &got.sum)?;
        match got.rounded() {
            Some(rounded) => self.gradient(part, rounded),
            None => Ok(()),
        }
    }

    pub fn number(&self, key: &str) -> Result<f64> {
        self.f.number(&format!("/ops/{}/{key}", self.op))
    }

    pub fn broken(&self, what: impl Into<String>) -> VerifyError {
        self.f.broken(format!("{}: {}", self.op, what.into()))
    }
}
