// What the matrix products share: where tiles lie, and what happens between a sum and memory,
//   C = act(scale * (A B + bias) + extra), also stored before act (PRE), or added to C (ACCUMULATE);
//   GATED: B has the rows of a gate, then of an up projection: C = gelu(gate) * up, and PRE takes both halves.
//
// Defined in front of it: TYPE_C (also PRE's), TYPE_BIAS, TYPE_EXTRA: float or bf16; BIAS, SCALED, PRE, ACCUMULATE, GATED:
// 0 or 1; EXTRA: 0 none, 1 row i for row i, 2 row i % period, 3 row index[i]; ACT: 0 none, 1 GELU, 2 swish; WIDE: rows of
// C and PRE start at, and are, whole vectors (8 bytes), those of extra and bias whole pairs.

// Scalars of a launch. Leading dimensions, strides from one product to the next and starts are in elements.
struct info_st {
    u32 m, n, k, batch;
    u32 ld_a, ld_b, ld_c, ld_extra, ld_pre;
    u32 stride_a, stride_b, stride_c, stride_bias, stride_extra, stride_pre;
    u32 at_a, at_b, at_c, at_bias, at_extra, at_pre, at_index, at_table;
    u32 period;
    // Parts that k is cut in, and steps along k of each. With more than one part C is [parts, m, n].
    u32 splits, steps;
    // Rows of tiles that are walked together, so that the tiles under way at a time share what they read.
    u32 band;
    float scale;
};

// One tile of one product: first row and column, and the range of k in steps.
struct Tile {
    u32 m, n, z, split, from, to;
};

// Tile `at` of a launch: bands of rows, column by column inside of a band.
template <int ROWS, int COLUMNS, int DEPTH> DEVICE Tile tile_at(const info_st& info, u32 at) {
    u32 rows = (info.m + ROWS - 1) / ROWS, columns = (info.n + COLUMNS - 1) / COLUMNS;
    u32 z = at / (rows * columns), rest = at % (rows * columns);
    u32 first = rest / (info.band * columns) * info.band;
    u32 here = min(info.band, rows - first);
    rest -= first * columns;
    Tile tile;
    tile.m = (first + rest % here) * ROWS;
    tile.n = rest / here * COLUMNS;
    tile.split = z % info.splits;
    tile.z = z / info.splits;
    tile.from = tile.split * info.steps;
    tile.to = min(tile.from + info.steps, (info.k + DEPTH - 1) / DEPTH);
    return tile;
}

// ---- numbers -------------------------------------------------------------------------------------------------------

// 0.5 (1 + tanh u) = 1 / (1 + e^-2u), which needs one exponential and one reciprocal.
DEVICE float logistic(float minus_x_log2e) { return reciprocal_approx(1.f + exp2_approx(minus_x_log2e)); }

// GELU, tanh form: x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3).
DEVICE float gelu(float x) {
    constexpr float LINEAR = -2.f * 1.44269504f * 0.79788456f, CUBIC = LINEAR * 0.044715f;
    return x * logistic(x * (LINEAR + CUBIC * (x * x)));
}
DEVICE float swish(float x) { return x * logistic(-1.44269504f * x); }

DEVICE float activate(float x) {
#if ACT == 1
    return gelu(x);
#elif ACT == 2
    return swish(x);
#else
    return x;
#endif
}

// ---- memory --------------------------------------------------------------------------------------------------------

struct alignas(8) Floats2 {
    float x, y;
};
struct alignas(8) Words2 {
    u32 x, y;
};

DEVICE float widen(float x) { return x; }
DEVICE float widen(bf16 x) { return bf16_to_float(x); }
DEVICE void narrow(float* to, float x) { *to = x; }
DEVICE void narrow(bf16* to, float x) { *to = bf16_from_float(x); }

DEVICE void load_pair(float (&to)[2], const float* from) {
    Floats2 v = *(const Floats2*)from;
    to[0] = v.x;
    to[1] = v.y;
}
DEVICE void load_pair(float (&to)[2], const bf16* from) {
    u32 v = *(const u32*)from;
    to[0] = bf16_low(v);
    to[1] = bf16_high(v);
}

// Columns `column` and the next of a row; zeros beyond `columns`.
template <class T> DEVICE void load_columns(float (&to)[2], const T* row, bool inside, u32 column, u32 columns) {
    to[0] = to[1] = 0.f;
#if WIDE
    if (inside && column < columns) load_pair(to, row + column);
#else
    if (inside && column < columns) to[0] = widen(row[column]);
    if (inside && column + 1 < columns) to[1] = widen(row[column + 1]);
#endif
}

// Columns `column`, the next, and the two that lie 8 further. Four neighbouring lanes fill whole 32-byte sectors.
template <class T> DEVICE void store_scalars(T* row, bool inside, u32 column, u32 columns, const float (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 at = column + i % 2 + i / 2 * 8;
        if (inside && at < columns) narrow(row + at, x[i]);
    }
}
DEVICE void store_columns(float* row, bool inside, u32 column, u32 columns, const float (&x)[4]) {
#if WIDE
    if (inside && column < columns) *(Floats2*)(row + column) = Floats2{x[0], x[1]};
    if (inside && column + 8 < columns) *(Floats2*)(row + column + 8) = Floats2{x[2], x[3]};
#else
    store_scalars(row, inside, column, columns, x);
#endif
}
DEVICE void store_columns(bf16* row, bool inside, u32 column, u32 columns, const float (&x)[4]) {
#if WIDE
    // Even lanes take the four columns of themselves and their neighbour in the first block, odd lanes in the second.
    u32 first = bf16_pair(x[0], x[1]), second = bf16_pair(x[2], x[3]);
    bool odd = threadIdx.x & 1;
    u32 other = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
    u32 at = odd ? column + 6 : column;
    if (inside && at < columns) *(Words2*)(row + at) = odd ? Words2{other, second} : Words2{first, other};
#else
    store_scalars(row, inside, column, columns, x);
#endif
}

// ---- epilogue ------------------------------------------------------------------------------------------------------

// The operands of the epilogue, at the product's first element.
struct Out {
    TYPE_C* c;
    TYPE_C* pre;
    const TYPE_BIAS* bias;
    const TYPE_EXTRA* extra;
    const u32* index;
};

DEVICE Out out_at(const info_st& info, const Tile& tile, TYPE_C* c, TYPE_C* pre, const TYPE_BIAS* bias,
                  const TYPE_EXTRA* extra, const u32* index) {
    u64 z = tile.z;
    Out out;
    out.c = c + info.at_c + z * info.stride_c + (u64)tile.split * info.m * info.n;
    out.pre = pre + info.at_pre + z * info.stride_pre;
    out.bias = bias + info.at_bias + z * info.stride_bias;
    out.extra = extra + info.at_extra + z * info.stride_extra;
    out.index = index + info.at_index;
    return out;
}

DEVICE u32 extra_row(const info_st& info, const Out& out, u32 row) {
#if EXTRA == 2
    return row % info.period;
#elif EXTRA == 3
    return out.index[row];
#else
    return row;
#endif
}

// Asks for what `finish` will read of a tile, so that it comes from near then; of THREADS threads this is `thread`.
template <int ROWS, int COLUMNS, int THREADS> DEVICE void prefetch(const info_st& info, const Tile& tile, const Out& out,
                                                                   u32 thread) {
    constexpr u32 OF_C = 128 / sizeof(TYPE_C), OF_EXTRA = 128 / sizeof(TYPE_EXTRA);
#pragma unroll
    for (u32 i = thread; ACCUMULATE && i < ROWS * COLUMNS / OF_C; i += THREADS) {
        u32 row = tile.m + i / (COLUMNS / OF_C), column = tile.n + i % (COLUMNS / OF_C) * OF_C;
        if (row < info.m && column < info.n) prefetch_l2(out.c + (u64)row * info.ld_c + column);
    }
#pragma unroll
    for (u32 i = thread; EXTRA == 1 && i < ROWS * COLUMNS / OF_EXTRA; i += THREADS) {
        u32 row = tile.m + i / (COLUMNS / OF_EXTRA), column = tile.n + i % (COLUMNS / OF_EXTRA) * OF_EXTRA;
        if (row < info.m && column < info.n) prefetch_l2(out.extra + (u64)row * info.ld_extra + column);
    }
}

// Finishes and stores what one thread holds of 16 rows and BLOCKS blocks of 8 columns, in the order of `mma` and `wgmma`:
// d[4j + 2h + e] is row `row + 8h`, column `column + 8j + e`. `m` and `n` are the product's sizes.
template <int BLOCKS> DEVICE void finish(const float (&d)[4 * BLOCKS], const info_st& info, const Out& out, u32 row,
                                         u32 column, u32 m, u32 n) {
    TYPE_C* c[2];
    TYPE_C* pre[2];
    const TYPE_EXTRA* extra[2];
    bool inside[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        inside[h] = row + 8 * h < m;
        u64 r = inside[h] ? row + 8 * h : 0;
        c[h] = out.c + r * info.ld_c;
        pre[h] = PRE ? out.pre + r * info.ld_pre : out.pre;
        extra[h] = EXTRA ? out.extra + (u64)extra_row(info, out, (u32)r) * info.ld_extra : out.extra;
    }
#if GATED
#pragma unroll
    for (int j = 0; j < BLOCKS / 2; j += 2) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float act[4], gate[4], up[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int at = 4 * (j + e / 2) + 2 * h + e % 2;
                gate[e] = d[at];
                up[e] = d[at + 2 * BLOCKS];
                act[e] = gelu(gate[e]) * up[e];
            }
            store_columns(c[h], inside[h], column + 8 * j, n, act);
            if (PRE) {
                store_columns(pre[h], inside[h], column + 8 * j, n, gate);
                store_columns(pre[h] + n, inside[h], column + 8 * j, n, up);
            }
        }
    }
#else
    // Blocks whose operands are read before the first of them is stored: loads cannot pass stores by themselves.
    constexpr int GROUP = 4;
#pragma unroll
    for (int first = 0; first < BLOCKS; first += GROUP) {
        float bias[GROUP][2], more[GROUP][2][2], old[GROUP][2][2];
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
            u32 at = column + 8 * (first + j);
            if (BIAS) load_columns(bias[j], out.bias, true, at, n);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (EXTRA) load_columns(more[j][h], extra[h], inside[h], at, n);
                if (ACCUMULATE) load_columns(old[j][h], (const TYPE_C*)c[h], inside[h], at, n);
            }
        }
#pragma unroll
        for (int j = 0; j < GROUP; j += 2) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float y[4];
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int b = j + e / 2;
                    y[e] = d[4 * (first + b) + 2 * h + e % 2];
                    if (BIAS) y[e] += bias[b][e % 2];
                    if (SCALED) y[e] *= info.scale;
                    if (EXTRA) y[e] += more[b][h][e % 2];
                }
                u32 at = column + 8 * (first + j);
                if (PRE) store_columns(pre[h], inside[h], at, n, y);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    y[e] = activate(y[e]);
                    if (ACCUMULATE) y[e] += old[j + e / 2][h][e % 2];
                }
                store_columns(c[h], inside[h], at, n, y);
            }
        }
    }
#endif
}
