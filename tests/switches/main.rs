//! Every switch of a training step, on the training fixture's first batch.

mod bench;
mod equal;
mod lora;
mod objective;
mod smoothness;
mod update;
