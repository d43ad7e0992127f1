//! Images to tokens: cut into p × p patches, project, add position embeddings.
//!
//! `image [n, H, W, 3]` (NHWC) becomes `patches [n·t, 3 p²]` in row-major patch order, each patch flattened like a
//! `[3, p, p]` kernel; `y = patches · weightᵀ + bias + position[token]`, `weight [D, 3, p, p]`, `position [t, D]`.
//! The image needs no gradient in training; [`backward_image`] exists for the op's own sake.
//! Source: SigLIP's patch convolution with stride p.
//!
//! Cost: `2·n·t·3p²·D` FLOPs; cutting moves the image once.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::column_sum::{self, Term};
use super::gemm::{self, RowMap};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup.
const UNITS: usize = 64;

/// Cuts `image` into `patches`.
pub fn cut(gpu: &Gpu, image: &Tensor, patch: usize, patches: &Tensor) {
    run(gpu, image, patch, patches, false);
}

/// Puts the gradient of patches back into the image's places.
pub fn uncut(gpu: &Gpu, dpatches: &Tensor, patch: usize, dimage: &Tensor) {
    run(gpu, dimage, patch, dpatches, true);
}

/// `y = patches · weightᵀ + bias (+ position)`
pub fn forward(gpu: &Gpu, patches: &Tensor, weight: &Tensor, bias: &Tensor, position: Option<&Tensor>, y: &Tensor) {
    let weight = flat(weight);
    let mut product = gemm::nt(patches, &weight).bias(bias);
    if let Some(position) = position {
        product = product.extra(position, RowMap::Modulo(position.dim(0)));
    }
    product.to(gpu, y);
}

/// `dweight += dyᵀ patches`, `dbias += Σ dy`, `dposition[t] += Σ_images dy`; empty gradients are left out.
pub fn backward(
    gpu: &Gpu,
    patches: &Tensor,
    dy: &Tensor,
    dweight: &Tensor,
    dbias: &Tensor,
    dposition: Option<&Tensor>,
) {
    if !dweight.is_empty() {
        gemm::tn(dy, patches).add_to(gpu, &flat(dweight));
    }
    if !dbias.is_empty() {
        column_sum::accumulate(gpu, Term::Plain { dy }, dbias);
    }
    if let Some(dposition) = dposition.filter(|d| !d.is_empty()) {
        let images = dy.dim(0) / dposition.dim(0);
        let per_image = dy.view([images, dposition.len()]);
        column_sum::accumulate(gpu, Term::Plain { dy: &per_image }, &dposition.view([dposition.len()]));
    }
}

/// `dimage` from `dy`.
pub fn backward_image(gpu: &Gpu, dy: &Tensor, weight: &Tensor, patch: usize, dimage: &Tensor) {
    let weight = flat(weight);
    let dpatches = gpu.f32([dy.dim(0), weight.dim(1)]);
    gemm::nn(dy, &weight).to(gpu, &dpatches);
    uncut(gpu, &dpatches, patch, dimage);
}

/// `[D, 3, p, p]` as `[D, 3p²]`.
fn flat(weight: &Tensor) -> Tensor {
    weight.view([weight.dim(0), weight.len() / weight.dim(0)])
}

fn run(gpu: &Gpu, image: &Tensor, patch: usize, patches: &Tensor, back: bool) {
    let [_, height, width, channels] = *image.shape() else {
        panic!("an image is [n, H, W, 3], not {image:?}")
    };
    assert!(channels == 3 && height.is_multiple_of(patch) && width.is_multiple_of(patch));
    assert_eq!(patches.len(), image.len());
    let types = [image.dtype().storage(), patches.dtype().storage()];
    launch!(
        gpu,
        Cost::moving("patch_cut", image.bytes() + patches.bytes()),
        cut_kernel,
        gpu.cubes(image.len(), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [image, patches],
        (image.len(), height, width, patch, back, types),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn cut_kernel<I: Numeric, P: Numeric>(
    image: &mut View<I>,
    patches: &mut View<P>,
    n: usize,
    height: usize,
    width: usize,
    patch: usize,
    #[comptime] back: bool,
    #[define(I, P)] _types: [StorageType; 2],
) {
    // One unit per element, in the order of `patches`: (image, patch row, patch column, channel, y, x).
    let at = ABSOLUTE_POS;
    if at < n {
        let patch = patch * 1;
        let x = at % patch;
        let y = at / patch % patch;
        let c = at / (patch * patch) % 3;
        let token = at / (3 * patch * patch);
        let across = width / patch;
        let per_image = across * (height / patch);
        let picture = token / per_image;
        let place = token % per_image;
        let row = place / across * patch + y;
        let col = place % across * patch + x;
        let pixel = ((picture * height + row) * width + col) * 3 + c;
        if comptime!(back) {
            image.set(pixel, I::cast_from(patches.get(at)));
        } else {
            patches.set(at, P::cast_from(image.get(pixel)));
        }
    }
}
