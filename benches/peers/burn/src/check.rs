//! Holds losses, intermediates, gradients and three updates to the fixture: what the other peers hold, more tightly.

use anyhow::{bail, ensure};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::batch::Batch;
use crate::fixture::{Array, Arrays, Golden, array, under};
use crate::step::{Losses, Step};

/// How far numbers are from the fixture's, as a share of the largest value of each tensor.
#[derive(Clone, Debug, Default)]
pub struct Differences(Vec<Difference>);

#[derive(Clone, Debug)]
struct Difference {
    kind: Kind,
    what: String,
    off: f64,
    limit: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Losses,
    Gradients,
    Norms,
    Updates,
}

impl Differences {
    fn note(&mut self, kind: Kind, what: &str, off: f64, limit: f64) {
        let what = what.to_owned();
        self.0.push(Difference { kind, what, off, limit });
    }

    fn close(&mut self, kind: Kind, what: &str, got: &[f32], want: &[f32], limit: f64) -> anyhow::Result<()> {
        let lengths = (got.len(), want.len());
        ensure!(
            lengths.0 == lengths.1,
            "{what} has {} values, not {}",
            lengths.0,
            lengths.1
        );
        let size = want.iter().fold(1e-30, |size: f64, x| size.max(f64::from(x.abs())));
        let pairs = got.iter().zip(want);
        let off = pairs.map(|(got, want)| (f64::from(*got) - f64::from(*want)).abs() / size);
        // What is not a number is not close.
        let off = off.fold(0.0, |most, one| if one <= most { most } else { one });
        self.note(kind, what, off, limit);
        Ok(())
    }

    /// The largest of each kind, if all are within their limits.
    fn settled(self) -> anyhow::Result<Self> {
        let mut wrong: Vec<_> = self.0.iter().filter(|one| !(one.off <= one.limit)).collect();
        wrong.sort_by(|a, b| (b.off / b.limit).total_cmp(&(a.off / a.limit)));
        let told = |one: &&Difference| format!("{} by {:.1e} ({:.0e} are allowed)", one.what, one.off, one.limit);
        ensure!(
            wrong.is_empty(),
            "{} of {} tensors are off, most of all {}",
            wrong.len(),
            self.0.len(),
            wrong.iter().take(8).map(told).collect::<Vec<_>>().join(", ")
        );
        Ok(self)
    }
}

impl std::fmt::Display for Differences {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let largest = |kind| {
            let of_kind = self.0.iter().filter(move |one| one.kind == kind);
            of_kind.fold(0.0, |most, one| f64::max(most, one.off))
        };
        write!(
            f,
            "losses {:.1e}, gradients {:.1e}, norms {:.1e}, updates {:.1e}",
            largest(Kind::Losses),
            largest(Kind::Gradients),
            largest(Kind::Norms),
            largest(Kind::Updates)
        )
    }
}

/// Keys' biases of SigLIP have no gradient but rounding: softmax does not see what is added to all keys.
fn is_rounding(name: &str) -> bool {
    name.contains("vision_tower") && name.ends_with("k_proj.bias")
}

fn host<B: Backend, const D: usize>(x: Tensor<B, D>) -> anyhow::Result<Vec<f32>> {
    match x.into_data().to_vec() {
        Ok(values) => Ok(values),
        Err(error) => bail!("{error:?}"),
    }
}

pub fn check<B: AutodiffBackend>(golden: &Golden, device: &B::Device) -> anyhow::Result<Differences> {
    let mut found = Differences::default();
    let online = under(&golden.critic, "online/");
    let target = under(&golden.critic, "target/");
    let step = Step::<B>::load(golden, &online, Some(&target), device)?;
    let batch = Batch::upload(&golden.batch(0), &golden.dims, device)?;
    losses(golden, step.losses(&batch), &mut found)?;
    type Part<B> = fn(Losses<B>) -> Tensor<B, 1>;
    let parts: [(&str, Part<B>, usize); 3] = [
        ("actor", |losses| losses.actor, 0),
        ("bc", |losses| losses.bc, 0),
        ("critic", |losses| losses.critic, 1),
    ];
    for (part, loss, group) in parts {
        let all = &step.gradients(&loss(step.losses(&batch)))[group];
        let gradients = match group {
            0 => step.names[0].gradients(&step.policy, all)?,
            _ => step.names[1].gradients(&step.critics, all)?,
        };
        compare(golden, part, &gradients, &mut found)?;
    }
    updates::<B>(golden, &online, device, &mut found)?;
    found.settled()
}

fn losses<B: AutodiffBackend>(golden: &Golden, losses: Losses<B>, found: &mut Differences) -> anyhow::Result<()> {
    let all = [
        ("features", host(losses.features)?),
        ("next_features", host(losses.next_features)?),
        ("next_actions", host(losses.next_actions)?),
        ("next_q", host(losses.next_q)?),
        ("target", host(losses.target)?),
        ("q", host(losses.q)?),
        ("candidates", host(losses.candidates)?),
        ("candidate_q", host(losses.candidate_q)?),
        ("v_t", host(losses.v)?),
        ("critic_loss", host(losses.critic)?),
        ("actor_loss", host(losses.actor)?),
        ("bc_loss", host(losses.bc)?),
        ("entropy", host(losses.entropy)?),
        ("alpha_loss", host(losses.temperature)?),
    ];
    for (name, got) in all {
        found.close(Kind::Losses, name, &got, &array(&golden.losses, name)?.values, 2e-5)?;
    }
    Ok(())
}

/// Gradients of one loss; of weights that it does not reach there are none.
fn compare(golden: &Golden, part: &str, gradients: &Arrays, found: &mut Differences) -> anyhow::Result<()> {
    let squares = gradients
        .values()
        .flat_map(|x| &x.values)
        .map(|&x| f64::from(x).powi(2));
    let norm = squares.sum::<f64>().sqrt();
    let wanted = golden.norms.get(part).copied().unwrap_or(f64::NAN);
    // Summed over elements and layers, f32 rounding of a ten-step chain is larger than that of one tensor's values.
    let what = format!("norm of {part}");
    found.close(Kind::Norms, &what, &[norm as f32], &[wanted as f32], 2e-5)?;
    let wanted = under(&golden.grads, &format!("grad_{part}/"));
    ensure!(!wanted.is_empty(), "the fixture has no gradients of {part}");
    for (name, want) in wanted.iter().filter(|(name, _)| !is_rounding(name)) {
        let none = Array {
            shape: want.shape.clone(),
            values: vec![0.0; want.values.len()],
        };
        let got = gradients.get(name).unwrap_or(&none);
        let what = format!("{part}: {name}");
        found.close(Kind::Gradients, &what, &got.values, &want.values, 2e-5)?;
    }
    Ok(())
}

fn updates<B: AutodiffBackend>(
    golden: &Golden,
    online: &Arrays,
    device: &B::Device,
    found: &mut Differences,
) -> anyhow::Result<()> {
    let mut step = Step::<B>::load(golden, online, None, device)?;
    for (i, logged) in golden.log.iter().enumerate() {
        let batch = Batch::upload(&golden.batch(i), &golden.dims, device)?;
        let gradients = step.backward(step.losses(&batch));
        let norms;
        (step, norms) = step.update(gradients, [logged.pi0_lr, logged.critic_lr]);
        let wanted = [("π₀", logged.pi0_grad_norm), ("the critics", logged.critic_grad_norm)];
        for ((who, want), got) in wanted.into_iter().zip(norms) {
            let got = host(got)?.first().copied().unwrap_or(f32::NAN);
            let what = format!("update {i}: norm of {who}");
            found.close(Kind::Norms, &what, &[got], &[want as f32], 2e-5)?;
        }
    }
    let steps = golden.log.len();
    let [policy, critics] = &step.names;
    let all = [
        ("pi0", policy.weights(&step.policy)?, &golden.weights),
        ("ema", policy.weights(&step.average)?, &golden.weights),
        ("critic", critics.weights(&step.critics)?, online),
        ("target", critics.weights(&step.target)?, online),
    ];
    let (mut missed, mut moved) = (0.0, 0.0);
    for (part, reached, start) in all {
        let wanted = under(&golden.post, &format!("after{steps}/{part}/"));
        ensure!(!wanted.is_empty(), "the fixture has no {part} after {steps} updates");
        for (name, end) in wanted.iter().filter(|(name, _)| !is_rounding(name)) {
            let (got, start) = (array(&reached, name)?, array(start, name)?);
            for ((got, end), start) in got.values.iter().zip(&end.values).zip(&start.values) {
                missed += f64::from(got - end).powi(2);
                moved += f64::from(end - start).powi(2);
            }
        }
    }
    let off = (missed / f64::max(moved, 1e-30)).sqrt();
    found.note(Kind::Updates, &format!("weights after {steps} updates"), off, 5e-5);
    Ok(())
}
