//! How large the weights of each room are, and how far apart those of two checkpoints: read once, one tensor at a time.

use std::path::Path;

use serde::Serialize;

use super::error::Result;
use super::manifest::MANIFEST;
use super::names;
use super::resume::{resolve, step_of, steps};
use super::weights::{self, Weights, is_float};
use super::{shards, state};
use crate::model::params::Room;

/// The weights of one room.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RoomNorm {
    /// `vision`, `language`, `expert` or `critic`.
    pub room: &'static str,
    pub parameters: usize,
    /// Root of the sum of squares.
    pub l2: f64,
}

/// How far the weights of one room are from those of another checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RoomDistance {
    /// `vision`, `language`, `expert` or `critic`.
    pub room: &'static str,
    /// Parameters that both have.
    pub parameters: usize,
    /// L2 norm of the difference, divided by that of the other's weights.
    pub relative_l2: f64,
    /// Tensors that only one of the two has, or that have other shapes.
    pub unmatched: usize,
}

/// The networks in `path`: of a checkpoint or a run (its newest) π₀ and critics, else the weights that it is.
///
/// # Errors
/// As [`Weights::open`] and [`resolve`].
pub fn networks(path: &Path) -> Result<Vec<Weights>> {
    if !is_ours(path)? {
        return Ok(vec![Weights::open(path)?]);
    }
    let folder = resolve(path)?;
    let files = [state::PARAMS, state::CRITIC].map(|name| folder.join(name));
    let there = files
        .iter()
        .filter(|file| file.is_file() || shards::index_at(file).is_some());
    there.map(Weights::open).collect()
}

/// Whether `path` is a checkpoint of this program, or a run with some.
pub(super) fn is_ours(path: &Path) -> Result<bool> {
    // Steps of other programs are numbered folders too, but with weights in them under a usual name.
    let numbered = step_of(path).is_some() && !weights::is_model(path);
    Ok(path.is_dir() && (path.join(MANIFEST).is_file() || numbered || has_own_steps(path)?))
}

fn has_own_steps(path: &Path) -> Result<bool> {
    let steps = steps(path)?;
    Ok(steps
        .iter()
        .any(|step| !weights::is_model(&path.join(step.to_string()))))
}

/// The tensors of networks that have a room, in the order in which they are read, without the targets of critics.
fn tensors(networks: &[Weights]) -> Vec<(&Weights, &str, &[usize], Room)> {
    let mut all = Vec::new();
    for network in networks {
        let floats = network
            .iter()
            .filter(|tensor| is_float(tensor.dtype) && !tensor.name.starts_with(state::TARGET));
        let known = floats.filter_map(|t| Some((network, t.name, t.shape, names::room(t.name)?)));
        let mut known: Vec<_> = known.collect();
        known.sort_by_key(|(network, name, ..)| network.position(&names::openpi(name)));
        all.extend(known);
    }
    all
}

fn parameters(tensors: &[(&Weights, &str, &[usize], Room)]) -> usize {
    tensors.iter().map(|t| t.2.iter().product::<usize>()).sum()
}

/// The norm of every room of `networks`; `progress` is told the parameters done and all of them.
///
/// # Errors
/// Tensors that cannot be read.
pub fn norms(networks: &[Weights], mut progress: impl FnMut(usize, usize)) -> Result<Vec<RoomNorm>> {
    let tensors = tensors(networks);
    let (mut done, all) = (0, parameters(&tensors));
    let mut rooms = Room::ALL.map(|room| RoomNorm {
        room: room.name(),
        ..RoomNorm::default()
    });
    for (network, name, shape, room) in tensors {
        let sum = &mut rooms[room as usize];
        network.pieces(&names::openpi(name), shape, |piece| {
            sum.parameters += piece.len();
            sum.l2 += squares(piece.iter().map(|v| f64::from(*v)));
            Ok(())
        })?;
        done += shape.iter().product::<usize>();
        progress(done, all);
    }
    rooms.iter_mut().for_each(|room| room.l2 = room.l2.sqrt());
    Ok(rooms.into_iter().filter(|room| room.parameters > 0).collect())
}

/// How far every room of `networks` is from that of `other`; `progress` as in [`norms`].
///
/// # Errors
/// Tensors that cannot be read.
pub fn distances(
    networks: &[Weights],
    other: &[Weights],
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<RoomDistance>> {
    let (ours, theirs) = (tensors(networks), tensors(other));
    let (mut done, all) = (0, parameters(&ours));
    let mut rooms = Room::ALL.map(|room| RoomDistance {
        room: room.name(),
        ..RoomDistance::default()
    });
    let (mut apart, mut size) = ([0.0; Room::ALL.len()], [0.0; Room::ALL.len()]);
    for (network, name, shape, room) in &ours {
        let (name, i) = (names::openpi(name), *room as usize);
        let found = other
            .iter()
            .find(|other| other.lookup(&name).is_some_and(|(_, t)| t.shape == *shape));
        let n: usize = shape.iter().product();
        if let Some(other) = found {
            let (a, b) = (network.values(&name, shape)?, other.values(&name, shape)?);
            apart[i] += squares(a.iter().zip(&b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
            size[i] += squares(b.iter().map(|v| f64::from(*v)));
            rooms[i].parameters += n;
        } else {
            rooms[i].unmatched += 1;
        }
        done += n;
        progress(done, all);
    }
    for (_, name, _, room) in &theirs {
        let name = names::openpi(name);
        let missing = networks.iter().all(|network| network.lookup(&name).is_none());
        rooms[*room as usize].unmatched += usize::from(missing);
    }
    for (i, room) in rooms.iter_mut().enumerate() {
        room.relative_l2 = f64::sqrt(apart[i]) / f64::sqrt(size[i]).max(f64::MIN_POSITIVE);
    }
    Ok(rooms
        .into_iter()
        .filter(|room| room.parameters + room.unmatched > 0)
        .collect())
}

fn squares(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum()
}
