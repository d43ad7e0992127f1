// to[i] = from[i] for i < n, on 128-bit words. Each thread moves 4 of them, strided by the block.
struct info_st { u32 n, blocks_x; };
struct __align__(16) Quad { u32 words[4]; };

extern "C" __global__ void __launch_bounds__(256)
copy_quads(const Quad* __restrict__ from, Quad* __restrict__ to, const __grid_constant__ info_st info) {
  const u32 first = (blockIdx.y * info.blocks_x + blockIdx.x) * 1024u + threadIdx.x;
#pragma unroll
  for (u32 i = 0; i < 1024u; i += 256u) {
    const u32 at = first + i;
    if (at < info.n) to[at] = from[at];
  }
}
