// Matrix products on Hopper: C = epilogue(A B), bf16 operands, sums in f32 (gemm.cuh has the epilogue and the defines).
//
// A block stays on its multiprocessor and walks over tiles of 128 x TILE_N. One warpgroup only has the copy engine fill a
// ring of stages, 64 deep along k; it runs ahead over the ends of tiles, so that the next tile's first stages arrive while
// the last one is stored. Two warpgroups multiply, 64 rows each, with one group of instructions always under way: a stage
// is handed back when the group after it has been issued.
//
// MN_A: A lies as [k, m] instead of [m, k]. MN_B: B lies as [k, n] instead of [n, k]. The copy engine fills what lies outside
// of the matrices with zeros. GATED: half of a tile's columns are rows n.. of B, half are rows n + F..
//
// Launch: 384 threads, at most one block a multiprocessor; SHARED_BYTES dynamic shared memory.

constexpr int ROWS = 128, DEPTH = 64, STAGES = TILE_N == 256 ? 4 : 6;
// Columns of C that a tile gives.
constexpr int COLUMNS = GATED ? TILE_N / 2 : TILE_N;
constexpr int BYTES_A = ROWS * DEPTH * 2, BYTES_B = TILE_N * DEPTH * 2;
// An operand with rows along k comes in blocks of 64 columns.
constexpr int BLOCK_BYTES = 64 * DEPTH * 2;

extern "C" __global__ void __launch_bounds__(384, 1)
    gemm_wgmma(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, const bf16*, const bf16*,
               TYPE_C* c, TYPE_C* pre, const TYPE_BIAS* bias, const TYPE_EXTRA* extra, const u32* index,
               const __grid_constant__ info_st info) {
    DYNAMIC_SHARED(shared);
    u8* stages_a = shared;
    u8* stages_b = shared + STAGES * BYTES_A;
    u64* full = (u64*)(stages_b + STAGES * BYTES_B);
    u64* empty = full + STAGES;
    const u32 tiles =
        (info.m + ROWS - 1) / ROWS * ((info.n + COLUMNS - 1) / COLUMNS) * info.batch * info.splits;

    if (threadIdx.x == 0) {
        tma_prefetch(&map_a);
        tma_prefetch(&map_b);
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(&full[i], 1);
            mbarrier_init(&empty[i], 8); // the warps that multiply
        }
        mbarrier_fence_init();
    }
    __syncthreads();

    // Stages are used in turn; every time round the barriers' phase changes.
    u32 stage = 0, phase = 0;
    if (threadIdx.x < 128) {
        registers_lower<24>();
        if (threadIdx.x == 0) {
            for (u32 at = blockIdx.x; at < tiles; at += gridDim.x) {
                Tile tile = tile_at<ROWS, COLUMNS, DEPTH>(info, at);
                int z_a = info.stride_a ? tile.z : 0, z_b = info.stride_b ? tile.z : 0;
                for (u32 step = tile.from; step < tile.to; step++) {
                    mbarrier_wait(&empty[stage], phase ^ 1);
                    mbarrier_arrive_expect(&full[stage], BYTES_A + BYTES_B);
                    u8* a = stages_a + stage * BYTES_A;
                    u8* b = stages_b + stage * BYTES_B;
                    int k = step * DEPTH;
                    if (MN_A) {
                        for (int i = 0; i < ROWS / 64; i++)
                            tma_load(a + i * BLOCK_BYTES, &map_a, tile.m + 64 * i, k, z_a, &full[stage]);
                    } else {
                        tma_load(a, &map_a, k, tile.m, z_a, &full[stage]);
                    }
                    if (MN_B) {
                        for (int i = 0; i < TILE_N / 64; i++)
                            tma_load(b + i * BLOCK_BYTES, &map_b, tile.n + 64 * i, k, z_b, &full[stage]);
                    } else {
                        tma_load(b, &map_b, k, tile.n, z_b, &full[stage]);
                        if (GATED) tma_load(b + BYTES_B / 2, &map_b, k, info.n + tile.n, z_b, &full[stage]);
                    }
                    if (++stage == STAGES) stage = 0, phase ^= 1;
                }
            }
        }
    } else {
        registers_raise<240>();
        const u32 group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
        float d[TILE_N / 2] = {};
        for (u32 at = blockIdx.x; at < tiles; at += gridDim.x) {
            Tile tile = tile_at<ROWS, COLUMNS, DEPTH>(info, at);
            const Out out = out_at(info, tile, c, pre, bias, extra, index);
            // Some steps before the end: earlier, the operands would drive it out again.
            u32 near = tile.to - min(tile.to - tile.from, 12u);
            u32 before = stage;
            for (u32 step = tile.from; step < tile.to; step++) {
                mbarrier_wait(&full[stage], phase);
                // Both layouts keep a warpgroup's 64 rows of A together.
                const u8* a = stages_a + stage * BYTES_A + group * (BYTES_A / 2);
                const u8* b = stages_b + stage * BYTES_B;
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < DEPTH / 16; i++) {
                    u64 of_a = MN_A ? wgmma_mn_major(a + 2048 * i, BLOCK_BYTES) : wgmma_k_major(a + 32 * i);
                    u64 of_b = MN_B ? wgmma_mn_major(b + 2048 * i, BLOCK_BYTES) : wgmma_k_major(b + 32 * i);
                    wgmma<MN_A, MN_B>(d, of_a, of_b, step > tile.from || i > 0);
                }
                wgmma_commit();
                if (step == near) prefetch<ROWS, COLUMNS, 256>(info, tile, out, threadIdx.x - 128);
                wgmma_wait<1>();
                __syncwarp();
                if (step > tile.from && lane == 0) mbarrier_arrive(&empty[before]);
                before = stage;
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
            wgmma_wait<0>();
            wgmma_done(d);
            __syncwarp();
            if (lane == 0) mbarrier_arrive(&empty[before]);
            u32 row = tile.m + threadIdx.x / 32 % 4 * 16 + group * 64 + lane / 4;
            finish<TILE_N / 8>(d, info, out, row, tile.n + lane % 4 * 2, info.m, info.n);
        }
    }
}
