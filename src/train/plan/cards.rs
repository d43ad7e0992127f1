//! The fastest settings that fit, for cards of usual sizes and ways to train.

use super::fit::{self, Alternative, Search, Setting, Tried};
use crate::config::Config;
use crate::train::error::Result;

/// Memory of cards in GB.
pub const CARDS: [u64; 7] = [8, 16, 24, 40, 48, 80, 141];

/// A way to train: its name, and the settings that make it.
type Way = (&'static str, &'static [(&'static str, &'static str)]);

const WAYS: [Way; 3] = [
    ("everything", &[]),
    ("vision, adapters, critics", fit::LORA),
    ("action expert, critics", fit::EXPERT),
];

/// The best that a card can do.
#[derive(Clone, Debug)]
pub struct Card {
    /// In GB.
    pub memory: u64,
    pub way: &'static str,
    /// Settings that make the way.
    pub of_way: Vec<Setting>,
    /// The fastest settings that fit, or the least bytes it would need.
    pub best: std::result::Result<Alternative, u64>,
}

/// The fastest settings of every card and way, where `share` of a card's memory may be used.
///
/// # Errors
/// Settings that cannot be planned.
pub fn cards(config: &Config, share: f64, prompt_tokens: usize) -> Result<Vec<Card>> {
    let mut cards = Vec::new();
    for (way, settings) in WAYS {
        let mut config = config.clone();
        for (key, value) in settings {
            config.set(key, value)?;
        }
        config.validate()?;
        let usual = fit::planning(None);
        let search = Search {
            config: &config,
            caps: &usual,
            prompt_tokens,
        };
        let sides = search.sides(Tried::All)?;
        let least = sides.least_bytes();
        for memory in CARDS {
            let bytes = memory * 1_000_000_000;
            let caps = fit::planning(Some(bytes));
            let search = Search { caps: &caps, ..search };
            let best = search.pick(&sides, (bytes as f64 * share) as u64)?;
            cards.push(Card {
                memory,
                way,
                of_way: fit::owned(settings),
                best: best.ok_or(least),
            });
        }
    }
    cards.sort_by_key(|card| card.memory);
    Ok(cards)
}
