// Attention backward of the queries: a block is TILE_M items (query row, head of the group) of one sequence and k/v head,
// and walks over the keys TILE_N at a time. Each warp has 16 items, and their whole rows of dq, in registers:
//
//   p = 2^(log2 e (scale q·k - lse))      ds = p (do·v - delta)      dq = scale Σ ds k      delta = Σ do·o
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

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
attention_backward_queries(const bf16* __restrict__ q, const bf16* __restrict__ keys, const bf16* __restrict__ own,
                           const u32* __restrict__ plan, const bf16* __restrict__ o, const float* __restrict__ lse,
                           const bf16* __restrict__ d_o, GRADIENT* __restrict__ dq, float* __restrict__ delta,
                           const __grid_constant__ info_st info) {
    DYNAMIC_SHARED(memory);
    bf16* q_tile = (bf16*)memory;
    bf16* do_tile = q_tile + TILE_M * PITCH;
    bf16* k_tiles = do_tile + TILE_M * PITCH;
    bf16* v_tiles = k_tiles + STAGES * TILE_N * PITCH;

    // q_row0, q_rows, k_row0, k_rows, own_row0, own_rows
    const u32* sequence = plan + info.plan_at + blockIdx.y * 6;
    const u32 kv_head = blockIdx.z, q_row0 = sequence[0], items = sequence[1] * GROUP;
    const u32 first = blockIdx.x * TILE_M;
    if (first >= items) return;
    const u32 cached = sequence[3], owned = OWN ? sequence[5] : 0;
    const u32 cached_tiles = (cached + TILE_N - 1) / TILE_N, tiles = cached_tiles + (owned + TILE_N - 1) / TILE_N;
    const u64 kv_ld = info.kv_ld, own_ld = info.own_ld;
    const u64 k_start = sequence[2] * kv_ld + kv_head * DIM, own_start = sequence[4] * own_ld + kv_head * DIM;

    auto load_keys = [&](u32 t) {
        bf16* k_tile = k_tiles + t % STAGES * TILE_N * PITCH;
        bf16* v_tile = v_tiles + t % STAGES * TILE_N * PITCH;
        if (!OWN || t < cached_tiles) {
            load_tile<TILE_N, 1, KV_ALIGNED>(k_tile, keys + info.k_at + k_start, kv_ld, t * TILE_N, cached);
            load_tile<TILE_N, 1, KV_ALIGNED>(v_tile, keys + info.v_at + k_start, kv_ld, t * TILE_N, cached);
        } else {
            const u32 key = (t - cached_tiles) * TILE_N;
            load_tile<TILE_N, 1, OWN_ALIGNED>(k_tile, own + info.own_k_at + own_start, own_ld, key, owned);
            load_tile<TILE_N, 1, OWN_ALIGNED>(v_tile, own + info.own_v_at + own_start, own_ld, key, owned);
        }
        copy_async_commit();
    };

    // Heads of o and do, and their statistics: all heads of a row are neighbours.
    const u64 head0 = (u64)q_row0 * Q_HEADS + kv_head * GROUP, q_ld = info.q_ld;
    load_tile<TILE_M, GROUP, Q_ALIGNED>(q_tile, q + info.q_at + q_row0 * q_ld + kv_head * GROUP * DIM, q_ld, first, items);
    load_tile<TILE_M, GROUP, DO_ALIGNED>(do_tile, d_o + info.do_at + head0 * DIM, Q_HEADS * DIM, first, items);
    if (tiles > 0) load_keys(0);

    const u32 item0 = first + warp() * 16;
    // Warps past the end of the sequence only help to load.
    const bool busy = item0 < items;
    // Of rows g and g + 8.
    float lse2[2] = {0.f, 0.f}, dots[2] = {0.f, 0.f};
    row_statistics(o + info.o_at, d_o + info.do_at, lse + info.lse_at, delta + info.delta_at, head0, item0, items, lse2, dots);

    const bf16* q_rows = q_tile + warp() * 16 * PITCH;
    const bf16* do_rows = do_tile + warp() * 16 * PITCH;
    const float scale2 = info.scale * LOG2_E;
    float acc[DEPTH / 8][4];
    clear(acc);

    for (u32 t = 0; t < tiles; ++t) {
        if (STAGES == 1 && t > 0) {
            __syncthreads();
            load_keys(t);
        }
        copy_async_wait<0>();
        __syncthreads();
        if (STAGES == 2 && t + 1 < tiles) load_keys(t + 1);
        if (!busy) continue;

        const bf16* k_tile = k_tiles + t % STAGES * TILE_N * PITCH;
        float s[TILE_N / 8][4], ds[TILE_N / 8][4];
        clear(s);
        multiply_rows<TILE_N>(s, q_rows, k_tile);
        const u32 left = t < cached_tiles ? cached - t * TILE_N : owned - (t - cached_tiles) * TILE_N;
        if (left < TILE_N) hide(s, left);
        clear(ds);
        multiply_rows<TILE_N>(ds, do_rows, v_tiles + t % STAGES * TILE_N * PITCH);
#pragma unroll
        for (int j = 0; j < TILE_N / 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float p = exp2_approx(fmaf(s[j][i], scale2, -lse2[i / 2]));
                ds[j][i] = p * (ds[j][i] - dots[i / 2]);
            }
#pragma unroll
        for (int j = 0; j < TILE_N / 16; ++j) {
            u32 a[4];
            round_left(a, ds, j);
            multiply_columns<DEPTH>(acc, a, k_tile + j * 16 * PITCH);
        }
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
