// Attention forward on Hopper, heads of 256: a block is 128 items (query row, head of the group) of one sequence and k/v
// head, 64 to each of two warpgroups; a third loads keys for them. While the tensor cores multiply the probabilities of one
// tile of keys with its values, the scores of the next become probabilities.
//
// Operands are those of attention_forward.cu; what that needs for parts of keys is not used.
//
// grid: (tiles of the longest sequence, sequences, k/v heads).
struct info_st {
    u32 plan_at;
    u32 q_at, q_ld;
    u32 k_at, v_at, kv_ld;
    u32 own_k_at, own_v_at, own_ld;
    u32 o_at, lse_at;
    float scale;
    u32 longest, sums_at, statistics_at;
};

static_assert(DIM == 256 && TILE_M == 128 && WARPS == 12, "the layout of registers is for these");
#define TILE_BYTES (TILE_N * DIM * 2)

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_forward_hopper(const bf16* __restrict__ q, const bf16* __restrict__ keys, const bf16* __restrict__ own,
                         const u32* __restrict__ plan, bf16* __restrict__ o, float* __restrict__ lse,
                         float* __restrict__ sums, float* __restrict__ statistics, const __grid_constant__ info_st info) {
    DYNAMIC_SHARED(memory);
    u8* q_tile = memory;
    u8* k_tiles = q_tile + TILE_M * DIM * 2;
    u8* v_tiles = k_tiles + 2 * TILE_BYTES;
    // Of both stages of K and of V: loaded, and done with.
    u64* q_full = (u64*)(v_tiles + 2 * TILE_BYTES);
    u64 *k_full = q_full + 1, *v_full = q_full + 3, *k_empty = q_full + 5, *v_empty = q_full + 7;

    // q_row0, q_rows, k_row0, k_rows, own_row0, own_rows
    const u32* sequence = plan + info.plan_at + blockIdx.y * 6;
    const u32 kv_head = blockIdx.z, q_row0 = sequence[0], items = sequence[1] * GROUP;
    const u32 first = blockIdx.x * TILE_M;
    if (first >= items) return;
    const u32 cached = sequence[3], owned = OWN ? sequence[5] : 0;
    const u32 cached_tiles = (cached + TILE_N - 1) / TILE_N, tiles = cached_tiles + (owned + TILE_N - 1) / TILE_N;
    // Warpgroups with items.
    const u32 groups = items - first > 64 ? 2 : 1;

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < 5; ++i) mbarrier_init(q_full + i, 128);
        for (u32 i = 0; i < 4; ++i) mbarrier_init(k_empty + i, groups * 4);
        mbarrier_fence_init();
    }
    __syncthreads();

    if (threadIdx.x < 128) {
        registers_lower<56>();
        const u64 q_ld = info.q_ld, kv_ld = info.kv_ld, own_ld = info.own_ld;
        load_swizzled<TILE_M, GROUP>(q_tile, q + info.q_at + q_row0 * q_ld + kv_head * GROUP * DIM, q_ld, first, items);
        mbarrier_arrive_copies(q_full);
        const bf16* k_run = keys + info.k_at + sequence[2] * kv_ld + kv_head * DIM;
        const bf16* v_run = keys + info.v_at + sequence[2] * kv_ld + kv_head * DIM;
        u64 ld = kv_ld;
        u32 key = 0, rows = cached;
        for (u32 t = 0; t < tiles; ++t) {
            const u32 stage = t % 2;
            if (OWN && t == cached_tiles) {
                k_run = own + info.own_k_at + sequence[4] * own_ld + kv_head * DIM;
                v_run = own + info.own_v_at + sequence[4] * own_ld + kv_head * DIM;
                ld = own_ld, key = 0, rows = owned;
            }
            if (t > 1) mbarrier_wait(k_empty + stage, (t / 2 - 1) % 2);
            load_swizzled<TILE_N, 1>(k_tiles + stage * TILE_BYTES, k_run, ld, key, rows);
            mbarrier_arrive_copies(k_full + stage);
            if (t > 1) mbarrier_wait(v_empty + stage, (t / 2 - 1) % 2);
            load_swizzled<TILE_N, 1>(v_tiles + stage * TILE_BYTES, v_run, ld, key, rows);
            mbarrier_arrive_copies(v_full + stage);
            key += TILE_N;
        }
        copy_async_commit();
        copy_async_wait<0>();
        return;
    }

    registers_raise<224>();
    const u32 group = warp() / 4 - 1;
    if (group >= groups) return;
    const float scale2 = info.scale * LOG2_E;
    float acc[DIM / 8][4], s[TILE_N / 8][4], shrink[2];
    u32 p[TILE_N / 16][4];
    float top[2] = {-INFINITY_F, -INFINITY_F}, sum[2] = {0.f, 0.f};
    clear(acc);

    const u64 q_rows = wgmma_k_major(q_tile + group * 64 * 128);
    auto multiply_keys = [&](u32 t) {
        wgmma_rows<TILE_M, TILE_N>(s, q_rows, wgmma_k_major(k_tiles + t % 2 * TILE_BYTES));
    };
    auto multiply_values = [&](u32 t) {
        wgmma_columns(acc, p, wgmma_mn_major(v_tiles + t % 2 * TILE_BYTES, TILE_N * 128));
    };
    // Scores of tile t to probabilities, still in f32.
    auto weigh = [&](u32 t) {
        const u32 left = t < cached_tiles ? cached - t * TILE_N : owned - (t - cached_tiles) * TILE_N;
        if (left < TILE_N) hide(s, left);
        soften(s, top, sum, shrink, scale2);
    };
    auto round = [&] {
#pragma unroll
        for (int j = 0; j < TILE_N / 16; ++j) round_left(p[j], s, j);
    };

    if (tiles > 0) {
        mbarrier_wait(q_full, 0);
        mbarrier_wait(k_full, 0);
        fence_async_proxy();
        wgmma_fence();
        multiply_keys(0);
        wgmma_wait<0>();
        wgmma_results(flat(s));
        arrive_warp(k_empty);
        weigh(0);
        round();
        for (u32 t = 1; t < tiles; ++t) {
            mbarrier_wait(k_full + t % 2, t / 2 % 2);
            mbarrier_wait(v_full + (t - 1) % 2, (t - 1) / 2 % 2);
            fence_async_proxy();
            wgmma_fence();
            multiply_keys(t);
            multiply_values(t - 1);
            wgmma_wait<1>();
            wgmma_results(flat(s));
            arrive_warp(k_empty + t % 2);
            weigh(t);
            wgmma_wait<0>();
            wgmma_results(flat(acc));
            arrive_warp(v_empty + (t - 1) % 2);
            multiply(acc, shrink);
            round();
        }
        mbarrier_wait(v_full + (tiles - 1) % 2, (tiles - 1) / 2 % 2);
        fence_async_proxy();
        wgmma_fence();
        multiply_values(tiles - 1);
        wgmma_wait<0>();
        wgmma_results(flat(acc));
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float total = sum_of_row(sum[half]);
        const u32 item = first + group * 64 + warp() % 4 * 16 + half * 8 + lane() / 4;
        if (item < items) {
            const u64 head = (u64)(q_row0 + item / GROUP) * Q_HEADS + kv_head * GROUP + item % GROUP;
            // Not `> 0`: a sum that is not a number must stay one.
            store_row(o + info.o_at + head * DIM, acc, half, total == 0.f ? 0.f : 1.f / total, 0, false);
            if (LSE && lane() % 4 == 0) lse[info.lse_at + head] = top[half] * info.scale + logf(total);
        }
    }
}
