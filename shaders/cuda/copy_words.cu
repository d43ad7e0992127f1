// to[to_at + i] = from[from_at + i] for i < n, on 32-bit words. Each thread moves 16 words, strided by the block.
struct info_st { u32 n, from_at, to_at, blocks_x; };

extern "C" __global__ void __launch_bounds__(64)
copy_words(const u32* __restrict__ from, u32* __restrict__ to, const __grid_constant__ info_st info) {
  const u32 first = (blockIdx.y * info.blocks_x + blockIdx.x) * 1024u + threadIdx.x;
#pragma unroll
  for (u32 i = 0; i < 1024u; i += 64u) {
    const u32 at = first + i;
    if (at < info.n) to[info.to_at + at] = from[info.from_at + at];
  }
}
