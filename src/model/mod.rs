//! Pure networks: sizes, parameters, forward and backward. No training, no files, no ranks.

pub mod dims;
pub mod params;
pub mod tables;
