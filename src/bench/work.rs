//! One op with operands on one device: what is launched, what must come out, and what it costs at least.
//!
//! A case makes its work in a [`Room`]: operands come from it, so that the room knows what has to be filled before a
//! launch, what the launch must overwrite, and how many bytes there are.

use crate::gpu::{DType, Gpu, Result, Shape, Tensor};
use crate::ops::fill;
use crate::ops::noise::Noise;

use super::check::Expected;

/// An input that is random on the device and known on the host.
#[derive(Clone)]
pub struct Operand {
    pub tensor: Tensor,
    noise: Noise,
}

impl Operand {
    /// Element `i` of the flat tensor, as it was before the launch.
    pub fn at(&self, i: usize) -> f64 {
        self.noise.at(i)
    }
}

/// Makes the operands of one copy of the work.
pub struct Room<'a> {
    pub gpu: &'a Gpu,
    /// Storage of activations and weights.
    pub dtype: DType,
    seed: u32,
    moved: u64,
    held: u64,
    inputs: Vec<Operand>,
    in_place: Vec<Operand>,
    outputs: Vec<Tensor>,
    partial: Vec<Tensor>,
    zeroed: Vec<Tensor>,
}

impl<'a> Room<'a> {
    /// A room whose numbers follow from `seed`. Nothing is written to the device before [`Work::prepare`].
    pub fn new(gpu: &'a Gpu, dtype: DType, seed: u32) -> Room<'a> {
        Room {
            gpu,
            dtype,
            seed: seed.wrapping_mul(0x61C8_8647),
            moved: 0,
            held: 0,
            inputs: Vec::new(),
            in_place: Vec::new(),
            outputs: Vec::new(),
            partial: Vec::new(),
            zeroed: Vec::new(),
        }
    }

    fn make(&mut self, dtype: DType, shape: Shape, scale: f32, shift: f32) -> Operand {
        self.seed = self.seed.wrapping_add(0x9E37_79B9);
        let (seed, tensor) = (self.seed, self.gpu.alloc(dtype, shape));
        self.held += tensor.bytes();
        let noise = Noise {
            seed,
            dtype,
            scale,
            shift,
        };
        Operand { tensor, noise }
    }

    /// An input in the type of the step, uniform within ± `scale` (a power of two).
    pub fn input(&mut self, shape: impl Into<Shape>, scale: f32) -> Operand {
        self.input_as(self.dtype, shape, scale, 0.0)
    }

    /// An f32 input, uniform within `shift` ± `scale`.
    pub fn input_f32(&mut self, shape: impl Into<Shape>, scale: f32, shift: f32) -> Operand {
        self.input_as(DType::F32, shape, scale, shift)
    }

    /// An input of a type.
    pub fn input_as(&mut self, dtype: DType, shape: impl Into<Shape>, scale: f32, shift: f32) -> Operand {
        let operand = self.make(dtype, shape.into(), scale, shift);
        self.moved += operand.tensor.bytes();
        self.inputs.push(operand.clone());
        operand
    }

    /// An operand that the launch reads and overwrites.
    pub fn in_place(&mut self, dtype: DType, shape: impl Into<Shape>, scale: f32, shift: f32) -> Operand {
        let operand = self.make(dtype, shape.into(), scale, shift);
        self.moved += 2 * operand.tensor.bytes();
        self.in_place.push(operand.clone());
        operand
    }

    /// An output in the type of the step. Every element must be written.
    pub fn output(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.output_as(self.dtype, shape)
    }

    /// An output of a type.
    pub fn output_as(&mut self, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        let tensor = self.gpu.alloc(dtype, shape);
        self.held += tensor.bytes();
        self.moved += tensor.bytes();
        self.outputs.push(tensor.clone());
        tensor
    }

    /// An output of which the launch writes a part.
    pub fn partial(&mut self, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        let tensor = self.gpu.alloc(dtype, shape);
        self.held += tensor.bytes();
        self.moved += tensor.bytes();
        self.partial.push(tensor.clone());
        tensor
    }

    /// An operand that is zero, and that the launch reads and overwrites.
    pub fn zeroed(&mut self, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        let tensor = self.gpu.alloc(dtype, shape);
        self.held += tensor.bytes();
        self.moved += 2 * tensor.bytes();
        self.zeroed.push(tensor.clone());
        tensor
    }

    /// A table of whole numbers.
    pub fn table(&mut self, values: &[u32], shape: impl Into<Shape>) -> Tensor {
        let tensor = self.gpu.upload_u32(values, shape);
        self.held += tensor.bytes();
        self.moved += tensor.bytes();
        tensor
    }

    /// Bytes of all operands so far, those in place twice.
    pub fn moved(&self) -> f64 {
        self.moved as f64
    }

    /// The finished work. By default it moves every operand once, those in place twice, and its FLOPs do not count.
    pub fn work(
        self,
        launch: impl Fn(&Gpu) + Send + Sync + 'static,
        expected: impl IntoIterator<Item = Expected>,
    ) -> Work {
        Work {
            launch: Box::new(launch),
            flops: 0.0,
            bytes: self.moved as f64,
            held: self.held,
            inputs: self.inputs,
            in_place: self.in_place,
            outputs: self.outputs,
            partial: self.partial,
            zeroed: self.zeroed,
            expected: expected.into_iter().collect(),
        }
    }
}

/// One copy of the work of a case.
pub struct Work {
    launch: Box<dyn Fn(&Gpu) + Send + Sync>,
    /// Useful floating point operations of one launch.
    pub flops: f64,
    /// Bytes that one launch reads and writes at least.
    pub bytes: f64,
    /// Bytes of memory that it holds.
    pub held: u64,
    inputs: Vec<Operand>,
    in_place: Vec<Operand>,
    outputs: Vec<Tensor>,
    partial: Vec<Tensor>,
    zeroed: Vec<Tensor>,
    pub(super) expected: Vec<Expected>,
}

/// Not a number; for whole numbers one that no table here contains.
fn poison(tensor: &Tensor) -> f32 {
    if tensor.dtype() == DType::U32 { 4e9 } else { f32::NAN }
}

impl Work {
    /// With this many FLOPs.
    #[must_use]
    pub fn flops(self, flops: f64) -> Work {
        Work { flops, ..self }
    }

    /// With this many bytes moved at least, where not every operand is touched whole.
    #[must_use]
    pub fn bytes(self, bytes: f64) -> Work {
        Work { bytes, ..self }
    }

    /// Writes the inputs.
    pub fn prepare(&self, gpu: &Gpu) {
        for input in &self.inputs {
            input.noise.fill(gpu, &input.tensor);
        }
        self.reset(gpu);
    }

    /// Puts poison where the launch must write, and the first values where it writes in place.
    pub fn reset(&self, gpu: &Gpu) {
        for output in self.outputs.iter().chain(&self.partial) {
            fill::set(gpu, output, poison(output));
        }
        for tensor in &self.zeroed {
            fill::zero(gpu, tensor);
        }
        for operand in &self.in_place {
            operand.noise.fill(gpu, &operand.tensor);
        }
    }

    /// Launches it once.
    pub fn launch(&self, gpu: &Gpu) {
        (self.launch)(gpu);
    }

    /// What is launched, alone: it may go to the thread that feeds the device.
    pub(super) fn launcher(&self) -> &(dyn Fn(&Gpu) + Send + Sync) {
        &*self.launch
    }

    /// Compares what the last launch since [`Work::reset`] has left with the reference.
    ///
    /// # Errors
    /// A device that failed.
    pub fn check(&self, gpu: &Gpu) -> Result<super::check::Check> {
        super::check::check(gpu, &self.outputs, &self.expected)
    }
}
