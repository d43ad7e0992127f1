// Puts together what the parts of attention_forward.cu leave: a warp is an item (query row, head of the group) of a
// sequence. Parts come in order.
//
//   o = Σ_p w_p sums_p / Σ_p w_p sum_p      w_p = 2^(scale log2 e (top_p - max top))
//
// grid: (items of the longest sequence / WARPS, sequences, k/v heads).
struct info_st {
    u32 plan_at, o_at, lse_at;
    float scale;
    u32 longest, sums_at, statistics_at;
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_combine(const u32* __restrict__ plan, const float* __restrict__ sums, const float* __restrict__ statistics,
                  bf16* __restrict__ o, float* __restrict__ lse, const __grid_constant__ info_st info) {
    const u32* sequence = plan + info.plan_at + blockIdx.y * 6;
    const u32 kv_head = blockIdx.z, items = sequence[1] * GROUP, item = blockIdx.x * WARPS + warp();
    if (item >= items) return;
    // [PARTS, sequences, k/v heads, longest]
    const u64 at = ((u64)blockIdx.y * KV_HEADS + kv_head) * info.longest + item;
    const u64 next = (u64)gridDim.y * KV_HEADS * info.longest;

    float top = -INFINITY_F, total = 0.f, weight[PARTS];
#pragma unroll
    for (u32 part = 0; part < PARTS; ++part) {
        weight[part] = statistics[info.statistics_at + (at + part * next) * 2];
        top = fmaxf(top, weight[part]);
    }
#pragma unroll
    for (u32 part = 0; part < PARTS; ++part) {
        // A part without keys has a top of -inf; so have all where a sequence has none.
        weight[part] = weight[part] == -INFINITY_F ? 0.f : exp2_approx((weight[part] - top) * (info.scale * LOG2_E));
        total = fmaf(weight[part], statistics[info.statistics_at + (at + part * next) * 2 + 1], total);
    }
    const u64 head = (u64)(sequence[0] + item / GROUP) * Q_HEADS + kv_head * GROUP + item % GROUP;
    const float inverse = total == 0.f ? 0.f : 1.f / total;
    for (u32 i = lane() * 2; i < DIM; i += 64) {
        float a = 0.f, b = 0.f;
#pragma unroll
        for (u32 part = 0; part < PARTS; ++part) {
            const float* from = sums + info.sums_at + (at + part * next) * DIM + i;
            a = fmaf(weight[part], from[0], a);
            b = fmaf(weight[part], from[1], b);
        }
        store_pair(o + info.o_at + head * DIM + i, a * inverse, b * inverse, false);
    }
    if (LSE && lane() == 0) lse[info.lse_at + head] = top * info.scale + logf(total);
}
