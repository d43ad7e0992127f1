//! The one door to a kernel: check, count, run.

use cubecl::prelude::*;

use super::{Cost, Gpu, GpuError, MOST_ELEMENTS, Tensor};

/// Launches after which a host waits for the thread that feeds a software device: half of what cubecl's channel holds.
const PACE: u64 = 16;

/// A tensor inside a kernel: element `i` of the view is `data[at + i]`, because operands are bound at aligned
/// addresses and views may start anywhere.
#[derive(CubeType, CubeLaunch)]
pub struct View<E: CubePrimitive> {
    data: Array<E>,
    at: usize,
}

#[cube]
impl<E: CubePrimitive> View<E> {
    /// Element `i`.
    pub fn get(&self, i: usize) -> E {
        self.data[self.at + i]
    }

    /// Sets element `i`.
    pub fn set(&mut self, i: usize, value: E) {
        self.data[self.at + i] = value;
    }

    /// First element of the view: loops add to it once and then use [`View::raw`], because reading it is a load.
    pub fn start(&self) -> usize {
        self.at
    }

    /// Element `i` of the bound range.
    pub fn raw(&self, i: usize) -> E {
        self.data[i]
    }

    /// Sets element `i` of the bound range.
    pub fn raw_set(&mut self, i: usize, value: E) {
        self.data[i] = value;
    }
}

/// Launches a `#[cube(launch_unchecked)]` kernel whose parameters are: views, then scalars and comptime values.
///
/// `launch!(gpu, cost, kernel, count, dim, [tensors…], (scalars…))`. Does nothing after an error of the device, and
/// on the null device everything but run.
macro_rules! launch {
    ($gpu:expr, $cost:expr, $kernel:ident, $count:expr, $dim:expr, [$($t:expr),* $(,)?], ($($s:expr),* $(,)?) $(,)?) => {{
        let gpu: &$crate::gpu::Gpu = $gpu;
        let cost: $crate::gpu::Cost = $cost;
        let (count, dim): (cubecl::prelude::CubeCount, cubecl::prelude::CubeDim) = ($count, $dim);
        if gpu.admit(&cost, &[$(&$t),*], &count, &dim) {
            gpu.launches(stringify!($kernel));
            gpu.before(&[$(&$t),*]);
            // SAFETY: kernels guard every index by the sizes they are given, and the sizes come from the tensors.
            macro_rules! on {
                ($client:expr, $runtime:ty) => {
                    gpu.run(&cost, $client, || unsafe {
                        $kernel::launch_unchecked::<$runtime>(
                            $client,
                            count.clone(),
                            dim,
                            $($crate::gpu::launch::ViewLaunch::new($t.array_arg::<$runtime>(), $t.at()),)*
                            $($s,)*
                        )
                    })
                };
            }
            match gpu.backend() {
                $crate::gpu::Backend::Wgpu(c) => on!(c, cubecl_wgpu::WgpuRuntime),
                $crate::gpu::Backend::Cuda(c) => on!(c, cubecl_cuda::CudaRuntime),
                $crate::gpu::Backend::Dry(c) => on!(c, $crate::gpu::CudaDry),
                $crate::gpu::Backend::DryWgpu(c) => on!(c, $crate::gpu::WgpuDry),
                $crate::gpu::Backend::Null => gpu.count(&cost, std::time::Duration::ZERO),
            }
            gpu.after(cost.op, &[$(&$t),*]);
        }
    }};
}
pub(crate) use launch;

impl Gpu {
    /// Whether a launch may go ahead: nothing failed before, something to do, operands and geometry within limits.
    pub(crate) fn admit(&self, cost: &Cost, operands: &[&Tensor], count: &CubeCount, dim: &CubeDim) -> bool {
        if self.fault().is_some() {
            return false;
        }
        match self.refusal(cost.op, operands, count, dim) {
            None => !matches!(
                count,
                CubeCount::Static(0, ..) | CubeCount::Static(_, 0, _) | CubeCount::Static(.., 0)
            ),
            Some(error) => {
                self.fail(error);
                false
            }
        }
    }

    /// Why a launch must not go ahead. The driver's own checks come too late: it drops the launch, and reads go on.
    fn refusal(&self, op: &'static str, operands: &[&Tensor], count: &CubeCount, dim: &CubeDim) -> Option<GpuError> {
        let caps = self.caps();
        let device = || caps.name.clone();
        for t in operands {
            if !caps.stores(t.dtype()) {
                return Some(GpuError::Dtype {
                    op,
                    dtype: t.dtype().name(),
                    device: device(),
                });
            }
            if t.bound_bytes() > caps.max_binding_bytes {
                let (bytes, limit) = (t.bound_bytes(), caps.max_binding_bytes);
                return Some(GpuError::BindingTooLarge {
                    op,
                    bytes,
                    limit,
                    device: device(),
                });
            }
        }
        let geometry = |what, asked: u64, limit: u64| {
            (asked > limit).then(|| GpuError::Geometry {
                op,
                what,
                asked,
                limit,
                device: device(),
            })
        };
        // Indices in kernels are 32 bits wide on every device: elements of an operand, with room to round up to whole
        // workgroups of vectors, and positions of units.
        let elements = |t: &&Tensor| t.bound_bytes() / t.dtype().bytes();
        let most = operands.iter().map(elements).max().unwrap_or(0);
        let cubes = match count {
            CubeCount::Static(x, y, z) => [*x, *y, *z],
            CubeCount::Dynamic(_) => [0; 3],
        };
        let units = cubes
            .iter()
            .fold(dim.num_elems() as u64, |n, &c| n.saturating_mul(c.into()));
        geometry("elements in one operand", most, MOST_ELEMENTS)
            .or_else(|| geometry("units in all workgroups", units, u32::MAX.into()))
            .or_else(|| geometry("units in a workgroup", dim.num_elems() as u64, caps.max_units as u64))
            .or_else(|| geometry("workgroups along x", cubes[0] as u64, caps.max_cubes[0] as u64))
            .or_else(|| geometry("workgroups along y", cubes[1] as u64, caps.max_cubes[1] as u64))
            .or_else(|| geometry("workgroups along z", cubes[2] as u64, caps.max_cubes[2] as u64))
    }

    /// Runs and counts one launch; when profiling, alone and timed.
    pub(crate) fn run<R: Runtime>(&self, cost: &Cost, client: &ComputeClient<R>, launch: impl FnOnce() + Send) {
        self.count_launch();
        if !self.profiling() {
            launch();
            self.count(cost, std::time::Duration::ZERO);
            return self.pace(client);
        }
        if let Some(time) = self.span(client, cost.op, launch) {
            self.count(cost, time);
        }
    }

    /// Keeps a host that issues faster than a software device computes from spinning in front of cubecl's full channel,
    /// which would take a core from the device: waits, asleep, until the device's thread has taken in all launches so
    /// far. It does not wait for the work itself.
    fn pace<R: Runtime>(&self, client: &ComputeClient<R>) {
        if self.caps().software && self.book().launches().is_multiple_of(PACE) {
            // What failed is in the fault already, or is reported by the next read.
            let _ = self.settle(client.flush());
        }
    }

    /// Workgroups for `n` units of work with `per_cube` units each, folded into two dimensions where one is too
    /// short. Kernels use `ABSOLUTE_POS` or `CUBE_POS` and must check the bound.
    pub(crate) fn cubes(&self, n: usize, per_cube: usize) -> CubeCount {
        // More than can be counted are more than any device takes: the launch is refused.
        let cubes = u32::try_from(n.div_ceil(per_cube)).unwrap_or(u32::MAX);
        let limit = self.caps().max_cubes[0].min(65535);
        if cubes <= limit {
            return CubeCount::Static(cubes, 1, 1);
        }
        CubeCount::Static(limit, cubes.div_ceil(limit), 1)
    }
}
