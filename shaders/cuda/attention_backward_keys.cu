// Attention backward of the keys and values: a block is TILE_M keys of one run and k/v head, and walks over the items
// (query row, head of the group) that see them TILE_N at a time, in the order of the run's list: no atomics.
//
//   p = 2^(log2 e (scale k·q - lse))      ds = p (v·do - delta)      dv = Σ p do      dk = scale Σ ds q
//
// Each 16 keys belong to SPLIT warps. Of p and ds each of them makes its share of the items; of dk and dv it has its share
// of the columns in registers, so p and ds go through shared memory where SPLIT is 2.
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

// Columns and items of one warp.
#define COLUMNS (DEPTH / SPLIT)
#define SHARE (TILE_N / SPLIT)
// From row to row of p and ds in shared memory.
#define P_PITCH (TILE_N + 8)

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_backward_keys(const bf16* __restrict__ q, const bf16* __restrict__ keys, const u32* __restrict__ runs,
                        const u32* __restrict__ queries, const float* __restrict__ lse, const bf16* __restrict__ d_o,
                        const float* __restrict__ delta, GRADIENT* __restrict__ dkeys,
                        const __grid_constant__ info_st info) {
    DYNAMIC_SHARED(memory);
    bf16* k_tile = (bf16*)memory;
    bf16* v_tile = k_tile + TILE_M * PITCH;
    bf16* q_tiles = v_tile + TILE_M * PITCH;
    bf16* do_tiles = q_tiles + STAGES * TILE_N * PITCH;
    // Of each item lse log2 e, then delta.
    float* statistics = (float*)(do_tiles + STAGES * TILE_N * PITCH);
    bf16* p_tile = (bf16*)(statistics + STAGES * TILE_N * 2);
    bf16* ds_tile = p_tile + TILE_M * P_PITCH;

    // k_row0, k_rows, first entry of `queries`, entries
    const u32* run = runs + info.runs_at + blockIdx.y * 4;
    const u32 kv_head = blockIdx.z, k_row0 = run[0], k_rows = run[1];
    const u32 first = blockIdx.x * TILE_M;
    if (first >= k_rows) return;
    const u64 q_ld = info.q_ld, kv_ld = info.kv_ld, k_start = k_row0 * kv_ld + kv_head * DIM;

    // The tile to load next: items from `at` on of one run of queries.
    const u32* list = queries + info.queries_at;
    u32 entry = run[2], q_row0 = 0, items = 0, at = 0;
    const u32 end = entry + run[3];
    auto more = [&] {
        for (; at >= items && entry < end; ++entry) {
            q_row0 = list[2 * entry];
            items = list[2 * entry + 1] * GROUP;
            at = 0;
        }
        return at < items;
    };
    float my_lse2 = 0.f, my_delta = 0.f;
    auto fetch = [&](u32 t) {
        const u64 head0 = (u64)q_row0 * Q_HEADS + kv_head * GROUP;
        load_tile<TILE_N, GROUP, Q_ALIGNED>(q_tiles + t % STAGES * TILE_N * PITCH,
                                            q + info.q_at + q_row0 * q_ld + kv_head * GROUP * DIM, q_ld, at, items);
        load_tile<TILE_N, GROUP, DO_ALIGNED>(do_tiles + t % STAGES * TILE_N * PITCH, d_o + info.do_at + head0 * DIM,
                                             Q_HEADS * DIM, at, items);
        copy_async_commit();
        const u32 item = at + threadIdx.x;
        if (threadIdx.x < TILE_N) {
            const u64 head = head0 + item / GROUP * Q_HEADS + item % GROUP;
            // Past the end p becomes 0.
            my_lse2 = item < items ? lse[info.lse_at + head] * LOG2_E : INFINITY_F;
            my_delta = item < items ? delta[info.delta_at + head] : 0.f;
        }
        at += TILE_N;
    };
    // Apart from `fetch`, so that nobody waits for what it loads into registers.
    auto publish = [&](u32 t) {
        if (threadIdx.x < TILE_N) {
            float* to = statistics + t % STAGES * TILE_N * 2 + threadIdx.x * 2;
            to[0] = my_lse2, to[1] = my_delta;
        }
    };

    load_tile<TILE_M, 1, KV_ALIGNED>(k_tile, keys + info.k_at + k_start, kv_ld, first, k_rows);
    load_tile<TILE_M, 1, KV_ALIGNED>(v_tile, keys + info.v_at + k_start, kv_ld, first, k_rows);
    bool here = more();
    if (here) {
        fetch(0);
        publish(0);
    }

    const u32 key0 = warp() / SPLIT * 16, part = warp() % SPLIT;
    // Warps past the end of the run only help to load.
    const bool busy = first + key0 < k_rows;
    const float scale2 = info.scale * LOG2_E;
    float dk[COLUMNS / 8][4], dv[COLUMNS / 8][4];
    clear(dk);
    clear(dv);

    for (u32 t = 0; here; ++t) {
        copy_async_wait<0>();
        __syncthreads();
        const bool then = more();
        if (STAGES == 2 && then) fetch(t + 1);

        const bf16* q_tile = q_tiles + t % STAGES * TILE_N * PITCH;
        const bf16* do_tile = do_tiles + t % STAGES * TILE_N * PITCH;
        if (busy) {
            float p[SHARE / 8][4], ds[SHARE / 8][4];
            clear(p);
            multiply_rows<SHARE>(p, k_tile + key0 * PITCH, q_tile + part * SHARE * PITCH);
            clear(ds);
            multiply_rows<SHARE>(ds, v_tile + key0 * PITCH, do_tile + part * SHARE * PITCH);
            const float* of_item = statistics + t % STAGES * TILE_N * 2;
#pragma unroll
            for (int j = 0; j < SHARE / 8; ++j) {
                const u32 column = part * SHARE + j * 8 + lane() % 4 * 2;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float* x = of_item + (column + i % 2) * 2;
                    p[j][i] = exp2_approx(fmaf(p[j][i], scale2, -x[0]));
                    ds[j][i] = p[j][i] * (ds[j][i] - x[1]);
                }
                if (SPLIT == 2) {
                    const u32 row = key0 + lane() / 4;
                    *(u32*)(p_tile + row * P_PITCH + column) = bf16_pair(p[j][0], p[j][1]);
                    *(u32*)(p_tile + (row + 8) * P_PITCH + column) = bf16_pair(p[j][2], p[j][3]);
                    *(u32*)(ds_tile + row * P_PITCH + column) = bf16_pair(ds[j][0], ds[j][1]);
                    *(u32*)(ds_tile + (row + 8) * P_PITCH + column) = bf16_pair(ds[j][2], ds[j][3]);
                }
            }
            if (SPLIT == 2) named_barrier(1 + warp() / SPLIT, SPLIT * 32);
            const u32 row = (key0 + lane() % 16) * P_PITCH + lane() / 16 * 8;
#pragma unroll
            for (int j = 0; j < TILE_N / 16; ++j) {
                u32 a[4];
                if (SPLIT == 2) load_matrices(a, p_tile + row + j * 16);
                else round_left(a, p, j);
                multiply_columns<COLUMNS>(dv, a, do_tile + j * 16 * PITCH + part * COLUMNS);
                if (SPLIT == 2) load_matrices(a, ds_tile + row + j * 16);
                else round_left(a, ds, j);
                multiply_columns<COLUMNS>(dk, a, q_tile + j * 16 * PITCH + part * COLUMNS);
            }
        }
        if (STAGES == 1) {
            __syncthreads();
            if (then) fetch(t + 1);
        }
        if (then) publish(t + 1);
        here = then;
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const u32 key = first + key0 + half * 8 + lane() / 4;
        if (key < k_rows) {
            const u64 head = (u64)(k_row0 + key) * info.dkv_ld + kv_head * DIM;
            store_row(dkeys + info.dk_at + head, dk, half, info.scale, part * COLUMNS, ADD);
            store_row(dkeys + info.dv_at + head, dv, half, 1.f, part * COLUMNS, ADD);
        }
    }
}
