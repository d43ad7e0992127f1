// What the attention kernels share: heads as tiles in shared memory, and products of them on one warp's tensor cores.
//
// Compiled in by the host:
//   DIM                elements of a head (even, at most 256)
//   GROUP, Q_HEADS     query heads that share a k/v head; query heads of a row
//   WARPS              of the block
//   STAGES             1: a tile is loaded when the one before is done with; 2: while it is worked on
//   ..._ALIGNED        1: heads of this operand start at multiples of 16 bytes; 0: of 4
// Query heads that share keys are rows of one matrix: item i of a sequence is head i % GROUP of row i / GROUP. So keys are
// read once for all of them.
#pragma once

#define THREADS (WARPS * 32)
// Of a head in shared memory; what is past DIM is zero. Two warps share wide heads, each a multiple of 16 columns.
#define DEPTH (DIM > 128 ? (DIM + 31) / 32 * 32 : (DIM + 15) / 16 * 16)
// From row to row of a tile, in elements. The 16 bytes more put eight rows into different banks.
#define PITCH (DEPTH + 8)
// Blocks that a multiprocessor's registers are to hold.
#define RESIDENT (DEPTH <= 96 && WARPS == 4 ? 3 : 1)
#define LOG2_E 1.44269504088896f
#define INFINITY_F __uint_as_float(0x7f800000u)

DEVICE u32 lane() { return threadIdx.x % 32; }
DEVICE u32 warp() { return threadIdx.x / 32; }

// Items `first ..` of a run of `items` to a tile [ROWS, PITCH], in the background where aligned; zeros past the end of the
// run and of the head. PER_LINE heads lie side by side in a line of `ld` elements.
template <int ROWS, int PER_LINE, int ALIGNED>
DEVICE void load_tile(bf16* tile, const bf16* run, u64 ld, u32 first, u32 items) {
    constexpr u32 CHUNKS = DEPTH / 8;
#pragma unroll
    for (u32 i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const u32 row = i / CHUNKS, column = i % CHUNKS * 8, item = first + row;
        const bool inside = item < items && column < DIM;
        const bf16* from = run + (inside ? (item / PER_LINE) * ld + item % PER_LINE * DIM + column : 0);
        bf16* to = tile + row * PITCH + column;
        if (ALIGNED) {
            copy_async_16(to, from, inside ? 16 : 0);
        } else {
#pragma unroll
            for (u32 w = 0; w < 4; ++w)
                ((u32*)to)[w] = inside && column + 2 * w < DIM ? ((const u32*)from)[w] : 0u;
        }
    }
}

// d [16, N] += a · bᵀ: rows of heads against rows of heads, over the whole depth.
template <int N> DEVICE void multiply_rows(float (&d)[N / 8][4], const bf16* a, const bf16* b) {
    a += lane() % 16 * PITCH + lane() / 16 * 8;
    b += (lane() % 8 + lane() / 16 * 8) * PITCH + lane() / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        u32 left[4];
        load_matrices(left, a + k);
#pragma unroll
        for (int j = 0; j < N / 16; ++j) {
            u32 right[4];
            load_matrices(right, b + j * 16 * PITCH + k);
            mma(d[2 * j], left, right[0], right[1]);
            mma(d[2 * j + 1], left, right[2], right[3]);
        }
    }
}

// d [16, N] += a · b: a [16, 16] in registers, b rows of heads.
template <int N> DEVICE void multiply_columns(float (&d)[N / 8][4], const u32 (&a)[4], const bf16* b) {
    b += lane() % 16 * PITCH + lane() / 16 * 8;
#pragma unroll
    for (int j = 0; j < N / 16; ++j) {
        u32 right[4];
        load_matrices_transposed(right, b + j * 16);
        mma(d[2 * j], a, right[0], right[1]);
        mma(d[2 * j + 1], a, right[2], right[3]);
    }
}

// Columns 16 j to 16 j + 15 of d, rounded, as the left operand of a product.
template <int N> DEVICE void round_left(u32 (&a)[4], const float (&d)[N][4], int j) {
    a[0] = bf16_pair(d[2 * j][0], d[2 * j][1]);
    a[1] = bf16_pair(d[2 * j][2], d[2 * j][3]);
    a[2] = bf16_pair(d[2 * j + 1][0], d[2 * j + 1][1]);
    a[3] = bf16_pair(d[2 * j + 1][2], d[2 * j + 1][3]);
}

template <int N> DEVICE void clear(float (&d)[N][4]) {
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) d[j][i] = 0.f;
}

// Scores of columns past `inside` become -inf, so that nothing is seen there.
template <int N> DEVICE void hide(float (&s)[N][4], u32 inside) {
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (j * 8 + lane() % 4 * 2 + i % 2 >= inside) s[j][i] = -INFINITY_F;
}

// The running softmax of a warp's rows g and g + 8: scores become 2^(scale2 (s - top)), where `top` is the largest score so
// far. `shrink` is what earlier results are to be multiplied by; `sum` is this thread's part of the denominators.
template <int N>
DEVICE void soften(float (&s)[N][4], float (&top)[2], float (&sum)[2], float (&shrink)[2], float scale2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float largest = top[half];
#pragma unroll
        for (int j = 0; j < N; ++j) largest = fmaxf(largest, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        const float shift = largest * scale2;
        shrink[half] = exp2_approx((top[half] - largest) * scale2);
        top[half] = largest;
        float total = sum[half] * shrink[half];
#pragma unroll
        for (int j = 0; j < N; ++j)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) {
                s[j][i] = exp2_approx(fmaf(s[j][i], scale2, -shift));
                total += s[j][i];
            }
        sum[half] = total;
    }
}

template <int N> DEVICE void multiply(float (&d)[N][4], const float (&factor)[2]) {
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) d[j][i] *= factor[i / 2];
}

// The sum over the four threads that share a row.
DEVICE float sum_of_row(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Two neighbours of a result that is bf16 or f32, written or, with `add`, added to what is there.
DEVICE void store_pair(bf16* to, float a, float b, bool add) {
    u32* word = (u32*)to;
    if (add) a += bf16_low(*word), b += bf16_high(*word);
    *word = bf16_pair(a, b);
}
DEVICE void store_pair(float* to, float a, float b, bool add) {
    if (add) a += to[0], b += to[1];
    to[0] = a, to[1] = b;
}

// Row `half` (0: g, 1: g + 8) of a warp's accumulators, times `factor`, to columns `first ..` of the head at `to`.
template <int N, class T>
DEVICE void store_row(T* to, const float (&d)[N][4], int half, float factor, u32 first, bool add) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const u32 column = first + j * 8 + lane() % 4 * 2;
        if (column < DIM) store_pair(to + column, d[j][2 * half] * factor, d[j][2 * half + 1] * factor, add);
    }
}

// Σ do·o of a warp's items `item0 ..`, written to `delta`, and for rows g and g + 8 kept with lse log2 e. Heads of a row of
// o are neighbours; `head0` is the first of the sequence's first row.
DEVICE void row_statistics(const bf16* o, const bf16* d_o, const float* lse, float* delta, u64 head0, u32 item0, u32 items,
                           float (&lse2)[2], float (&dots)[2]) {
    for (u32 row = 0; row < 16 && item0 + row < items; ++row) {
        const u64 head = head0 + (item0 + row) / GROUP * Q_HEADS + (item0 + row) % GROUP;
        const u32 *o_words = (const u32*)(o + head * DIM), *do_words = (const u32*)(d_o + head * DIM);
        float dot = 0.f;
        for (u32 i = lane(); i < DIM / 2; i += 32) {
            const u32 x = o_words[i], y = do_words[i];
            dot = fmaf(bf16_low(x), bf16_low(y), fmaf(bf16_high(x), bf16_high(y), dot));
        }
#pragma unroll
        for (u32 step = 16; step > 0; step /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, step);
        if (lane() == 0) delta[head] = dot;
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
            if (row == half * 8 + lane() / 4) dots[half] = dot, lse2[half] = lse[head] * LOG2_E;
    }
}

// ---- warpgroups (sm_90a), heads of 256 -----------------------------------------------------------------------------

// Items to a tile [ROWS, DIM] as wgmma wants it, by the first 128 threads: blocks of 64 columns in 128-byte rows, swizzled.
template <int ROWS, int PER_LINE>
DEVICE void load_swizzled(u8* tile, const bf16* run, u64 ld, u32 first, u32 items) {
    const u32 column = lane() * 8;
#pragma unroll 4
    for (u32 row = warp(); row < ROWS; row += 4) {
        const u32 item = first + row;
        const bool inside = item < items;
        const bf16* from = run + (inside ? (item / PER_LINE) * ld + item % PER_LINE * DIM + column : 0);
        copy_async_16(tile + column / 64 * (ROWS * 128) + row * 128 + ((column / 8 ^ row) % 8) * 16, from, inside ? 16 : 0);
    }
}

// Accumulators as wgmma takes them.
template <int N> DEVICE float (&flat(float (&d)[N][4]))[N * 4] { return *(float (*)[N * 4])&d[0][0]; }

// One arrival for the warp, when all of it is here.
DEVICE void arrive_warp(u64* barrier) {
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(barrier);
}

// d [64, N] = a · bᵀ in the background, as a group of its own: rows of a tile of ROWS_A and of one of N, whole heads.
template <int ROWS_A, int N> DEVICE void wgmma_rows(float (&d)[N / 8][4], u64 a, u64 b) {
    // Descriptors count in 16 bytes.
#pragma unroll
    for (int k = 0; k < DIM / 16; ++k)
        wgmma<0, 0>(flat(d), a + k / 4 * (ROWS_A * 8) + k % 4 * 2, b + k / 4 * (N * 8) + k % 4 * 2, k > 0);
    wgmma_commit();
}

// d [64, DIM] += a · b in the background, as a group of its own: a in registers, b a tile of 16 K rows.
template <int K> DEVICE void wgmma_columns(float (&d)[DIM / 8][4], const u32 (&a)[K][4], u64 b) {
#pragma unroll
    for (int j = 0; j < K; ++j) wgmma_registers<1>(flat(d), a[j], b + j * 128, 1);
    wgmma_commit();
}
