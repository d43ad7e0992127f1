//! The small ops of the losses as cases: flow matching, ensembles, temporal differences, entropy, smoothness. All f32.

use serde::Serialize;

use super::check::{Expected, Sum};
use super::work::{Operand, Room, Work};
use crate::gpu::{DType, Gpu};
use crate::ops::ensemble::{self, Aggregate, Rule};
use crate::ops::td::{self, TdLoss, Transition};
use crate::ops::{entropy, flow, reduce, smoothness};

/// Which op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    FlowInterpolate,
    FlowLoss,
    FlowScaled,
    FlowJointErrors,
    Ensemble,
    EnsembleBackward,
    BestOfN,
    GatherTrajectories,
    TdLoss,
    Entropy,
    Smoothness,
    WeightedSum,
}

/// One op for so many samples, with the sizes of the algorithm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    pub op: LossKind,
    pub batch: usize,
    pub candidates: usize,
    pub critics: usize,
    pub horizon: usize,
    pub action_dim: usize,
    pub euler_steps: usize,
}

impl Loss {
    /// The work, in `room`.
    pub fn work(&self, room: Room<'_>) -> Work {
        match self.op {
            LossKind::FlowInterpolate => self.interpolate(room),
            LossKind::FlowLoss => self.flow_loss(room),
            LossKind::FlowScaled => self.scaled(room),
            LossKind::FlowJointErrors => self.joint_errors(room),
            LossKind::Ensemble => self.ensemble(room, false),
            LossKind::EnsembleBackward => self.ensemble(room, true),
            LossKind::BestOfN => self.best(room),
            LossKind::GatherTrajectories => self.trajectories(room),
            LossKind::TdLoss => self.td(room),
            LossKind::Entropy => self.entropy(room),
            LossKind::Smoothness => self.smoothness(room),
            LossKind::WeightedSum => self.weighted_sum(room),
        }
    }

    /// Elements of a chunk.
    fn chunk(&self) -> usize {
        self.horizon * self.action_dim
    }

    fn interpolate(&self, mut room: Room<'_>) -> Work {
        let (b, each) = (self.batch, self.chunk());
        let (noise, actions) = (room.input_f32([b, each], 1.0, 0.0), room.input_f32([b, each], 1.0, 0.0));
        let (time, x) = (room.input_f32([b], 0.5, 0.5), room.output_as(DType::F32, [b, each]));
        let expected = {
            let (noise, actions, time) = (noise.clone(), actions.clone(), time.clone());
            Expected::new("x", &x, move |at| {
                let t = time.at(at / each);
                [t * noise.at(at), (1.0 - t) * actions.at(at)].into_iter().collect()
            })
        };
        let launch = move |gpu: &Gpu| flow::interpolate(gpu, &noise.tensor, &actions.tensor, &time.tensor, &x);
        room.work(launch, [expected])
    }

    /// v, noise, actions `[rows, A]` and the error of an element, `v - (noise - action)`.
    fn velocities(&self, room: &mut Room<'_>) -> ([Operand; 3], impl Fn(usize) -> Sum + Clone + use<>) {
        let shape = [self.batch * self.horizon, self.action_dim];
        let all = [(); 3].map(|()| room.input_f32(shape, 1.0, 0.0));
        let [v, noise, actions] = all.clone();
        (all, move |at| {
            [v.at(at), -noise.at(at), actions.at(at)].into_iter().collect()
        })
    }

    fn flow_loss(&self, mut room: Room<'_>) -> Work {
        let (rows, a) = (self.batch * self.horizon, self.action_dim);
        let ([v, noise, actions], error_at) = self.velocities(&mut room);
        let weight = room.input_f32([rows], 0.5, 0.5);
        let (error, dv) = (
            room.output_as(DType::F32, [rows]),
            room.output_as(DType::F32, [rows, a]),
        );
        let of_row = {
            let error_at = error_at.clone();
            Expected::new("error", &error, move |row| {
                let mut sum = Sum::default();
                for i in row * a..(row + 1) * a {
                    let e = error_at(i);
                    sum.add_sized(e.value * e.value / a as f64, e.size * e.size / a as f64);
                }
                sum
            })
        };
        let slope = {
            let weight = weight.clone();
            Expected::new("dv", &dv, move |at| {
                error_at(at).times(2.0 * weight.at(at / a) * 0.5 / a as f64)
            })
        };
        let launch = move |gpu: &Gpu| {
            let (v, noise, actions) = (&v.tensor, &noise.tensor, &actions.tensor);
            flow::velocity_loss(gpu, v, noise, actions, &weight.tensor, 0.5, &error, Some(&dv));
        };
        room.work(launch, [of_row, slope])
    }

    fn joint_errors(&self, mut room: Room<'_>) -> Work {
        let (rows, a) = (self.batch * self.horizon, self.action_dim);
        let ([v, noise, actions], error_at) = self.velocities(&mut room);
        let weight = room.input_f32([rows], 0.5, 0.5);
        let errors = room.in_place(DType::F32, [a], 1.0, 0.0);
        let expected = {
            let (weight, before) = (weight.clone(), errors.clone());
            Expected::new("errors", &errors.tensor, move |j| {
                let mut sum = Sum::of(before.at(j));
                for r in 0..rows {
                    let e = error_at(r * a + j);
                    sum.add_sized(weight.at(r) * e.value * e.value, weight.at(r) * e.size * e.size);
                }
                sum
            })
        };
        let launch = move |gpu: &Gpu| {
            let (v, noise, actions) = (&v.tensor, &noise.tensor, &actions.tensor);
            flow::joint_errors(gpu, v, noise, actions, &weight.tensor, &errors.tensor);
        };
        room.work(launch, [expected])
    }

    fn scaled(&self, mut room: Room<'_>) -> Work {
        let shape = [self.batch * self.horizon, self.action_dim];
        let (x, y) = (room.input_f32(shape, 1.0, 0.0), room.output_as(DType::F32, shape));
        let expected = {
            let x = x.clone();
            Expected::new("y", &y, move |at| Sum::of(-0.125 * x.at(at)))
        };
        room.work(move |gpu: &Gpu| flow::scaled(gpu, &x.tensor, -0.125, &y), [expected])
    }

    fn ensemble(&self, mut room: Room<'_>, backward: bool) -> Work {
        let (e, n) = (self.critics, self.candidates * self.batch);
        let q = room.input_f32([e, n], 1.0, 0.0);
        let weights = room.input_f32([e], 1.0, 0.0);
        let above = backward.then(|| room.input_f32([n], 1.0, 0.0));
        let out = room.output_as(DType::F32, if backward { [e, n] } else { [1, n] });
        let expected = {
            let (q, above) = (q.clone(), above.clone());
            Expected::new("out", &out, move |at| {
                let column = at % n;
                let lowest = (1..e).fold(0, |best, i| {
                    if q.at(i * n + column) < q.at(best * n + column) {
                        i
                    } else {
                        best
                    }
                });
                match &above {
                    None => Sum::of(q.at(lowest * n + column)),
                    Some(above) if lowest == at / n => Sum::of(above.at(column)),
                    Some(_) => Sum::of(0.0),
                }
            })
        };
        let launch = move |gpu: &Gpu| {
            let rule = Rule {
                how: Aggregate::Min,
                weights: &weights.tensor,
            };
            match &above {
                None => ensemble::forward(gpu, &q.tensor, rule, &out.view([n])),
                Some(above) => ensemble::backward(gpu, &q.tensor, rule, &above.tensor, &out),
            }
        };
        room.work(launch, [expected])
    }

    fn best(&self, mut room: Room<'_>) -> Work {
        let (n, b) = (self.candidates, self.batch);
        let value = room.input_f32([n * b], 1.0, 0.0);
        let (best, winner) = (room.output_as(DType::F32, [b]), room.output_as(DType::U32, [b]));
        let of = {
            let value = value.clone();
            move |i: usize| {
                (1..n).fold(0, |best, k| {
                    if value.at(k * b + i) > value.at(best * b + i) {
                        k
                    } else {
                        best
                    }
                })
            }
        };
        let highest = {
            let (value, of) = (value.clone(), of.clone());
            Expected::new("best", &best, move |i| Sum::of(value.at(of(i) * b + i)))
        };
        let chosen = Expected::new("winner", &winner, move |i| Sum::of(of(i) as f64));
        let launch = move |gpu: &Gpu| ensemble::best_of_n(gpu, &value.tensor, &best, &winner);
        room.work(launch, [highest, chosen])
    }

    fn trajectories(&self, mut room: Room<'_>) -> Work {
        let (n, b, t, each) = (self.candidates, self.batch, self.euler_steps + 1, self.chunk());
        // Candidates of each sample, then its target.
        let per_state = (n + 1) * b * each;
        let states = room.input_f32([t, per_state], 1.0, 0.0);
        let won: Vec<u32> = (0..b).map(|i| (i * 7 % n) as u32).collect();
        let winner = room.table(&won, [b]);
        let chosen = room.output_as(DType::F32, [t, b * each]);
        let bytes = 2.0 * chosen.bytes() as f64;
        let expected = {
            let states = states.clone();
            Expected::new("chosen", &chosen, move |at| {
                let (state, i, place) = (at / (b * each), at / each % b, at % each);
                Sum::of(states.at(state * per_state + (won[i] as usize * b + i) * each + place))
            })
        };
        let launch = move |gpu: &Gpu| ensemble::gather_trajectories(gpu, &states.tensor, Some(&winner), each, &chosen);
        room.work(launch, [expected]).bytes(bytes)
    }

    fn td(&self, mut room: Room<'_>) -> Work {
        let (e, b) = (self.critics, self.batch);
        let (q, next_q) = (room.input_f32([e, b], 2.0, 0.0), room.input_f32([e, b], 1.0, 0.0));
        let [reward, discount, weight, weights] = [b, b, b, e].map(|n| room.input_f32([n], 0.5, 0.5));
        // One sample in five ended its episode.
        let columns: Vec<u32> = (0..b)
            .map(|i| if i % 5 == 4 { td::TERMINAL } else { i as u32 })
            .collect();
        let next = room.table(&columns, [b]);
        let (target, loss) = (room.output_as(DType::F32, [b]), room.output_as(DType::F32, [b]));
        let dq = room.output_as(DType::F32, [e, b]);
        let y = {
            let (reward, discount, next_q) = (reward.clone(), discount.clone(), next_q.clone());
            move |i: usize| -> Sum {
                let mut sum = Sum::of(reward.at(i));
                if i % 5 != 4 {
                    sum.add(discount.at(i) * (0..e).map(|k| next_q.at(k * b + i)).fold(f64::INFINITY, f64::min));
                }
                sum
            }
        };
        let of_target = {
            let y = y.clone();
            Expected::new("target", &target, y)
        };
        let of_loss = {
            let (y, q, weight) = (y.clone(), q.clone(), weight.clone());
            Expected::new("loss", &loss, move |i| {
                let mut sum = Sum::default();
                for k in 0..e {
                    let error: f64 = q.at(k * b + i) - y(i).value;
                    let huber = if error.abs() <= 1.0 {
                        0.5 * error * error
                    } else {
                        error.abs() - 0.5
                    };
                    sum.add_sized(weight.at(i) * huber / e as f64, 4.0 * weight.at(i) / e as f64);
                }
                sum
            })
        };
        let slope = {
            let (q, weight) = (q.clone(), weight.clone());
            Expected::new("dq", &dq, move |at| {
                let error = q.at(at) - y(at % b).value;
                let mut sum = Sum::default();
                let factor = 0.25 * weight.at(at % b) / e as f64;
                sum.add_sized(factor * error.clamp(-1.0, 1.0), 4.0 * factor);
                sum
            })
        };
        let launch = move |gpu: &Gpu| {
            let rule = Rule {
                how: Aggregate::Min,
                weights: &weights.tensor,
            };
            let transition = Transition {
                reward: &reward.tensor,
                discount: &discount.tensor,
                next: &next,
                weight: &weight.tensor,
            };
            let (q, next_q, kind) = (&q.tensor, &next_q.tensor, TdLoss::Huber(1.0));
            td::run(gpu, q, next_q, rule, transition, kind, 0.25, &target, &loss, Some(&dq));
        };
        room.work(launch, [of_target, of_loss, slope])
    }

    fn entropy(&self, mut room: Room<'_>) -> Work {
        let (n, b, p) = (self.candidates, self.batch, self.chunk());
        let s = room.input_f32([n, b, p], 1.0, 0.0);
        let (log_var, var) = (room.output_as(DType::F32, [b]), room.output_as(DType::F32, [b]));
        let variance = {
            let s = s.clone();
            move |i: usize| -> Sum {
                let at = |k: usize, j: usize| s.at((k * b + i) * p + j);
                let mean = |j: usize| (0..n).map(|k| at(k, j)).sum::<f64>() / n as f64;
                let of_one = |j: usize| (0..n).map(move |k| (k, j));
                (0..p)
                    .flat_map(of_one)
                    .map(|(k, j)| (at(k, j) - mean(j)).powi(2) / (n * p) as f64)
                    .collect()
            }
        };
        let spread = Expected::new("var", &var, variance.clone());
        let of_log = Expected::new("log_var", &log_var, move |i| {
            let var = variance(i);
            let mut sum = Sum::default();
            sum.add_sized((var.value + 1e-8).ln(), 1.0 + var.value.ln().abs());
            sum
        });
        let launch = move |gpu: &Gpu| entropy::forward(gpu, &s.tensor, &log_var, &var);
        room.work(launch, [spread, of_log])
    }

    fn smoothness(&self, mut room: Room<'_>) -> Work {
        let (b, h, a) = (self.batch, self.horizon, self.action_dim);
        let actions = room.input_f32([b, h, a], 1.0, 0.0);
        let weight = room.input_f32([b], 0.5, 0.5);
        let error = room.output_as(DType::F32, [b]);
        let d = room.in_place(DType::F32, [b, h, a], 1.0, 0.0);
        let per = ((h - 1) * a) as f64;
        let of_row = {
            let actions = actions.clone();
            Expected::new("error", &error, move |row| {
                let steps = (row * h * a..((row + 1) * h - 1) * a).map(|i| actions.at(i + a) - actions.at(i));
                steps.map(|step| step * step / per).collect()
            })
        };
        let slope = {
            let (actions, weight, before) = (actions.clone(), weight.clone(), d.clone());
            Expected::new("dactions", &d.tensor, move |at| {
                let (row, step) = (at / (h * a), at / a % h);
                let mut bend = Sum::default();
                if step > 0 {
                    bend.add(actions.at(at));
                    bend.add(-actions.at(at - a));
                }
                if step + 1 < h {
                    bend.add(actions.at(at));
                    bend.add(-actions.at(at + a));
                }
                let mut sum = bend.times(2.0 * 0.5 * weight.at(row) / per);
                sum.add(before.at(at));
                sum
            })
        };
        let launch = move |gpu: &Gpu| {
            smoothness::run(gpu, &actions.tensor, a, &weight.tensor, 0.5, &error, &d.tensor);
        };
        room.work(launch, [of_row, slope])
    }

    fn weighted_sum(&self, mut room: Room<'_>) -> Work {
        let n = self.batch * self.horizon;
        let (x, weight) = (room.input_f32([n], 1.0, 0.0), room.input_f32([n], 0.5, 0.5));
        let out = room.output_as(DType::F32, [1]);
        let expected = {
            let (x, weight) = (x.clone(), weight.clone());
            Expected::new("sum", &out, move |_| {
                (0..n).map(|i| 0.5 * weight.at(i) * x.at(i)).collect()
            })
        };
        let launch = move |gpu: &Gpu| {
            reduce::weighted_sum(gpu, &x.tensor, Some(&weight.tensor), 0.5, &out, false);
        };
        room.work(launch, [expected])
    }
}
