//! x
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod gpu;
pub mod model;
pub mod ops;
pub mod rng;
pub mod step;
pub mod verify;
