//! Everything that learns, on one device: π₀, critics, targets, averages, gradients, moments, temperature.

use std::sync::Arc;

use super::config::StepConfig;
use super::optimizer;
use crate::gpu::{DType, Gpu, GpuError, Result, Tensor};
use crate::model::bind::{CriticParams, Pi0Params};
use crate::model::dims::{CriticDims, Pi0Dims};
use crate::model::freeze::Reach;
use crate::model::layout::ObservationMasks;
use crate::model::params::{
    Init, LookedUp, ParamStore, ParamTable, ParamTensor, Placement, Room, Scope, Special, Touched,
};
use crate::model::prefix::{Depth, Net};
use crate::model::tables::{self, Pi0Units};
use crate::ops::blockwise::{Format, Moment};
use crate::ops::initial::{Law, Quantiles};
use crate::ops::optimizers::{Control, Optimizer};
use crate::ops::{fill, rope};
use crate::rng::{Key, Stream};

/// Index of each parameter group in clip factors and norms.
pub const PI0: usize = 0;
pub const CRITIC: usize = 1;
pub const TEMPERATURE: usize = 2;

/// One group: weights and what the optimizer keeps for them.
pub struct Group {
    /// In f32, or in halves of which the high one is what the step computes with.
    pub weights: ParamStore,
    /// Weights in the type the step computes in, where `weights` do not hold them.
    pub compute: Option<ParamStore>,
    pub grads: ParamStore,
    pub m: ParamStore,
    /// Second moment, where the optimizer keeps one.
    pub v: Option<ParamStore>,
    /// Weight average (π₀) or target network (critics).
    pub average: Option<ParamStore>,
}

/// `log α` and its optimizer, one f32 each.
pub struct Temperature {
    pub log_alpha: Tensor,
    pub grad: Tensor,
    pub m: Tensor,
    pub v: Tensor,
}

/// The learner.
pub struct Learner {
    pub gpu: Gpu,
    pub config: StepConfig,
    pub dims: Pi0Dims,
    pub critic_dims: CriticDims,
    pub pi0: Group,
    pub critic: Group,
    pub temperature: Option<Temperature>,
    pub control: Control,
    /// How far down gradients of π₀ travel.
    pub(super) reach: Reach,
    pub(super) params: Pi0Params,
    pub(super) grads: Pi0Params,
    pub(super) critics: CriticParams,
    pub(super) critic_grads: CriticParams,
    pub(super) targets: CriticParams,
    pub(super) rope: rope::Table,
    pub(super) rule_weights: Tensor,
    pub(super) clip_limits: Tensor,
}

impl Learner {
    /// Allocates everything; weights are undefined until [`Learner::init`] or [`Learner::load_pi0`] and
    /// [`Learner::load_critics`]. Fails if the device has no room.
    pub fn new(gpu: &Gpu, config: StepConfig, dims: Pi0Dims, critic_dims: CriticDims) -> Result<Learner> {
        let caps = gpu.caps();
        let place = |table: ParamTable, special: Special| Arc::new(Placement::with(Arc::new(table), caps, special));
        let prompts = LookedUp {
            unit: Pi0Units::new(&dims).embedding(),
            rows: config.prompt_rows,
        };
        // Adapters of the language stream change what its matrices are.
        let off = config.unused_on_host && config.features.depth() == Depth::KeysOnly && dims.lora.language.is_none();
        let special = Special {
            looked_up: Some(prompts),
            unused: if off { tables::unused(&dims) } else { Vec::new() },
        };
        // The critics are small: their moments stay whole.
        let group =
            |placement: Arc<Placement>, dtype: DType, optimizer: Optimizer, format: Format, average: Option<Scope>| {
                let moments = |moment| ParamStore::moments(gpu, placement.clone(), format, moment);
                let zeros = |scope| ParamStore::zeros(gpu, placement.clone(), DType::F32, scope);
                let halves = dtype == DType::Bf16 && caps.u16;
                let copies = dtype != DType::F32 && !halves;
                Group {
                    weights: gpu.owned("weights", || {
                        if halves {
                            ParamStore::halves(gpu, placement.clone())
                        } else {
                            zeros(Scope::All)
                        }
                    }),
                    compute: gpu.owned("rounded weights", || {
                        copies.then(|| ParamStore::new(gpu, placement.clone(), dtype, Scope::All))
                    }),
                    grads: gpu.owned("gradients", || zeros(Scope::Learning)),
                    m: gpu.owned("first moment", || moments(Moment::First)),
                    v: gpu.owned("second moment", || {
                        optimizer.second_moment().then(|| moments(Moment::Second))
                    }),
                    average: gpu.owned("average", || average.map(zeros)),
                }
            };
        let ema = config.ema_decay.map(|_| Scope::Learning);
        let table = config.freeze.mark(tables::pi0(&dims));
        let reach = Reach::of(&table, &dims);
        let mut pi0 = gpu.owned("π₀", || {
            group(
                place(table, special),
                config.dtype,
                config.pi0.optimizer,
                config.moments,
                ema.filter(|_| !config.ema_on_host),
            )
        });
        if config.ema_on_host && ema.is_some() {
            let placement = pi0.weights.placement().clone();
            pi0.average = Some(ParamStore::on_host(gpu, placement)?);
        }
        let critic = gpu.owned("critics", || {
            group(
                place(tables::critic(&critic_dims), Special::default()),
                DType::F32,
                config.critic.optimizer,
                Format::Float32,
                Some(Scope::All),
            )
        });
        let temperature = config.temperature.map(|_| {
            let one = || {
                let t = gpu.alloc_in(gpu.states(), DType::F32, [1]);
                fill::zero(gpu, &t);
                t
            };
            Temperature {
                log_alpha: one(),
                grad: one(),
                m: one(),
                v: one(),
            }
        });
        let constant = |values: &[f32]| {
            let t = gpu.alloc_in(gpu.states(), DType::F32, [values.len()]);
            gpu.write_f32(&t, values);
            t
        };
        let limits = [
            config.pi0.clip,
            config.critic.clip,
            config.temperature.map_or(f32::INFINITY, |t| t.group.clip),
        ];
        let targets = critic.average.as_ref().expect("critics have targets");
        let learner = Learner {
            reach,
            params: Pi0Params::bind(pi0.compute.as_ref().unwrap_or(&pi0.weights), &dims).with_sums(gpu),
            grads: Pi0Params::bind(&pi0.grads, &dims),
            critics: CriticParams::bind(&critic.weights, &critic_dims),
            critic_grads: CriticParams::bind(&critic.grads, &critic_dims),
            targets: CriticParams::bind(targets, &critic_dims),
            rope: rope::Table::new(gpu, 0, Net::positions(&dims), dims.head_dim),
            rule_weights: constant(&config.rule_weights),
            clip_limits: constant(&limits),
            control: Control::new(gpu, &[Room::PI0.len(), 1, 1], optimizer::PATIENCE),
            gpu: gpu.clone(),
            config,
            dims,
            critic_dims,
            pi0,
            critic,
            temperature,
        };
        gpu.check()?;
        Ok(learner)
    }

    /// Fresh weights from a seed, drawn on the device; targets and averages start equal to them.
    pub fn init(&self, seed: u64) {
        let quantiles = Quantiles::new(&self.gpu);
        for (tensor, ranges) in [&self.pi0, &self.critic].iter().flat_map(|group| group.weights.named()) {
            let (law, key) = initial(&tensor, seed);
            let mut first = 0;
            for range in ranges {
                law.fill(&self.gpu, &quantiles, key, first, &range);
                first += range.len() as u64;
            }
        }
        // What nothing computes with is on the host.
        for weights in [&self.pi0.weights, &self.critic.weights] {
            let kept: Vec<String> = weights.kept().into_iter().map(|tensor| tensor.name).collect();
            weights.write(&self.gpu, |tensor| {
                let (law, key) = initial(tensor, seed);
                let values = || (0..tensor.len() as u64).map(|i| law.at(key, i)).collect();
                kept.contains(&tensor.name).then(values)
            });
        }
        self.begin_averages(&self.pi0);
        self.begin_averages(&self.critic);
        self.refresh_compute();
    }

    fn begin_averages(&self, group: &Group) {
        if let Some(average) = &group.average {
            average.copy_from(&self.gpu, &group.weights);
        }
    }

    /// Sets the tensors of π₀ that `values` gives; the average starts from them.
    pub fn load_pi0(&self, mut values: impl FnMut(&ParamTensor) -> Option<Vec<f32>>) {
        self.load_pi0_by(|_| (), |tensor, put| values(tensor).iter().for_each(|all| put(all)));
    }

    /// The same, asking for those with the least `order` first; `values` hands them over piece by piece, in their order.
    pub fn load_pi0_by<K: Ord>(
        &self,
        order: impl Fn(&ParamTensor) -> K,
        values: impl FnMut(&ParamTensor, &mut dyn FnMut(&[f32])),
    ) {
        self.pi0.weights.write_pieces(&self.gpu, order, values);
        self.begin_averages(&self.pi0);
        self.refresh_compute();
    }

    /// Sets the tensors of the critics that `values` gives; the targets start from them.
    pub fn load_critics(&self, values: impl FnMut(&ParamTensor) -> Option<Vec<f32>>) {
        self.critic.weights.write(&self.gpu, values);
        self.begin_averages(&self.critic);
    }

    /// Rounds the compute weights from the f32 ones (the optimizer does this for what it changes).
    pub fn refresh_compute(&self) {
        if let Some(compute) = &self.pi0.compute {
            compute.convert_from(&self.gpu, &self.pi0.weights);
        }
    }

    /// The rows of the prompt table that learn, if not all of them do.
    pub fn touched(&self) -> Option<&Touched> {
        self.pi0.weights.placement().touched()
    }

    /// Lets the prompt tokens of observations that are about to be learned from learn, those that do not yet. If there is
    /// no room for one, the device refuses all further work.
    pub fn touch(&self, masks: &ObservationMasks) {
        let Some(touched) = self.touched() else { return };
        let new = touched.missing(masks.prompts.iter().flatten().copied());
        if new.is_empty() {
            return;
        }
        let Some(slots) = touched.take(&new) else {
            return self.gpu.fail(GpuError::PromptRows {
                rows: touched.capacity(),
            });
        };
        let pi0 = &self.pi0;
        let others: Vec<&ParamStore> = pi0.compute.iter().chain(&pi0.average).collect();
        ParamStore::move_rows(&self.gpu, &pi0.weights, &others, &new, slots);
    }

    /// Lets exactly the rows `ids` of the prompt table learn, in this order, with nothing learned yet; their weights are to
    /// be loaded then. `false` if there is no room for so many.
    pub fn touch_only(&self, ids: &[u32]) -> bool {
        let Some(touched) = self.touched() else { return true };
        touched.clear();
        let pi0 = &self.pi0;
        for store in [&pi0.weights, &pi0.grads, &pi0.m]
            .into_iter()
            .chain(&pi0.v)
            .chain(&pi0.average)
        {
            store.clear_touched(&self.gpu);
        }
        touched.take(ids).is_some()
    }

    /// Observations with each prompt token as the row of the table in which it is found.
    pub(super) fn rows_of(&self, mut masks: ObservationMasks) -> ObservationMasks {
        if let Some(touched) = self.touched() {
            for token in masks.prompts.iter_mut().flatten() {
                *token = touched.row(*token);
            }
        }
        masks
    }

    /// The network, for passes; what is made of weights is made again, as they may have changed.
    pub(super) fn net(&self) -> Net<'_> {
        self.params.refresh(&self.gpu);
        Net {
            dims: &self.dims,
            params: &self.params,
            rope: &self.rope,
            dtype: self.config.dtype,
            residual: self.config.storage().residual(),
        }
    }
}

/// How a tensor starts, and the key it is drawn by: functions of the seed and the tensor's name alone.
fn initial(tensor: &ParamTensor, seed: u64) -> (Law, Key) {
    let name = tensor.name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ b as u64).wrapping_mul(0x100_0000_01b3)
    });
    let law = match tensor.init {
        Init::Zeros => Law::Constant(0.0),
        Init::Ones => Law::Constant(1.0),
        Init::Normal(std) => Law::Normal(std as f32),
        Init::LecunUniform { fan_in } => Law::Uniform(libm::sqrt(3.0 / fan_in as f64) as f32),
    };
    (law, Key::stream(seed, Stream::Init).fold(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::train::setup;

    #[test]
    fn a_seed_gives_every_device_and_placement_the_same_weights() {
        let config = Config::load("debug").expect("a preset");
        let gpu = crate::ops::testing::gpu();
        let learner = setup::learner(&gpu, &config).expect("a learner");
        learner.init(7);
        for group in [&learner.pi0, &learner.critic] {
            let weights = group.weights.read(&gpu).expect("the device works");
            for tensor in group.weights.placement().table().tensors() {
                let (law, key) = initial(tensor, 7);
                let want = (0..tensor.len() as u64).map(|i| law.at(key, i));
                assert!(want.eq(weights[&tensor.name].iter().copied()), "{}", tensor.name);
            }
            if let Some(average) = &group.average {
                let average = average.read(&gpu).expect("the device works");
                // Of the prompt table there is an average of rows that have occurred: none yet.
                let same = |(name, values): (&String, &Vec<f32>)| values.is_empty() || *values == weights[name];
                assert!(average.iter().all(same));
            }
        }
        let name = "critic.out.weight";
        let other = || {
            learner.init(8);
            learner.critic.weights.read(&gpu).expect("the device works")[name].clone()
        };
        let first = other();
        assert_eq!(first, other());
        learner.init(7);
        assert_ne!(
            first,
            learner.critic.weights.read(&gpu).expect("the device works")[name]
        );
    }
}
