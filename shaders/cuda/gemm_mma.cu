// Matrix products with tensor cores of one warp (sm_80 and later): C = epilogue(A B), bf16 operands, sums in f32 (gemm.cuh
// has the epilogue and the defines). Any alignment, any size, and products of different sizes in one launch.
//
// A block makes one tile of 128 x 128; eight warps share it, 64 x 32 each. Slices of A and B, 32 deep along k, come through
// a ring of four stages, filled in the background with 16-byte copies; with 4-byte copies where rows of an operand start
// between multiples of 16 bytes, and element by element where they start at odd elements.
//
// MN_A: A lies as [k, m] instead of [m, k]. MN_B: B lies as [k, n] instead of [n, k]. GROUPED: row z of `table` has the
// offsets of A, B and C of product z, then its m, n, k; the launch's m and n are the largest of them.
//
// Launch: 256 threads, one block a tile; SHARED_BYTES dynamic shared memory.

constexpr int ROWS = 128, COLUMNS = 128, DEPTH = 32, STAGES = 4, THREADS = 256;
constexpr int SLICE_BYTES = ROWS * DEPTH * 2;

// Where 16-byte chunk `chunk` of row `row` of a slice lies: so that eight rows of a column of chunks, and eight chunks of a
// row, fall on different banks. Rows are along m or n and 64 bytes long, or along k (MN) and 256 bytes long.
template <int MN> DEVICE u32 chunk_at(u32 row, u32 chunk) {
    return MN ? row * 256 + ((chunk ^ (row & 7)) << 4) : row * 64 + ((chunk ^ (row >> 1 & 3)) << 4);
}

// An operand of one product: rows of `columns` elements, the largest copies that its rows allow.
struct Operand {
    const bf16* first;
    u64 ld;
    u32 rows, columns, copy;
};

DEVICE Operand operand(const bf16* first, u32 ld, u32 rows, u32 columns) {
    u32 low = (u32)(u64)first | ld * 2;
    return Operand{first, ld, rows, columns, low % 16 == 0 ? 16u : low % 4 == 0 ? 4u : 2u};
}

// Starts copying a slice to shared memory, zeros where the operand ends: 512 chunks, two a thread.
template <int MN> DEVICE void fetch(u8* to, const Operand& x, u32 mn, u32 k) {
    constexpr int CHUNKS = MN ? 16 : 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 id = threadIdx.x + i * THREADS, r = id / CHUNKS, c = id % CHUNKS;
        u32 row = (MN ? k : mn) + r, column = (MN ? mn : k) + 8 * c;
        u32 some = row < x.rows && column < x.columns ? min(x.columns - column, 8u) : 0;
        const bf16* from = some ? x.first + row * x.ld + column : x.first;
        u8* at = to + chunk_at<MN>(r, c);
        if (x.copy == 16) {
            copy_async_16(at, from, 2 * some);
        } else if (x.copy == 4) {
#pragma unroll
            for (u32 e = 0; e < 8; e += 2) {
                u32 left = some > e ? min(some - e, 2u) : 0;
                copy_async_4(at + 2 * e, left ? from + e : from, 2 * left);
            }
        } else {
            bf16* elements = (bf16*)at;
#pragma unroll
            for (u32 e = 0; e < 8; e++) elements[e] = e < some ? from[e] : (bf16)0;
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    gemm_mma(const bf16* a, const bf16* b, TYPE_C* c, TYPE_C* pre, const TYPE_BIAS* bias, const TYPE_EXTRA* extra,
             const u32* index, const u32* table, const __grid_constant__ info_st info) {
    DYNAMIC_SHARED(shared);
    u8* stages_a = shared;
    u8* stages_b = shared + STAGES * SLICE_BYTES;
    Tile tile = tile_at<ROWS, COLUMNS, DEPTH>(info, blockIdx.x);
    u32 m = info.m, n = info.n, k = info.k;
    u64 z = tile.z, at_a = info.at_a + z * info.stride_a, at_b = info.at_b + z * info.stride_b;
    Out out = out_at(info, tile, c, pre, bias, extra, index);
#if GROUPED
    const u32* group = table + info.at_table + 6 * z;
    at_a += group[0];
    at_b += group[1];
    out.c += group[2];
    m = group[3];
    n = group[4];
    k = group[5];
    if (tile.m >= m || tile.n >= n) return;
    tile.from = 0;
    tile.to = (k + DEPTH - 1) / DEPTH;
#endif
    const Operand of_a = operand(a + at_a, info.ld_a, MN_A ? k : m, MN_A ? m : k);
    const Operand of_b = operand(b + at_b, info.ld_b, MN_B ? k : n, MN_B ? n : k);

    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 first_row = warp / 4 * 64, first_column = warp % 4 * 32;
    float d[4][16] = {};

    for (u32 i = 0; i < STAGES - 1; i++) {
        if (tile.from + i < tile.to) {
            fetch<MN_A>(stages_a + i * SLICE_BYTES, of_a, tile.m, (tile.from + i) * DEPTH);
            fetch<MN_B>(stages_b + i * SLICE_BYTES, of_b, tile.n, (tile.from + i) * DEPTH);
        }
        copy_async_commit();
    }
    for (u32 step = tile.from; step < tile.to; step++) {
        copy_async_wait<STAGES - 2>();
        // Everybody's copies of this stage are there, and everybody is done with the stage before.
        __syncthreads();
        u32 ahead = step + STAGES - 1;
        if (ahead < tile.to) {
            u32 to = (ahead - tile.from) % STAGES * SLICE_BYTES;
            fetch<MN_A>(stages_a + to, of_a, tile.m, ahead * DEPTH);
            fetch<MN_B>(stages_b + to, of_b, tile.n, ahead * DEPTH);
        }
        copy_async_commit();
        const u8* slice_a = stages_a + (step - tile.from) % STAGES * SLICE_BYTES;
        const u8* slice_b = stages_b + (step - tile.from) % STAGES * SLICE_BYTES;
        // Lane 8i + r names row r of matrix i: which half of 16 rows (bit 0 of i for A, bit 1 for B), which of 16 along k.
        const u32 r = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
#pragma unroll
        for (u32 kk = 0; kk < DEPTH; kk += 16) {
            u32 x[4][4], y[2][4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 row = first_row + 16 * i;
                if (MN_A) load_matrices_transposed(x[i], slice_a + chunk_at<1>(kk + high + r, (row + low) / 8));
                else load_matrices(x[i], slice_a + chunk_at<0>(row + low + r, (kk + high) / 8));
            }
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                u32 column = first_column + 16 * j;
                if (MN_B) load_matrices_transposed(y[j], slice_b + chunk_at<1>(kk + low + r, (column + high) / 8));
                else load_matrices(y[j], slice_b + chunk_at<0>(column + high + r, (kk + low) / 8));
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    float(&to)[4] = *(float(*)[4])&d[i][4 * j];
                    mma(to, x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
    }
    copy_async_wait<0>();
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        finish<4>(d[i], info, out, tile.m + first_row + 16 * i + lane / 4, tile.n + first_column + lane % 4 * 2, m, n);
    }
}
