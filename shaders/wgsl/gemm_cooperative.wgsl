
// C = A · B on matrix units: a workgroup has a tile of C, each of its subgroups a block of it in cooperative matrices of
// SIDE × SIDE (f32). Slices of both operands, 32 deep, lie in workgroup memory as they lie in memory; the next one is on
// its way, in registers, while one is multiplied.
//
// Subgroups may have any size. Are there fewer of them than blocks, the tile is done in several passes; are there more, the
// last ones repeat the last block and keep nothing. Control flow around the matrices is the same for all units, as their
// operations ask.

alias MatrixA = $MATRIX<$T, A>;
alias MatrixB = $MATRIX<$T, B>;
alias MatrixC = $MATRIX<f32, C>;

const UNITS = $UNITSu;
const TILE = $TILEu;
const DEPTH = 32u;
const SIDE = $SIDEu;
// Elements of a matrix.
const WHOLE = SIDE * SIDE;
const BLOCKS = $BLOCKSu;
// Blocks side by side, and their sizes.
const ACROSS = $ACROSSu;
const ROWS = $BLOCK_ROWSu;
const COLUMNS = $BLOCK_COLUMNSu;
const MATRICES_DOWN = $MATRICES_DOWNu;
const MATRICES_ACROSS = $MATRICES_ACROSSu;

// A matrix of sums for every subgroup, on its way to memory.
var<workgroup> sums: array<f32, $SUMS>;

@compute @workgroup_size($UNITS)
fn gemm_cooperative(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) unit: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let p = locate(group.z);
    let tile = tile_of(group);
    let m0 = tile.x * TILE;
    let n0 = tile.y * TILE;
    // A tile beyond a smaller group has nothing to add up.
    let slices = select((p.k + DEPTH - 1u) / DEPTH, 0u, m0 >= p.m || n0 >= p.n);
    for (var pass_ = 0u; pass_ < BLOCKS; pass_ += subgroups) {
        let block = min(pass_ + subgroup, BLOCKS - 1u);
        let row0 = block / ACROSS * ROWS;
        let col0 = block % ACROSS * COLUMNS;
        for (var i = unit; i < WHOLE; i += UNITS) {
            sums[i] = 0.0;
        }
        workgroupBarrier();
$ZERO
        var next_a = fetch_a(p, m0, 0u, unit);
        var next_b = fetch_b(p, n0, 0u, unit);
        for (var slice = 0u; slice < slices; slice++) {
            workgroupBarrier();
            keep_a(unit, next_a);
            keep_b(unit, next_b);
            workgroupBarrier();
            if (slice + 1u < slices) {
                next_a = fetch_a(p, m0, (slice + 1u) * DEPTH, unit);
                next_b = fetch_b(p, n0, (slice + 1u) * DEPTH, unit);
            }
            for (var r = 0u; r < DEPTH; r += SIDE) {
$MULTIPLY
            }
        }
        let live = min(subgroups, BLOCKS - pass_);
        for (var t = 0u; t < MATRICES_DOWN * MATRICES_ACROSS; t++) {
            workgroupBarrier();
            if (subgroup < live) {
                switch (t) {
$STORE                    default: {}
                }
            }
            workgroupBarrier();
            put(p, m0, n0, pass_, live, t / MATRICES_ACROSS * SIDE, t % MATRICES_ACROSS * SIDE, unit);
        }
        workgroupBarrier();
    }
}

// Stores what the first `live` subgroups have put into `sums`: the matrix at (row, col) of each one's block.
fn put(p: Place, m0: u32, n0: u32, first: u32, live: u32, row: u32, col: u32, unit: u32) {
    for (var e = unit; e < live * (WHOLE / 4u); e += UNITS) {
        let block = first + e / (WHOLE / 4u);
        let inner = e % (WHOLE / 4u) * 4u;
        let at = e * 4u;
        finish(
            p,
            m0 + block / ACROSS * ROWS + row + inner / SIDE,
            n0 + block % ACROSS * COLUMNS + col + inner % SIDE,
            vec4<f32>(sums[at], sums[at + 1u], sums[at + 2u], sums[at + 3u]),
        );
    }
}
