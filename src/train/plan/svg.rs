//! The map as a drawing: addresses upwards, phases of the step to the right, a rectangle for each allocation. Once all memory,
//! once the activations alone, larger.

use std::fmt::Write;

use super::Plan;
use super::map::Block;
use crate::report::escape;

/// Size of the drawing in pixels, and of the plot in it.
const SIZE: (f64, f64) = (1600.0, 1560.0);
const LEFT: f64 = 84.0;
const RIGHT: f64 = 1190.0;
/// Upper and lower edge of all memory, and of the activations.
const ALL: (f64, f64) = (150.0, 720.0);
const ACTIVE: (f64, f64) = (780.0, 1530.0);

/// Rectangles lower than this many pixels are drawn together, where they are of one group.
const LEAST: f64 = 1.5;
/// Groups in the legend.
const NAMED: usize = 30;

/// Colours of groups, by arena: states are blue and green, activations warm, uploads violet.
const STATES: [&str; 8] = [
    "#1f4e79", "#2e75b6", "#5b9bd5", "#9dc3e6", "#1e6b52", "#3a9e7a", "#7cc4a8", "#b5dfce",
];
const ACTIVATIONS: [&str; 10] = [
    "#c00000", "#e06c00", "#ffc000", "#8c510a", "#d6604d", "#f4a582", "#b8860b", "#e7b416", "#a63603", "#fdae61",
];
const UPLOADS: &str = "#7030a0";

/// What a drawing needs beside the plan.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pub title: &'a str,
    /// Memory that may be used, if that is known.
    pub limit: Option<u64>,
}

/// Draws the map of a plan.
pub fn svg(plan: &Plan, frame: Frame<'_>) -> String {
    let edges = edges(plan);
    let states: u64 = plan.state_pages.iter().sum();
    let activations: u64 = plan.activation_pages.iter().sum();
    let reserved = plan.reserved_bytes as f64;
    // A limit far above would leave nothing to see.
    let limit = frame.limit.map(|l| l as f64).filter(|l| *l < 2.0 * reserved);
    let all = Drawing {
        plan,
        edges: &edges,
        bytes: (0.0, 1.03 * reserved.max(limit.unwrap_or(0.0)).max(1.0)),
        pixels: ALL,
    };
    let active = Drawing {
        bytes: (states as f64, (states + activations.max(1)) as f64),
        pixels: ACTIVE,
        ..all
    };
    let mut out = String::new();
    let (w, h) = SIZE;
    put(
        &mut out,
        format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"{w}\" height=\"{h}\" fill=\"white\"/>\n"
        ),
    );
    text(&mut out, LEFT, 30.0, "start", "font-size=\"20\"", frame.title);
    let total = format!(
        "{} reserved: {} of weights, gradients and optimizer states, {} of activations and workspaces, {} for uploads; one \
         micro-batch of {} samples and the update",
        gigabytes(plan.reserved_bytes),
        gigabytes(states),
        gigabytes(activations),
        gigabytes(plan.upload_bytes),
        plan.samples / plan.micro_batches.max(1),
    );
    text(&mut out, LEFT, 52.0, "start", "", &total);
    for drawing in [&all, &active] {
        drawing.stripes(&mut out);
        drawing.blocks(&mut out);
        drawing.axis(&mut out);
    }
    all.phases(&mut out);
    all.edge_of(&mut out, states, "states");
    all.edge_of(&mut out, states + activations, "activations");
    let above = ACTIVE.0 - 12.0;
    text(&mut out, LEFT, above, "start", "", "activations and workspaces alone");
    if let Some(limit) = frame.limit {
        all.limit(&mut out, limit);
    }
    all.legend(&mut out);
    out.push_str("</svg>\n");
    out
}

/// Where each phase begins on the axis of time, and where the last ends.
fn edges(plan: &Plan) -> Vec<f64> {
    // Phases differ a thousandfold in their launches: widths follow the root.
    let widths: Vec<f64> = plan
        .map
        .columns
        .iter()
        .map(|c| ((c.to - c.from) as f64).sqrt())
        .collect();
    let all: f64 = widths.iter().sum();
    let mut edges = vec![LEFT];
    for width in &widths {
        let last = edges[edges.len() - 1];
        edges.push(last + width / all.max(1e-9) * (RIGHT - LEFT));
    }
    edges
}

/// One picture of a range of memory.
#[derive(Clone, Copy)]
struct Drawing<'a> {
    plan: &'a Plan,
    edges: &'a [f64],
    /// Bytes at the lower and the upper edge.
    bytes: (f64, f64),
    /// The upper and the lower edge.
    pixels: (f64, f64),
}

impl Drawing<'_> {
    fn x(&self, time: u64) -> f64 {
        let columns = &self.plan.map.columns;
        let Some(i) = columns.iter().rposition(|c| c.from <= time) else {
            return LEFT;
        };
        let c = &columns[i];
        let share = (time - c.from) as f64 / (c.to - c.from).max(1) as f64;
        self.edges[i] + share.min(1.0) * (self.edges[i + 1] - self.edges[i])
    }

    fn y(&self, bytes: f64) -> f64 {
        self.pixels.1 - (bytes - self.bytes.0) / self.per_pixel()
    }

    fn per_pixel(&self) -> f64 {
        (self.bytes.1 - self.bytes.0) / (self.pixels.1 - self.pixels.0)
    }

    /// First byte of a page, over all arenas.
    fn base(&self, block: &Block) -> u64 {
        let before = |pages: &[u64]| pages.iter().take(block.page).sum::<u64>();
        let (states, activations) = (&self.plan.state_pages, &self.plan.activation_pages);
        match self.plan.map.groups[block.group].arena {
            "states" => before(states),
            "activations" => states.iter().sum::<u64>() + before(activations),
            _ => {
                let below = states.iter().chain(activations).sum::<u64>();
                below + before(&self.plan.upload_pages)
            }
        }
    }

    fn colour(&self, group: usize) -> &'static str {
        let groups = &self.plan.map.groups;
        let arena = groups[group].arena;
        let place = groups[..group].iter().filter(|g| g.arena == arena).count();
        match arena {
            "states" => STATES[place % STATES.len()],
            "activations" => ACTIVATIONS[place % ACTIVATIONS.len()],
            _ => UPLOADS,
        }
    }

    fn blocks(&self, out: &mut String) {
        let line_bytes = LEAST * self.per_pixel();
        let mut small: Vec<Strip> = Vec::new();
        for block in &self.plan.map.blocks {
            let from = (self.base(block) + block.start) as f64;
            if from < self.bytes.0 || from >= self.bytes.1 {
                continue;
            }
            let (left, right) = (self.x(block.from), self.x(block.to));
            let (high, low) = (self.y(from + block.bytes as f64), self.y(from));
            if low - high < LEAST {
                let line = ((from - self.bytes.0) / line_bytes) as u64;
                small.push(((line, block.group), left, right));
                continue;
            }
            let name = format!("{}: {}", self.plan.map.groups[block.group].name, gigabytes(block.bytes));
            self.rectangle(out, block.group, (left, right), (high, low), &name);
        }
        for ((line, group), left, right) in joined(small) {
            let low = self.pixels.1 - line as f64 * LEAST;
            let name = format!("{}: small ones", self.plan.map.groups[group].name);
            self.rectangle(out, group, (left, right), (low - LEAST, low), &name);
        }
    }

    fn rectangle(&self, out: &mut String, group: usize, x: (f64, f64), y: (f64, f64), name: &str) {
        let height = y.1 - y.0;
        let border = if height > 4.0 {
            "stroke=\"white\" stroke-width=\"0.5\""
        } else {
            ""
        };
        put(
            out,
            format_args!(
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{}\" {border}><title>{}\
                 </title></rect>\n",
                x.0,
                y.0,
                (x.1 - x.0).max(0.6),
                self.colour(group),
                escape(name)
            ),
        );
    }

    /// The background: every other phase is grey.
    fn stripes(&self, out: &mut String) {
        let (top, bottom) = self.pixels;
        for sides in self.edges.windows(2).step_by(2) {
            put(
                out,
                format_args!(
                    "<rect x=\"{:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#f3f3f3\"/>\n",
                    sides[0],
                    sides[1] - sides[0],
                    bottom - top
                ),
            );
        }
    }

    fn phases(&self, out: &mut String) {
        let y = self.pixels.0 - 6.0;
        for (sides, column) in self.edges.windows(2).zip(&self.plan.map.columns) {
            if sides[1] - sides[0] > 10.0 {
                let x = (sides[0] + sides[1]) / 2.0;
                let turn = format!("transform=\"rotate(-30 {x:.1} {y:.1})\"");
                text(out, x, y, "start", &turn, column.name);
            }
        }
    }

    fn axis(&self, out: &mut String) {
        let step = nice((self.bytes.1 - self.bytes.0) / 10.0);
        let mut at = (self.bytes.0 / step).ceil() * step;
        while at <= self.bytes.1 {
            let y = self.y(at);
            put(
                out,
                format_args!("<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"black\" stroke-opacity=\"0.15\"/>\n"),
            );
            text(out, LEFT - 8.0, y + 4.0, "end", "", &gigabytes(at as u64));
            at += step;
        }
    }

    /// A line above an arena.
    fn edge_of(&self, out: &mut String, bytes: u64, name: &str) {
        let y = self.y(bytes as f64);
        put(
            out,
            format_args!("<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"black\"><title>{name}</title></path>\n"),
        );
    }

    fn limit(&self, out: &mut String, limit: u64) {
        let inside = limit as f64 <= self.bytes.1;
        let y = if inside { self.y(limit as f64) } else { self.pixels.0 };
        put(
            out,
            format_args!(
                "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"red\" stroke-width=\"2\" stroke-dasharray=\"8 5\"/>\n"
            ),
        );
        let above = if inside { "" } else { " (far above)" };
        let label = format!("{} may be used{above}", gigabytes(limit));
        text(out, RIGHT - 4.0, y - 5.0, "end", "fill=\"red\"", &label);
    }

    fn legend(&self, out: &mut String) {
        let x = RIGHT + 24.0;
        let mut y = self.pixels.0;
        let line = |out: &mut String, y: f64, colour: &str, name: &str| {
            put(
                out,
                format_args!(
                    "<rect x=\"{x}\" y=\"{:.1}\" width=\"14\" height=\"14\" fill=\"{colour}\"/>\n",
                    y - 11.0
                ),
            );
            text(out, x + 20.0, y, "start", "", name);
        };
        let groups = &self.plan.map.groups;
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.sort_by_key(|&i| u64::MAX - groups[i].bytes);
        let mut named: Vec<usize> = order.into_iter().take(NAMED).collect();
        named.sort_unstable();
        for group in named {
            let label = format!("{} · {}", gigabytes(groups[group].bytes), groups[group].name);
            line(out, y, self.colour(group), &label);
            y += 24.0;
        }
    }
}

/// A stretch of a line of one group: (line, group), left, right.
type Strip = ((u64, usize), f64, f64);

/// Stretches of one line and group that touch, as one.
fn joined(mut parts: Vec<Strip>) -> Vec<Strip> {
    parts.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut out: Vec<Strip> = Vec::new();
    for part in parts {
        match out.last_mut() {
            Some(last) if last.0 == part.0 && part.1 <= last.2 + 0.5 => last.2 = last.2.max(part.2),
            _ => out.push(part),
        }
    }
    out
}

/// The next of 1, 2, 5 times a power of ten.
fn nice(x: f64) -> f64 {
    let power = 10f64.powf(x.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|s| s * power);
    steps.into_iter().find(|s| *s >= x).unwrap_or(10.0 * power)
}

/// Bytes in GB or MB.
fn gigabytes(bytes: u64) -> String {
    match bytes as f64 {
        0.0 => "0".into(),
        b if b >= 1e10 => format!("{:.1} GB", b / 1e9),
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} kB", b / 1e3),
    }
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, more: &str, what: &str) {
    put(
        out,
        format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{}</text>\n",
            escape(what)
        ),
    );
}

fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(what);
}
