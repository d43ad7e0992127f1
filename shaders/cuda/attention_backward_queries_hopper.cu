// Attention backward of the queries on Hopper, heads of 256: attention_backward_queries.cu with wgmma. A block is 128 items,
// 64 to each of two warpgroups; a third loads keys for them: two stages of K, which is read twice, and one of V.
//
// grid: (tiles of the longest sequence, sequences, k/v heads).
struct info_st {
    u32 plan_at;
    u32 q_at, q_ld;
    u32 k_at, v_at, kv_ld;
    u32 own_k_at, own_v_at, own_ld;
    u32 o_at, lse_at, do_at;
    u32 dq_at, dq_ld, delta_at;
    float scale;
};

static_assert(DIM == 256 && TILE_M == 128 && TILE_N == 64 && WARPS == 12, "the layout of registers is for these");
#define TILE_BYTES (TILE_N * DIM * 2)

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_backward_queries_hopper(const bf16* __restrict__ q, const bf16* __restrict__ keys, const bf16* __restrict__ own,
                                  const u32* __restrict__ plan, const bf16* __restrict__ o, const float* __restrict__ lse,
                                  const bf16* __restrict__ d_o, GRADIENT* __restrict__ dq, float* __restrict__ delta,
                                  const __grid_constant__ info_st info) {
    DYNAMIC_SHARED(memory);
    u8* q_tile = memory;
    u8* do_tile = q_tile + TILE_M * DIM * 2;
    u8* k_tiles = do_tile + TILE_M * DIM * 2;
    u8* v_tile = k_tiles + 2 * TILE_BYTES;
    // Loaded, and done with.
    u64* q_full = (u64*)(v_tile + TILE_BYTES);
    u64 *v_full = q_full + 1, *k_full = q_full + 2, *v_empty = q_full + 4, *k_empty = q_full + 5;

    // q_row0, q_rows, k_row0, k_rows, own_row0, own_rows
    const u32* sequence = plan + info.plan_at + blockIdx.y * 6;
    const u32 kv_head = blockIdx.z, q_row0 = sequence[0], items = sequence[1] * GROUP;
    const u32 first = blockIdx.x * TILE_M;
    if (first >= items) return;
    const u32 cached = sequence[3], owned = OWN ? sequence[5] : 0;
    const u32 cached_tiles = (cached + TILE_N - 1) / TILE_N, tiles = cached_tiles + (owned + TILE_N - 1) / TILE_N;
    // Warpgroups with items.
    const u32 groups = items - first > 64 ? 2 : 1;
    // Heads of o and do, and their statistics: all heads of a row are neighbours.
    const u64 head0 = (u64)q_row0 * Q_HEADS + kv_head * GROUP;

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < 4; ++i) mbarrier_init(q_full + i, 128);
        for (u32 i = 0; i < 3; ++i) mbarrier_init(v_empty + i, groups * 4);
        mbarrier_fence_init();
    }
    __syncthreads();

    if (threadIdx.x < 128) {
        registers_lower<56>();
        const u64 q_ld = info.q_ld, kv_ld = info.kv_ld, own_ld = info.own_ld;
        load_swizzled<TILE_M, GROUP>(q_tile, q + info.q_at + q_row0 * q_ld + kv_head * GROUP * DIM, q_ld, first, items);
        load_swizzled<TILE_M, GROUP>(do_tile, d_o + info.do_at + head0 * DIM, Q_HEADS * DIM, first, items);
        mbarrier_arrive_copies(q_full);
        const bf16* k_run = keys + info.k_at + sequence[2] * kv_ld + kv_head * DIM;
        const bf16* v_run = keys + info.v_at + sequence[2] * kv_ld + kv_head * DIM;
        u64 ld = kv_ld;
        u32 key = 0, rows = cached;
        for (u32 t = 0; t < tiles; ++t) {
            if (OWN && t == cached_tiles) {
                k_run = own + info.own_k_at + sequence[4] * own_ld + kv_head * DIM;
                v_run = own + info.own_v_at + sequence[4] * own_ld + kv_head * DIM;
                ld = own_ld, key = 0, rows = owned;
            }
            if (t > 1) mbarrier_wait(k_empty + t % 2, (t / 2 - 1) % 2);
            load_swizzled<TILE_N, 1>(k_tiles + t % 2 * TILE_BYTES, k_run, ld, key, rows);
            mbarrier_arrive_copies(k_full + t % 2);
            if (t > 0) mbarrier_wait(v_empty, (t - 1) % 2);
            load_swizzled<TILE_N, 1>(v_tile, v_run, ld, key, rows);
            mbarrier_arrive_copies(v_full);
            key += TILE_N;
        }
        copy_async_commit();
        copy_async_wait<0>();
        return;
    }

    registers_raise<224>();
    const u32 group = warp() / 4 - 1;
    if (group >= groups) return;
    const u32 item0 = first + group * 64 + warp() % 4 * 16;
    // Of rows g and g + 8.
    float lse2[2] = {0.f, 0.f}, dots[2] = {0.f, 0.f};
    row_statistics(o + info.o_at, d_o + info.do_at, lse + info.lse_at, delta + info.delta_at, head0, item0, items, lse2, dots);
    const float scale2 = info.scale * LOG2_E;
    float acc[DIM / 8][4];
    clear(acc);

    const u64 q_rows = wgmma_k_major(q_tile + group * 64 * 128), do_rows = wgmma_k_major(do_tile + group * 64 * 128);
    const u64 v_rows = wgmma_k_major(v_tile);
    mbarrier_wait(q_full, 0);
    for (u32 t = 0; t < tiles; ++t) {
        u8* k_tile = k_tiles + t % 2 * TILE_BYTES;
        float s[TILE_N / 8][4], ds[TILE_N / 8][4];
        u32 a[TILE_N / 16][4];
        mbarrier_wait(k_full + t % 2, t / 2 % 2);
        fence_async_proxy();
        wgmma_fence();
        wgmma_rows<TILE_M, TILE_N>(s, q_rows, wgmma_k_major(k_tile));
        mbarrier_wait(v_full, t % 2);
        fence_async_proxy();
        wgmma_fence();
        wgmma_rows<TILE_M, TILE_N>(ds, do_rows, v_rows);
        wgmma_wait<1>();
        wgmma_results(flat(s));
        const u32 left = t < cached_tiles ? cached - t * TILE_N : owned - (t - cached_tiles) * TILE_N;
        if (left < TILE_N) hide(s, left);
#pragma unroll
        for (int j = 0; j < TILE_N / 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) s[j][i] = exp2_approx(fmaf(s[j][i], scale2, -lse2[i / 2]));
        wgmma_wait<0>();
        wgmma_results(flat(ds));
        arrive_warp(v_empty);
#pragma unroll
        for (int j = 0; j < TILE_N / 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) ds[j][i] = s[j][i] * (ds[j][i] - dots[i / 2]);
#pragma unroll
        for (int j = 0; j < TILE_N / 16; ++j) round_left(a[j], ds, j);
        wgmma_fence();
        wgmma_columns(acc, a, wgmma_mn_major(k_tile, TILE_N * 128));
        wgmma_wait<0>();
        wgmma_results(flat(acc));
        arrive_warp(k_empty + t % 2);
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const u32 item = item0 + half * 8 + lane() / 4;
        if (item < items) {
            const u64 row = q_row0 + item / GROUP, head = kv_head * GROUP + item % GROUP;
            store_row(dq + info.dq_at + row * info.dq_ld + head * DIM, acc, half, info.scale, 0, false);
        }
    }
}
