//! The task: a point walks up a square to a target that only the picture shows. In the middle lies a swamp.
//!
//! The square is [-1, 1]², y up; the target lies on its upper edge. The swamp can be crossed, but each step that ends in
//! it sinks the walker with probability [`SINK`]. The way around is longer and safe. Most demonstrators walk straight
//! on, some go around, some get lost first. So a good part of the *successful* demonstrations were merely lucky: to
//! clone them means to walk into the swamp, and only the failures tell what that is worth.

use acrlpd::rng::Key;

/// Length of the longest step.
pub const SPEED: f64 = 0.15;
/// Steps after which an episode is given up.
pub const TIME_LIMIT: usize = 28;
/// Side of the picture, in pixels.
pub const PIXELS: usize = 28;
/// Distance at which the target is reached.
const REACH: f64 = 0.25;
/// Radius of the swamp around the origin.
const SWAMP: f64 = 0.4;
/// Probability to sink in a step that ends in the swamp.
const SINK: f64 = 0.25;
/// Shares of the demonstrators; the rest are careful.
const CARELESS: f64 = 0.55;
const LOST: f64 = 0.2;
/// Where the careful ones pass the swamp, to the left or to the right of its centre.
const DETOUR: f64 = 0.75;
/// Standard deviation of a demonstrator's step, per coordinate.
const TREMBLE: f64 = 0.02;

pub type Point = [f64; 2];

/// What a step led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Walking,
    Reached,
    Sunk,
    Late,
}

/// One episode under way.
#[derive(Clone, Debug)]
pub struct World {
    pub at: Point,
    pub steps: usize,
    pub outcome: Outcome,
    target: Point,
    luck: Key,
}

impl World {
    /// The episode that `key` names: start below the swamp, target above it, and its luck.
    pub fn new(key: Key) -> World {
        World {
            at: [key.range(0, -0.5, 0.5), key.range(1, -0.9, -0.7)],
            steps: 0,
            outcome: Outcome::Walking,
            target: [key.range(2, -0.5, 0.5), 1.0],
            luck: key.fold(0),
        }
    }

    /// Walks one step.
    pub fn step(&mut self, action: Point) {
        let [dx, dy] = shortened(action);
        self.at = [self.at[0] + dx, self.at[1] + dy].map(|v| v.clamp(-1.0, 1.0));
        self.steps += 1;
        self.outcome = if length(minus(self.at, self.target)) < REACH {
            Outcome::Reached
        } else if length(self.at) < SWAMP && self.luck.uniform(self.steps as u64) < SINK {
            Outcome::Sunk
        } else if self.steps == TIME_LIMIT {
            Outcome::Late
        } else {
            Outcome::Walking
        };
    }

    /// RGB pixels, row by row from the top: swamp red, target green, walker blue on grey.
    pub fn picture(&self) -> Vec<u8> {
        let mut pixels = Vec::with_capacity(PIXELS * PIXELS * 3);
        for (row, column) in (0..PIXELS * PIXELS).map(|i| (i / PIXELS, i % PIXELS)) {
            let to_world = |i: usize| (i as f64 + 0.5) / PIXELS as f64 * 2.0 - 1.0;
            let here = [to_world(column), -to_world(row)];
            // With a soft edge, so that a place between pixels shows too.
            let disc = |centre: Point, radius: f64| {
                let inside = (radius - length(minus(here, centre))) / 0.4 + 0.5;
                (128.0 + 127.0 * inside.clamp(0.0, 1.0)) as u8
            };
            pixels.extend([disc([0.0; 2], SWAMP), disc(self.target, 0.4), disc(self.at, 0.3)]);
        }
        pixels
    }
}

/// How someone shows the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Straight on.
    Careless,
    /// Around the swamp.
    Careful,
    /// By way of any place of the square.
    Lost,
}

/// Someone who shows the task: walks to a place on the way, if there is one, and then to the target.
#[derive(Clone, Debug)]
pub struct Demonstrator {
    pub kind: Kind,
    via: Option<Point>,
    tremble: Key,
}

impl Demonstrator {
    /// The demonstrator that `key` names.
    pub fn new(key: Key) -> Demonstrator {
        let side = if key.uniform(1) < 0.5 { -DETOUR } else { DETOUR };
        let (kind, via) = match key.uniform(0) {
            x if x < CARELESS => (Kind::Careless, None),
            x if x < CARELESS + LOST => (Kind::Lost, Some([key.range(2, -1.0, 1.0), key.range(3, -1.0, 1.0)])),
            _ => (Kind::Careful, Some([side, 0.0])),
        };
        Demonstrator {
            kind,
            via,
            tremble: key.fold(0),
        }
    }

    /// The next step.
    pub fn action(&mut self, world: &World) -> Point {
        self.via = self.via.filter(|via| length(minus(*via, world.at)) > SPEED);
        let way = shortened(minus(self.via.unwrap_or(world.target), world.at));
        let mut noise = [0.0; 2];
        self.tremble.fold(world.steps as u64).normals(&mut noise);
        [0, 1].map(|i| way[i] + TREMBLE * f64::from(noise[i]))
    }
}

/// A step along `v`, no longer than [`SPEED`].
fn shortened(v: Point) -> Point {
    let factor = (SPEED / length(v).max(1e-9)).min(1.0);
    v.map(|x| x * factor)
}

fn minus(a: Point, b: Point) -> Point {
    [a[0] - b[0], a[1] - b[1]]
}

fn length(v: Point) -> f64 {
    f64::hypot(v[0], v[1])
}
