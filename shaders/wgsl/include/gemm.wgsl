// What the hand-written matrix products share: where a product lies, reading its operands, and what happens between a
// sum and memory. The other half is src/ops/gemm/wgsl.rs, which resolves `#if` lines, fills in the names after `$`, and
// declares the buffers that a form uses.

// Order of the scalars.
const M = 0u;
const N = 1u;
const K = 2u;
const LD_A = 3u;
const LD_B = 4u;
const LD_C = 5u;
const LD_EXTRA = 6u;
const LD_PRE = 7u;
const STRIDE_A = 8u;
const STRIDE_B = 9u;
const STRIDE_C = 10u;
const STRIDE_BIAS = 11u;
const STRIDE_EXTRA = 12u;
const STRIDE_PRE = 13u;
const AT_A = 14u;
const AT_B = 15u;
const AT_C = 16u;
const AT_BIAS = 17u;
const AT_EXTRA = 18u;
const AT_PRE = 19u;
const AT_INDEX = 20u;
const AT_TABLE = 21u;
const PERIOD = 22u;
const SCALE = 23u;
const TILES_M = 24u;
const TILES_N = 25u;

// Rows of tiles that are walked together: the tiles under way at a time then share rows and columns in the cache.
const BAND = 8u;

// One product of the launch: sizes, and first elements of its matrices.
struct Place {
    m: u32,
    n: u32,
    k: u32,
    a: u32,
    b: u32,
    c: u32,
    bias: u32,
    extra: u32,
    pre: u32,
}

fn locate(z: u32) -> Place {
    var p = Place(
        info[M], info[N], info[K], info[AT_A], info[AT_B], info[AT_C], info[AT_BIAS], info[AT_EXTRA], info[AT_PRE]
    );
    p.a += z * info[STRIDE_A];
    p.b += z * info[STRIDE_B];
    p.c += z * info[STRIDE_C];
    p.bias += z * info[STRIDE_BIAS];
    p.extra += z * info[STRIDE_EXTRA];
    p.pre += z * info[STRIDE_PRE];
#if GROUPED
    let row = info[AT_TABLE] + z * 6u;
    p.a = info[AT_A] + table[row];
    p.b = info[AT_B] + table[row + 1u];
    p.c = info[AT_C] + table[row + 2u];
    p.m = table[row + 3u];
    p.n = table[row + 4u];
    p.k = table[row + 5u];
#endif
    return p;
}

// Row and column of the tile of workgroup (x, y).
fn tile_of(group: vec3<u32>) -> vec2<u32> {
    let id = group.y * info[TILES_N] + group.x;
    let first = id / (BAND * info[TILES_N]) * BAND;
    let rows = min(BAND, info[TILES_M] - first);
    let inner = id % (BAND * info[TILES_N]);
    return vec2<u32>(first + inner % rows, inner / rows);
}

fn tanh_of(x: $V) -> $V {
    let y = clamp(x, $V(-9.0), $V(9.0));
    let e = exp(2.0 * y);
    let big = (e - 1.0) / (e + 1.0);
    let y2 = y * y;
    let small = y * (1.0 + y2 * (-0.33333334 + y2 * (0.13333334 - y2 * 0.053968254)));
    return select(big, small, abs(y) < $V(0.15));
}

fn activate(x: $V) -> $V {
#if GELU
    return 0.5 * x * (1.0 + tanh_of(0.7978846 * (x + 0.044715 * x * x * x)));
#endif
#if SWISH
    return x * (0.5 * (tanh_of(0.5 * x) + 1.0));
#endif
#if PLAIN
    return x;
#endif
}

// Finishes and stores $PER neighbouring elements, all inside.
fn store(p: Place, row: u32, col: u32, sum: $V) {
    let at = (p.c + row * info[LD_C] + col) / $PER;
    var y = sum;
#if BIAS
    y += $V(bias[(p.bias + col) / $PER]);
#endif
#if SCALED
    y *= bitcast<f32>(info[SCALE]);
#endif
#if EXTRA
    var line = row;
#if MODULO
    line = row % info[PERIOD];
#endif
#if INDEX
    line = index[info[AT_INDEX] + row];
#endif
    y += $V(extra[(p.extra + line * info[LD_EXTRA] + col) / $PER]);
#endif
#if PRE
    pre[(p.pre + row * info[LD_PRE] + col) / $PER] = $C(y);
#endif
    y = activate(y);
#if ACCUMULATE
    y += $V(c[at]);
#endif
    c[at] = $C(y);
}

// The same for columns col .. col + 4, of which some may lie outside.
fn finish(p: Place, row: u32, col: u32, sum: vec4<f32>) {
    if (row < p.m && col < p.n) {
#if QUAD_C
        store(p, row, col, sum);
#else
        store(p, row, col, sum.x);
        if (col + 1u < p.n) {
            store(p, row, col + 1u, sum.y);
        }
        if (col + 2u < p.n) {
            store(p, row, col + 2u, sum.z);
        }
        if (col + 3u < p.n) {
            store(p, row, col + 3u, sum.w);
        }
#endif
    }
}
