// Attention forward: a block is TILE_M items (query row, head of the group) of one sequence and k/v head; it walks over the
// keys TILE_N at a time with a running softmax. Each warp has 16 items, and their whole rows of the output, in registers.
//
// With PARTS above 1 the keys of a sequence are shared by as many blocks, where there are too few of them to fill the
// device. Each leaves sums that are not divided yet, and attention_combine.cu puts them together.
//
// grid: (tiles of the longest sequence, sequences, k/v heads * PARTS).
struct info_st {
    u32 plan_at;
    u32 q_at, q_ld;
    u32 k_at, v_at, kv_ld;
    u32 own_k_at, own_v_at, own_ld;
    u32 o_at, lse_at;
    float scale;
    u32 longest, sums_at, statistics_at;
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
attention_forward(const bf16* __restrict__ q, const bf16* __restrict__ keys, const bf16* __restrict__ own,
                  const u32* __restrict__ plan, bf16* __restrict__ o, float* __restrict__ lse,
                  float* __restrict__ sums, float* __restrict__ statistics, const __grid_constant__ info_st info) {
    DYNAMIC_SHARED(memory);
    bf16* q_tile = (bf16*)memory;
    bf16* k_tiles = q_tile + TILE_M * PITCH;
    bf16* v_tiles = k_tiles + STAGES * TILE_N * PITCH;

    // q_row0, q_rows, k_row0, k_rows, own_row0, own_rows
    const u32* sequence = plan + info.plan_at + blockIdx.y * 6;
    const u32 kv_head = blockIdx.z % KV_HEADS, part = blockIdx.z / KV_HEADS, q_row0 = sequence[0], items = sequence[1] * GROUP;
    const u32 first = blockIdx.x * TILE_M;
    if (first >= items) return;
    const u32 cached = sequence[3], owned = OWN ? sequence[5] : 0;
    const u32 cached_tiles = (cached + TILE_N - 1) / TILE_N, tiles = cached_tiles + (owned + TILE_N - 1) / TILE_N;
    // Of this part.
    const u32 per_part = (tiles + PARTS - 1) / PARTS, from = part * per_part, to = min(tiles, from + per_part);
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

    const u64 q_ld = info.q_ld;
    load_tile<TILE_M, GROUP, Q_ALIGNED>(q_tile, q + info.q_at + q_row0 * q_ld + kv_head * GROUP * DIM, q_ld, first, items);
    if (from < to) load_keys(from);

    const bf16* q_rows = q_tile + warp() * 16 * PITCH;
    // Warps past the end of the sequence only help to load.
    const bool busy = first + warp() * 16 < items;
    const float scale2 = info.scale * LOG2_E;
    float acc[DEPTH / 8][4];
    clear(acc);
    // Of rows g and g + 8: the largest score so far, and this thread's part of the sum of 2^(scale2 (s - top)).
    float top[2] = {-INFINITY_F, -INFINITY_F}, sum[2] = {0.f, 0.f};

    for (u32 t = from; t < to; ++t) {
        if (STAGES == 1 && t > from) {
            __syncthreads();
            load_keys(t);
        }
        copy_async_wait<0>();
        __syncthreads();
        if (STAGES == 2 && t + 1 < to) load_keys(t + 1);
        if (!busy) continue;

        float s[TILE_N / 8][4];
        clear(s);
        multiply_rows<TILE_N>(s, q_rows, k_tiles + t % STAGES * TILE_N * PITCH);
        const u32 left = t < cached_tiles ? cached - t * TILE_N : owned - (t - cached_tiles) * TILE_N;
        if (left < TILE_N) hide(s, left);

float shrink[2];
        soften(s, top, sum, shrink, scale2);
        multiply(acc, shrink);

        const bf16* v_tile = v_tiles + t % STAGES * TILE_N * PITCH;
#pragma unroll
        for (int j = 0; j < TILE_N / 16; ++j) {
            u32 p[4];
            round_left(p, s, j);
            multiply_columns<DEPTH>(acc, p, v_tile + j * 16 * PITCH);
        }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float total = sum_of_row(sum[half]);
        const u32 item = first + warp() * 16 + half * 8 + lane() / 4;
        if (item >= items) continue;
        if (PARTS == 1) {
            const u64 head = (u64)(q_row0 + item / GROUP) * Q_HEADS + kv_head * GROUP + item % GROUP;
            // Not `> 0`: a sum that is not a number must stay one.
            store_row(o + info.o_at + head * DIM, acc, half, total == 0.f ? 0.f : 1.f / total, 0, false);
            if (LSE && lane() % 4 == 0) lse[info.lse_at + head] = top[half] * info.scale + logf(total);
        } else {
            // [PARTS, sequences, k/v heads, longest]
            const u64 at = ((u64)(part * gridDim.y + blockIdx.y) * KV_HEADS + kv_head) * info.longest + item;
            store_row(sums + info.sums_at + at * DIM, acc, half, 1.f, 0, false);
            if (lane() % 4 == 0) store_pair(statistics + info.statistics_at + at * 2, top[half], total, false);
        }
    }
}
