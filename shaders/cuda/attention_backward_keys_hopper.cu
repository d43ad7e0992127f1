// Attention backward of the keys and values on Hopper, heads of 256: attention_backward_keys.cu with wgmma. A block is 64
// keys of one run; of three warpgroups the first loads the items that see them, the second makes p and has dv, the third
// makes ds and has dk. p goes from the second to the third, thread by thread, as the layouts are the same.
//
// grid: (tiles of the longest run, runs, k/v heads).
struct info_st {
    u32 runs_at, queries_at;
    u32 q_at, q_ld;
    u32 k_at, v_at, kv_ld;
    u32 lse_at, do_at, delta_at;
    u32 dk_at, dv_at, dkv_ld;
    float scale;
};

static_assert(DIM == 256 && TILE_M == 64 && TILE_N == 64 && WARPS == 12, "the layout of registers is for these");
#define TILE_BYTES (64 * DIM * 2)
// Of p, for 128 threads.
#define P_FLOATS (TILE_N / 2)

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_backward_keys_hopper(const bf16* __restrict__ q, const bf16* __restrict__ keys, const u32* __restrict__ runs,
                               const u32* __restrict__ queries, const float* __restrict__ lse, const bf16* __restrict__ d_o,
                               const float* __restrict__ delta, GRADIENT* __restrict__ dkeys,
                               const __grid_constant__ info_st info) {
    DYNAMIC_SHARED(memory);
    u8* k_tile = memory;
    u8* v_tile = k_tile + TILE_BYTES;
    u8* q_tiles = v_tile + TILE_BYTES;
    u8* do_tiles = q_tiles + 2 * TILE_BYTES;
    // [2, P_FLOATS, 128]
    float* p_tiles = (float*)(do_tiles + 2 * TILE_BYTES);
    // [2, TILE_N] each
    float* lse2_tiles = p_tiles + 2 * P_FLOATS * 128;
    float* delta_tiles = lse2_tiles + 2 * TILE_N;
    // Loaded, and done with.
    u64* kv_full = (u64*)(delta_tiles + 2 * TILE_N);
    u64 *full = kv_full + 1, *empty = kv_full + 3, *p_full = kv_full + 5, *p_empty = kv_full + 7;

    // k_row0, k_rows, first entry of `queries`, entries
    const u32* run = runs + info.runs_at + blockIdx.y * 4;
    const u32 kv_head = blockIdx.z, k_row0 = run[0], k_rows = run[1];
    const u32 first = blockIdx.x * TILE_M;
    if (first >= k_rows) return;
    const u32* list = queries + info.queries_at;
    const u32 begin = run[2], end = begin + run[3];
    u32 tiles = 0;
    for (u32 entry = begin; entry < end; ++entry) tiles += (list[2 * entry + 1] * GROUP + TILE_N - 1) / TILE_N;

    if (threadIdx.x == 0) {
        mbarrier_init(kv_full, 128);
        for (u32 i = 0; i < 2; ++i) {
            // Copies of all threads that load, and the statistics of a tile.
            mbarrier_init(full + i, 128 + TILE_N);
            mbarrier_init(empty + i, 8);
            mbarrier_init(p_full + i, 4);
            mbarrier_init(p_empty + i, 4);
        }
        mbarrier_fence_init();
    }
    __syncthreads();

    if (threadIdx.x < 128) {
        registers_lower<56>();
        const u64 q_ld = info.q_ld, kv_ld = info.kv_ld;
        const bf16* keys0 = keys + k_row0 * kv_ld + kv_head * DIM;
        load_swizzled<TILE_M, 1>(k_tile, keys0 + info.k_at, kv_ld, first, k_rows);
        load_swizzled<TILE_M, 1>(v_tile, keys0 + info.v_at, kv_ld, first, k_rows);
        mbarrier_arrive_copies(kv_full);
        u32 t = 0;
        for (u32 entry = begin; entry < end; ++entry) {
            const u32 q_row0 = list[2 * entry], items = list[2 * entry + 1] * GROUP;
            const u64 head0 = (u64)q_row0 * Q_HEADS + kv_head * GROUP;
            const bf16* q_run = q + info.q_at + q_row0 * q_ld + kv_head * GROUP * DIM;
            for (u32 at = 0; at < items; at += TILE_N, ++t) {
                const u32 stage = t % 2, item = at + threadIdx.x;
                if (t > 1) mbarrier_wait(empty + stage, (t / 2 - 1) % 2);
                load_swizzled<TILE_N, GROUP>(q_tiles + stage * TILE_BYTES, q_run, q_ld, at, items);
                load_swizzled<TILE_N, GROUP>(do_tiles + stage * TILE_BYTES, d_o + info.do_at + head0 * DIM, Q_HEADS * DIM, at, items);
                mbarrier_arrive_copies(full + stage);
                if (threadIdx.x < TILE_N) {
                    const u64 head = head0 + item / GROUP * Q_HEADS + item % GROUP;
                    // Past the end p becomes 0.
                    lse2_tiles[stage * TILE_N + threadIdx.x] = item < items ? lse[info.lse_at + head] * LOG2_E : INFINITY_F;
                    delta_tiles[stage * TILE_N + threadIdx.x] = item < items ? delta[info.delta_at + head] : 0.f;
                    mbarrier_arrive(full + stage);
                }
            }
        }
        copy_async_commit();
        copy_async_wait<0>();
        return;
    }

    registers_raise<224>();
    const bool values = warp() < 8;
    const u32 thread = threadIdx.x % 128;
    const float scale2 = info.scale * LOG2_E;
    float acc[DIM / 8][4], s[TILE_N / 8][4];
    u32 a[TILE_N / 16][4];
    clear(acc);
    const u64 own_rows = wgmma_k_major(values ? k_tile : v_tile);
    mbarrier_wait(kv_full, 0);
    for (u32 t = 0; t < tiles; ++t) {
        const u32 stage = t % 2;
        u8 *q_tile = q_tiles + stage * TILE_BYTES, *do_tile = do_tiles + stage * TILE_BYTES;
        float* p_tile = p_tiles + stage * P_FLOATS * 128 + thread;
        const float* of_item = (values ? lse2_tiles : delta_tiles) + stage * TILE_N + lane() % 4 * 2;
        mbarrier_wait(full + stage, t / 2 % 2);
        fence_async_proxy();
        wgmma_fence();
        wgmma_rows<TILE_M, TILE_N>(s, own_rows, wgmma_k_major(values ? q_tile : do_tile));
        wgmma_wait<0>();
        wgmma_results(flat(s));
        if (values) {
            if (t > 1) mbarrier_wait(p_empty + stage, (t / 2 - 1) % 2);
#pragma unroll
            for (int j = 0; j < TILE_N / 8; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    s[j][i] = exp2_approx(fmaf(s[j][i], scale2, -of_item[j * 8 + i % 2]));
                    p_tile[(j * 4 + i) * 128] = s[j][i];
                }
            arrive_warp(p_full + stage);
        } else {
            mbarrier_wait(p_full + stage, t / 2 % 2);
#pragma unroll
            for (int j = 0; j < TILE_N / 8; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) s[j][i] = p_tile[(j * 4 + i) * 128] * (s[j][i] - of_item[j * 8 + i % 2]);
            arrive_warp(p_empty + stage);
        }
#pragma unroll
        for (int j = 0; j < TILE_N / 16; ++j) round_left(a[j], s, j);
        wgmma_fence();
        wgmma_columns(acc, a, wgmma_mn_major(values ? do_tile : q_tile, TILE_N * 128));
        wgmma_wait<0>();
        wgmma_results(flat(acc));
        arrive_warp(empty + stage);
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const u32 key = first + warp() % 4 * 16 + half * 8 + lane() / 4;
        if (key < k_rows) {
            const u64 head = (u64)(k_row0 + key) * info.dkv_ld + kv_head * DIM;
            store_row(dkeys + (values ? info.dv_at : info.dk_at) + head, acc, half, values ? 1.f : info.scale, 0, ADD);
        }
    }
}
