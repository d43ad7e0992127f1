//! Which memory is whose, and when: the allocations of one micro-batch and one update, by owner.
//!
//! Owners are named by the labels around an allocation, or by the room of the code that asked for it; activations are told
//! apart by the phase in which they were made. Addresses are those of the run: it asks for the same, in the same order.

use serde::Serialize;

use crate::gpu::{Ledger, Span};

/// What lies in memory for one purpose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    pub name: String,
    /// `states`, `activations` or `uploads`.
    pub arena: &'static str,
    /// Most bytes of it at once.
    pub bytes: u64,
    /// Allocations in one micro-batch and one update.
    pub allocations: usize,
    /// Phases in which the first of them is made and the last goes away; none: they are there before a step, and after it.
    pub first: Option<&'static str>,
    pub last: Option<&'static str>,
    /// Lowest and highest address, counted over the pages of the arena.
    pub from_byte: u64,
    pub to_byte: u64,
    /// Its share of the bytes in use when the step uses most.
    pub bytes_at_peak: u64,
}

/// A phase of the step on the axis of time, which counts launches, allocations and their ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Column {
    pub name: &'static str,
    pub from: u64,
    pub to: u64,
}

/// One allocation on the map.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Index of its group.
    pub group: usize,
    pub page: usize,
    pub start: u64,
    pub bytes: u64,
    pub from: u64,
    pub to: u64,
}

/// The memory of a step.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Map {
    /// By arena, the largest first.
    pub groups: Vec<Group>,
    pub columns: Vec<Column>,
    #[serde(skip)]
    pub blocks: Vec<Block>,
}

/// Where files of this library ask for memory: the end of the path, and what it is for. The first that fits counts.
const ROOMS: [(&str, &str); 10] = [
    ("model/siglip.rs", "SigLIP"),
    ("model/gemma.rs", "transformer blocks"),
    ("model/prefix.rs", "prefix"),
    ("model/prefix_backward.rs", "prefix"),
    ("model/suffix.rs", "suffix"),
    ("model/suffix_backward.rs", "suffix"),
    ("model/flow_time.rs", "suffix"),
    ("model/critic", "critics"),
    ("/ops/", "workspaces"),
    ("", "batch, losses and samples"),
];

impl Map {
    /// The map of the step that lies between the times `begin` and `end`.
    pub fn new(ledger: &Ledger, begin: u64, end: u64) -> Map {
        let columns = columns(ledger, begin, end);
        let phase = |at: u64| columns.iter().find(|c| c.from <= at && at < c.to).map(|c| c.name);
        let of_step = |span: &&Span| span.from < end && span.to.is_none_or(|to| to > begin);
        let spans: Vec<&Span> = ledger.spans.iter().filter(of_step).collect();
        let mut groups: Vec<Group> = Vec::new();
        let mut blocks = Vec::new();
        for span in &spans {
            let born = (span.from >= begin).then(|| phase(span.from)).flatten();
            let name = name(span, born);
            let index = groups.iter().position(|g| g.name == name && g.arena == span.arena);
            let index = index.unwrap_or_else(|| {
                groups.push(Group {
                    name,
                    arena: span.arena,
                    bytes: 0,
                    allocations: 0,
                    first: born,
                    last: None,
                    from_byte: u64::MAX,
                    to_byte: 0,
                    bytes_at_peak: 0,
                });
                groups.len() - 1
            });
            let group = &mut groups[index];
            group.allocations += 1;
            group.from_byte = group.from_byte.min(span.start);
            group.to_byte = group.to_byte.max(span.start + span.bytes);
            blocks.push(Block {
                group: index,
                page: span.page,
                start: span.start,
                bytes: span.bytes,
                from: span.from.max(begin),
                to: span.to.unwrap_or(end).min(end),
            });
        }
        for (index, group) in groups.iter_mut().enumerate() {
            let own = || blocks.iter().filter(|b| b.group == index);
            group.bytes = peak(own()).1;
            let last = own().map(|b| b.to).max().filter(|to| *to < end);
            group.last = last.and_then(phase);
        }
        let arena = |b: &&Block| groups[b.group].arena != "uploads";
        let high = peak(blocks.iter().filter(arena)).0;
        let at_peak: Vec<(usize, u64)> = blocks
            .iter()
            .filter(|b| b.from <= high && high < b.to)
            .map(|b| (b.group, b.bytes))
            .collect();
        for (group, bytes) in at_peak {
            groups[group].bytes_at_peak += bytes;
        }
        let mut map = Map {
            groups,
            columns,
            blocks,
        };
        map.sort();
        map
    }

    /// States first, then activations, then uploads; the largest of each first.
    fn sort(&mut self) {
        let rank = |arena: &str| ["states", "activations"].iter().position(|a| *a == arena).unwrap_or(2);
        let mut order: Vec<usize> = (0..self.groups.len()).collect();
        order.sort_by_key(|&i| (rank(self.groups[i].arena), u64::MAX - self.groups[i].bytes));
        for block in &mut self.blocks {
            block.group = order.iter().position(|&i| i == block.group).unwrap_or(block.group);
        }
        self.groups = order.iter().map(|&i| self.groups[i].clone()).collect();
    }
}

/// The phases of the step, neighbours with one name joined.
fn columns(ledger: &Ledger, begin: u64, end: u64) -> Vec<Column> {
    let starts = ledger.phases.iter().filter(|(_, at)| (begin..end).contains(at));
    let mut columns: Vec<Column> = Vec::new();
    for &(name, from) in starts {
        if let Some(last) = columns.last_mut() {
            last.to = from;
        }
        columns.retain(|c| c.from < c.to);
        columns.push(Column { name, from, to: end });
    }
    columns
}

/// The name of what an allocation belongs to.
fn name(span: &Span, born: Option<&'static str>) -> String {
    let file = span.owner.file.replace('\\', "/");
    let room = ROOMS
        .iter()
        .find(|(end, _)| file.contains(end))
        .map_or("", |room| room.1);
    match (&span.owner.labels[..], born) {
        ([], _) if span.arena == "states" => "constants and metrics".into(),
        ([], Some(born)) if span.arena == "activations" => format!("{room}, {born}"),
        ([], _) => room.into(),
        (labels, _) => labels.join(" "),
    }
}

/// When some blocks hold most, and how much that is.
fn peak<'a>(blocks: impl Iterator<Item = &'a Block>) -> (u64, u64) {
    let mut events: Vec<(u64, i128)> = Vec::new();
    for b in blocks {
        let bytes = i128::from(b.bytes);
        events.extend([(b.from, bytes), (b.to, -bytes)]);
    }
    events.sort_unstable();
    let (mut now, mut most) = (0i128, (0, 0i128));
    for (at, change) in events {
        now += change;
        if now > most.1 {
            most = (at, now);
        }
    }
    (most.0, most.1 as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Caps, DType, Gpu};

    #[test]
    fn groups_have_their_sizes_and_times() {
        let gpu = Gpu::null(Caps::planning());
        gpu.keep_ledger();
        let weights = gpu.owned("π₀", || {
            gpu.owned("weights", || gpu.alloc_in(gpu.states(), DType::F32, [1000]))
        });
        let begin = gpu.clock();
        gpu.phase(&[("forward", 1.0)]);
        let x = gpu.f32([256]);
        crate::ops::fill::zero(&gpu, &x);
        let y = gpu.owned("kept", || gpu.f32([512]));
        crate::ops::fill::zero(&gpu, &y);
        drop(x);
        gpu.phase(&[("backward", 1.0)]);
        let z = gpu.f32([128]);
        crate::ops::fill::zero(&gpu, &z);
        drop((y, z));
        let end = gpu.clock();
        let map = Map::new(&gpu.take_ledger(), begin, end);
        drop(weights);
        let columns: Vec<_> = map.columns.iter().map(|c| (c.name, c.to - c.from)).collect();
        assert_eq!(columns, [("forward", 5), ("backward", 4)]);
        let rows: Vec<_> = map
            .groups
            .iter()
            .map(|g| (g.name.as_str(), g.bytes, g.first, g.last))
            .collect();
        let batch = "batch, losses and samples";
        assert_eq!(
            rows,
            [
                ("π₀ weights", 4096, None, None),
                ("kept", 2048, Some("forward"), Some("backward")),
                (&format!("{batch}, forward"), 1024, Some("forward"), Some("forward")),
                (&format!("{batch}, backward"), 512, Some("backward"), Some("backward")),
            ]
        );
        assert_eq!(
            map.groups.iter().map(|g| g.bytes_at_peak).sum::<u64>(),
            4096 + 2048 + 1024
        );
    }
}
