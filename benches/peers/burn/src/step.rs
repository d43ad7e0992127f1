//! The losses of a batch in acrlpd's schedule, one backward, and the update.

use burn::module::{AutodiffModule, Module};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{AdamW, AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::batch::{Batch, sincos, values};
use crate::critics::{Critics, features};
use crate::fixture::{Arrays, Dims, Golden, Hyper};
use crate::model::Pi0;
use crate::weights::{Loader, Names, clip, towards};

/// What a batch gives: losses with gradients, and without what they were made of.
pub struct Losses<B: AutodiffBackend> {
    pub critic: Tensor<B, 1>,
    pub actor: Tensor<B, 1>,
    pub bc: Tensor<B, 1>,
    pub temperature: Tensor<B, 1>,
    pub entropy: Tensor<B::InnerBackend, 1>,
    pub features: Tensor<B::InnerBackend, 2>,
    pub next_features: Tensor<B::InnerBackend, 2>,
    pub next_actions: Tensor<B::InnerBackend, 3>,
    pub next_q: Tensor<B::InnerBackend, 2>,
    pub target: Tensor<B::InnerBackend, 1>,
    pub q: Tensor<B, 2>,
    /// `[N, B, H, A]`
    pub candidates: Tensor<B::InnerBackend, 4>,
    /// `[N, B]`
    pub candidate_q: Tensor<B::InnerBackend, 2>,
    pub v: Tensor<B, 3>,
}

/// Weights, their averages and their optimizers.
pub struct Step<B: AutodiffBackend> {
    d: Dims,
    h: Hyper,
    pub policy: Pi0<B>,
    pub critics: Critics<B>,
    pub target: Critics<B::InnerBackend>,
    pub average: Pi0<B::InnerBackend>,
    pub names: [Names; 2],
    log_alpha: Tensor<B, 1>,
    times: Vec<Tensor<B, 3>>,
    adam: OptimizerAdaptor<AdamW, Pi0<B>, B>,
    critic_adam: OptimizerAdaptor<AdamW, Critics<B>, B>,
}

impl<B: AutodiffBackend> Step<B> {
    /// With the fixture's weights; `target` are other critics than the online ones.
    pub fn load(golden: &Golden, online: &Arrays, target: Option<&Arrays>, device: &B::Device) -> anyhow::Result<Self> {
        let (d, h) = (golden.dims.clone(), golden.hyper.clone());
        let mut loader = Loader::new(&golden.weights, device);
        let policy = Pi0::load(&mut loader, &d)?;
        let mut critic_loader = Loader::new(online, device);
        let critics = Critics::load(&mut critic_loader, &d)?;
        let names = [loader.names, critic_loader.names];
        let target = match target {
            Some(other) => Critics::load(&mut Loader::new(other, device), &d)?,
            None => critics.valid(),
        };
        let adam = AdamWConfig::new()
            .with_beta_1(h.beta1)
            .with_beta_2(h.beta2)
            .with_epsilon(h.eps);
        let steps = h.euler_steps;
        let time = |i: usize| sincos(std::iter::once(1.0 - i as f64 / steps as f64), d.expert_width);
        Ok(Step {
            average: policy.valid(),
            target,
            names,
            log_alpha: values(vec![golden.log_alpha as f32], [1], device).require_grad(),
            times: (0..steps)
                .map(|i| values(time(i), [1, 1, d.expert_width], device))
                .collect(),
            adam: adam.clone().with_weight_decay(h.pi0_weight_decay).init(),
            critic_adam: adam.with_weight_decay(h.critic_weight_decay).init(),
            policy,
            critics,
            d,
            h,
        })
    }

    /// `[E, B]` → `[B]`
    fn rule<C: Backend>(q: Tensor<C, 2>, how: &str) -> Tensor<C, 1> {
        let one = if how == "min" { q.min_dim(0) } else { q.mean_dim(0) };
        one.squeeze_dim(0)
    }

    /// All losses of a batch: one prefix pass for s, which all share; candidates without gradients, and only the best of
    /// them once more with.
    pub fn losses(&self, batch: &Batch<B>) -> Losses<B> {
        let (d, h) = (&self.d, &self.h);
        let [n, b, horizon, width] = batch.candidate_noise.dims();
        let (tokens, current) = self.policy.context(&batch.now, d);
        let (policy, critics) = (self.policy.valid(), self.critics.valid());
        let times = self.times.iter().map(|time| time.clone().inner()).collect::<Vec<_>>();

        let next = &batch.next;
        let (next_tokens, following) = policy.context(next, d);
        let next_features = features(next_tokens, next.valid.clone(), next.state.clone(), d);
        let rows = current.clone().inner().repeated(n).joined(following);
        let noise = batch.candidate_noise.clone().reshape([n * b, horizon, width]);
        let noise = Tensor::cat(vec![noise, batch.next_noise.clone()], 0);
        let ends = policy.sample(&rows, noise, &times, d);
        let every = ends.clone().narrow(0, 0, n * b);
        let next_actions = ends.narrow(0, n * b, b);
        let next_q = self.target.forward(next_features.clone(), next_actions.clone(), d);
        let power = h.discount.powi(d.action_horizon as i32);
        let bootstrapped = Self::rule(next_q.clone(), &h.target_q_agg).mul(batch.masks.clone());
        let target = batch.rewards.clone().add(bootstrapped.mul_scalar(power));
        let (now_valid, state) = (batch.now.valid.clone().inner(), batch.now.state.clone().inner());
        let seen = features(tokens.inner(), now_valid, state, d);
        let constant = Tensor::<B, 2>::from_inner(seen.clone());
        // A chunk counts if its last step does.
        let valid = batch.valid.clone().narrow(1, horizon - 1, 1).squeeze_dim::<1>(1);
        let mean = |x: Tensor<B, 1>| x.mul(valid.clone()).sum().div_scalar(b as f64);

        let q = self.critics.forward(constant.clone(), batch.actions.clone(), d);
        let error = q.clone().sub(Tensor::from_inner(target.clone()).unsqueeze());
        let critic = mean(self.critic_loss(error).mean_dim(0).squeeze_dim(0));

        let candidate_q = critics.forward(seen.clone().repeat_dim(0, n), every.clone(), d);
        let candidate_q = Self::rule(candidate_q, &h.actor_q_agg).reshape([n, b]);
        let best = candidate_q
            .clone()
            .argmax(0)
            .reshape([1, b, 1, 1])
            .expand([1, b, horizon, width]);
        let noise = batch.candidate_noise.clone().gather(0, best).squeeze_dim::<3>(0);
        let winner = self.policy.sample(&current, Tensor::from_inner(noise), &self.times, d);
        let chosen = self.critics.clone().no_grad().forward(constant, winner, d);
        let actor = mean(Self::rule(chosen, &h.actor_q_agg)).neg();

        let (t, noise, actions) = (&batch.bc_time, &batch.bc_noise, &batch.actions);
        let x = noise
            .clone()
            .mul(t.clone())
            .add(actions.clone().mul(t.clone().neg().add_scalar(1.0)));
        let v = self.policy.velocity(&current, x, batch.bc_embedded.clone(), d);
        let keep = batch.valid.clone().mul(batch.positive.clone());
        let flow = v.clone().sub(noise.clone().sub(actions.clone())).square().mean_dim(2);
        let counted = (batch.positives * horizon).max(1);
        let bc = flow.squeeze_dim::<2>(2).mul(keep).sum().div_scalar(counted as f64);

        let candidates = every.reshape([n, b, horizon, width]);
        let spread = candidates.clone().sub(candidates.clone().mean_dim(0)).square();
        let entropy = spread.mean_dim(0).reshape([b, horizon * width]).mean_dim(1);
        let entropy = entropy.add_scalar(1e-8).log().mean();
        let aim = h.target_entropy_multiplier * d.action_dim as f64;
        let distance = Tensor::from_inner(entropy.clone().add_scalar(aim));
        Losses {
            temperature: self.log_alpha.clone().exp().mul(distance),
            features: seen,
            critic,
            actor,
            bc,
            entropy,
            next_features,
            next_actions,
            next_q,
            target,
            q,
            candidates,
            candidate_q,
            v,
        }
    }

    fn critic_loss(&self, error: Tensor<B, 2>) -> Tensor<B, 2> {
        if self.h.critic_loss == "mse" {
            return error.square();
        }
        // The part of an error within delta is square, what is beyond it linear.
        let delta = self.h.huber_delta;
        let within = error.clone().abs().clamp_max(delta);
        let beyond = error.abs().sub(within.clone()).mul_scalar(delta);
        within.square().mul_scalar(0.5).add(beyond)
    }

    /// Gradients of the weighted losses, of π₀ and of the critics.
    pub fn backward(&self, losses: Losses<B>) -> [GradientsParams; 2] {
        let h = &self.h;
        let total = (losses.actor.mul_scalar(h.actor_weight)).add(losses.bc.mul_scalar(h.bc_weight));
        let total = total
            .add(losses.critic.mul_scalar(h.critic_weight))
            .add(losses.temperature);
        self.gradients(&total)
    }

    pub fn gradients(&self, loss: &Tensor<B, 1>) -> [GradientsParams; 2] {
        let mut all = loss.backward();
        let policy = GradientsParams::from_module(&mut all, &self.policy);
        [policy, GradientsParams::from_module(&mut all, &self.critics)]
    }

    /// Clips, steps, averages; gives the norms, which are on the device.
    pub fn update(
        mut self,
        mut gradients: [GradientsParams; 2],
        rates: [f64; 2],
    ) -> (Self, [Tensor<B::InnerBackend, 1>; 2]) {
        let [of_policy, of_critics] = &mut gradients;
        let limit = self.h.clip_norm;
        let norms = [
            clip(&self.policy.valid(), of_policy, limit),
            clip(&self.critics.valid(), of_critics, limit),
        ];
        let [of_policy, of_critics] = gradients;
        let policy = self.adam.step(rates[0], self.policy, of_policy);
        let critics = self.critic_adam.step(rates[1], self.critics, of_critics);
        let target = towards(self.target, &critics.valid(), self.h.target_tau);
        let average = towards(self.average, &policy.valid(), 1.0 - self.h.ema_decay);
        let step = Step {
            policy,
            critics,
            target,
            average,
            ..self
        };
        (step, norms)
    }
}
