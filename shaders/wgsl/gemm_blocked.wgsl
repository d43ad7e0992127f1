
// C = A · B in tiles of 128 × 128, an 8 × 8 block of which each of 256 units keeps in registers. Slices 8 deep lie twice in
// workgroup memory: while one is multiplied, the next is on its way, in registers. 16 KiB, what WebGPU promises.
//
// A unit's rows and columns are two runs of four, 64 apart, so that it reads both operands by vectors and 32 neighbouring
// units read 4 × 8 different ones.

const SLICE = 8u;
// Vectors of one slice.
const VECTORS = 256u;

@compute @workgroup_size(256)
fn gemm_blocked(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) unit: u32) {
    let p = locate(group.z);
    let tile = tile_of(group);
    let m0 = tile.x * 128u;
    let n0 = tile.y * 128u;
    let x = unit % 8u + unit / 32u % 2u * 8u;
    let y = unit / 8u % 4u + unit / 64u * 4u;
    var s: array<vec4<f32>, 16>;

    // A tile beyond a smaller group has nothing to add up.
    let slices = select((p.k + SLICE - 1u) / SLICE, 0u, m0 >= p.m || n0 >= p.n);
    var next_a = fetch_a(p, m0, 0u, unit);
    var next_b = fetch_b(p, n0, 0u, unit);
    keep_a(0u, unit, next_a);
    keep_b(0u, unit, next_b);
    workgroupBarrier();
    for (var slice = 0u; slice < slices; slice++) {
        let more = slice + 1u < slices;
        if (more) {
            next_a = fetch_a(p, m0, (slice + 1u) * SLICE, unit);
            next_b = fetch_b(p, n0, (slice + 1u) * SLICE, unit);
        }
        let buffer = slice % 2u * VECTORS;
        for (var r = 0u; r < SLICE; r++) {
            let a0 = tile_a[buffer + r * 32u + y];
            let a1 = tile_a[buffer + r * 32u + 16u + y];
            let b0 = tile_b[buffer + r * 32u + x];
            let b1 = tile_b[buffer + r * 32u + 16u + x];
$MULTIPLY        }
        if (more) {
            keep_a(VECTORS - buffer, unit, next_a);
            keep_b(VECTORS - buffer, unit, next_b);
        }
        workgroupBarrier();
    }
    // One place for the epilogue, which is long: sum 2 i + j is row i of the unit, run of columns j.
    for (var t = 0u; t < 16u; t++) {
        var sum = vec4<f32>();
        switch (t) {
$STORE            default: {}
        }
        let i = t / 2u;
        finish(p, m0 + i / 4u * 64u + y * 4u + i % 4u, n0 + t % 2u * 64u + x * 4u, sum);
    }
}
