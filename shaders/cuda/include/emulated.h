// CUDA on a CPU: the meaning of prelude.cuh (and of the CUDA that cubecl generates) in portable C++, so that the same
// kernel sources can be run, checked and debugged without a GPU.
//
// Every thread of a block is a coroutine with a stack of its own; they run one at a time, blocks one after another, and
// switch where a thread must wait for others. What hardware does in the background happens here as early or as late as
// the rules allow (chosen by `seed`): copies when they are issued or when nothing else can go on, in reverse order; wgmma
// when it is issued or when it is waited for. Threads and blocks run in an order that `seed` picks too. So a kernel that
// forgets to wait, or gives memory back too early, computes something else under another seed. Shared memory starts as
// NaN. If every thread waits, the launch ends with the reason instead of hanging.
//
// Arithmetic is f32 like the hardware's, tensor cores add up in the order of k.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#define memcpy __builtin_memcpy
#define memset __builtin_memset
#define snprintf __builtin_snprintf
#define abort __builtin_trap

#define DEVICE static inline
#define __global__
#define __device__ static
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static
#define DYNAMIC_SHARED(name) u8* const name = emulated::shared

struct uint3 { unsigned x, y, z; };
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
static uint3 gridDim, blockDim, blockIdx, threadIdx;
static const int warpSize = 32;

// What `cuTensorMapEncodeTiled` would make opaque.
struct __attribute__((aligned(64))) CUtensorMap {
    u64 base, size[3], stride_bytes[2], box[3], element_bytes, swizzled, unused[5];
};

namespace emulated {

constexpr size_t SHARED_BYTES = 232448, STACK_BYTES = 256 << 10;
constexpr int MAX_THREADS = 1024, MAX_BARRIERS = 16, MAX_PENDING = 4096;
alignas(1024) static u8 shared[SHARED_BYTES];

// `held`: rows g and g + 8 of A where it is in registers, as pairs along k.
struct Wgmma { void (*run)(const Wgmma&); float* d; u64 a, b; u32 add, held[2][8]; };
// Of `size` bytes the first `bytes` come from memory, the rest is zero.
struct Copy { void* to; const void* from; u32 size, bytes; };

// One thread of the block.
struct Thread {
    void* stack_pointer;
    u8* stack;
    uint3 index;
    bool done;
    u32 lane, warp;
    // wgmma: pending[from..], closed groups end at ends[]
    Wgmma wgmma[64];
    int wgmmas, groups, group_end[64];
    Copy copies[512];
    int copy_count, copy_groups, copy_end[64];
    u64 copies_before;  // that are done with: copies[0] is the next
};

// Threads that wait for each other. `generation` counts releases.
struct Meeting { u32 arrived, generation; };

// Without a map: thread x arrives when its first `copies` copies are there.
struct Tma { void* to; const CUtensorMap* map; int x, y, z; u64* barrier, copies; };

static Thread* threads;
static Thread* self;
static int thread_count, alive;
static void* scheduler_stack_pointer;
static Meeting barriers[MAX_BARRIERS], warps[MAX_THREADS / 32];
static u32 warp_alive[MAX_THREADS / 32];
static Tma pending[MAX_PENDING];
static int pending_count;
static u64 progress, coin_state;
static const char* waiting_for;
static char failure[256];
static void (*body)(void**);
static void** body_arguments;

// Words that lanes show each other: a slot for this exchange and one for the next.
static u64 slots[MAX_THREADS][2][6];
static u32 exchanges[MAX_THREADS];

static void fail(const char* what) { snprintf(failure, sizeof failure, "%s", what); }

static inline u32 coin() {
    coin_state = coin_state * 6364136223846793005ull + 1442695040888963407ull;
    return (u32)(coin_state >> 40);
}

extern "C" void acrlpd_switch(void** save, void* to);
#if defined(__x86_64__)
asm(".text\nacrlpd_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
constexpr int SAVED_WORDS = 6;
#elif defined(__aarch64__)
asm(".text\nacrlpd_switch:\n"
    "sub sp, sp, #160\nstp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\nstp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\n"
    "stp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\nmov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\nldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\n"
    "ldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\nadd sp, sp, #160\nret\n");
#else
#error "the emulated device runs on x86-64 and AArch64"
#endif

static inline void yield() { acrlpd_switch(&self->stack_pointer, scheduler_stack_pointer); }

template <class F> static inline void wait(const char* what, F ready) {
    while (!ready()) {
        waiting_for = what;
        yield();
    }
    progress++;
}

// Waits at `meeting` until `count()` threads are there.
template <class F> static inline void meet(Meeting& meeting, const char* what, F count) {
    u32 generation = meeting.generation;
    meeting.arrived++;
    wait(what, [&] {
        if (meeting.generation != generation) return true;
        if (meeting.arrived < count()) return false;
        meeting.arrived = 0;
        meeting.generation++;
        return true;
    });
}

static inline void meet_warp() {
    u32 warp = self->warp;
    meet(warps[warp], "its warp", [=] { return warp_alive[warp]; });
}

// Shows `n` words to the warp; afterwards those of lane `l` are at the returned function's result.
struct Shown {
    u32 first, slot;
    const u64* of(u32 lane) const { return slots[first + lane][slot]; }
};
static inline Shown show(const u64* words, int n) {
    u32 me = (u32)(self - threads), slot = exchanges[me]++ & 1;
    memcpy(slots[me][slot], words, 8 * n);
    meet_warp();
    return Shown{me - self->lane, slot};
}

static void thread_main() {
    body(body_arguments);
    self->done = true;
    alive--;
    warp_alive[self->warp]--;
    progress++;
    yield();
    abort();
}

static void start(Thread& t) {
    void** top = (void**)(t.stack + STACK_BYTES - 64);
#if defined(__x86_64__)
    *--top = nullptr;
    *--top = (void*)thread_main;
    for (int i = 0; i < SAVED_WORDS; i++) *--top = nullptr;
#else
    top -= 20;
    memset(top, 0, 160);
    top[11] = (void*)thread_main;
#endif
    t.stack_pointer = top;
    t.done = false;
    t.wgmmas = t.groups = t.copy_count = t.copy_groups = 0;
    t.copies_before = 0;
}

// ---- barriers of the copy engine: [phase | arrivals expected | arrivals missing | bytes missing] -------------------

struct MBarrier { int bytes; u16 missing; u16 state; };  // state: expected << 1 | phase
static_assert(sizeof(MBarrier) == 8, "an mbarrier is a word");

static inline void settle(MBarrier* b) {
    if (b->missing == 0 && b->bytes == 0) {
        b->missing = b->state >> 1;
        b->state ^= 1;
        progress++;
    }
}

static void do_copy(const Copy& c) {
    memcpy(c.to, c.from, c.bytes);
    memset((u8*)c.to + c.bytes, 0, c.size - c.bytes);
}

// The first `n` copies that a thread still has under way.
static void do_copies(Thread& t, int n) {
    for (int i = 0; i < n; i++) do_copy(t.copies[i]);
    for (int i = n; i < t.copy_count; i++) t.copies[i - n] = t.copies[i];
    for (int g = 0; g < t.copy_groups; g++) t.copy_end[g] = t.copy_end[g] > n ? t.copy_end[g] - n : 0;
    t.copy_count -= n;
    t.copies_before += n;
}

static void do_arrival(const Tma& t) {
    Thread& thread = threads[t.x];
    if (t.copies > thread.copies_before) do_copies(thread, (int)(t.copies - thread.copies_before));
    MBarrier* b = (MBarrier*)t.barrier;
    if (b->missing == 0) return fail("more arrivals at an mbarrier than it was made for");
    b->missing--;
    settle(b);
}

static void do_tma(const Tma& t) {
    if (!t.map) return do_arrival(t);
    const CUtensorMap& m = *t.map;
    u64 row_bytes = m.box[0] * m.element_bytes, at = (u8*)t.to - shared;
    for (u64 z = 0; z < m.box[2]; z++)
        for (u64 y = 0; y < m.box[1]; y++)
            for (u64 x = 0; x < m.box[0]; x++) {
                int64_t gx = t.x + (int64_t)x, gy = t.y + (int64_t)y, gz = t.z + (int64_t)z;
                bool inside = gx >= 0 && gy >= 0 && gz >= 0 && (u64)gx < m.size[0] && (u64)gy < m.size[1] && (u64)gz < m.size[2];
                u64 to = at + (z * m.box[1] + y) * row_bytes + x * m.element_bytes;
                if (m.swizzled) to ^= (to >> 7 & 7) << 4;
                const u8* from = (const u8*)m.base + gz * m.stride_bytes[1] + gy * m.stride_bytes[0] + gx * m.element_bytes;
                if (inside) memcpy(shared + to, from, m.element_bytes);
                else memset(shared + to, 0, m.element_bytes);
            }
    MBarrier* b = (MBarrier*)t.barrier;
    b->bytes -= (int)(row_bytes * m.box[1] * m.box[2]);
    settle(b);
}

// Runs one block to its end; false if nobody can go on.
static bool run_block() {
    alive = thread_count;
    memset(shared, 0xff, sizeof shared);
    memset(barriers, 0, sizeof barriers);
    memset(warps, 0, sizeof warps);
    memset(exchanges, 0, sizeof exchanges);
    memset(warp_alive, 0, sizeof warp_alive);
    for (int i = 0; i < thread_count; i++) {
        start(threads[i]);
        warp_alive[i / 32]++;
    }
    while (alive > 0) {
        u64 before = progress;
        bool backwards = coin() & 1;
        for (int i = 0; i < thread_count; i++) {
            self = &threads[backwards ? thread_count - 1 - i : i];
            if (self->done) continue;
            threadIdx = self->index;
            acrlpd_switch(&scheduler_stack_pointer, self->stack_pointer);
        }
        if (progress == before) {
            if (pending_count == 0) return false;
            do_tma(pending[--pending_count]);
        }
    }
    return true;
}

static const char* launch(void (*kernel)(void**), void** arguments, const u32* grid, const u32* block, u64 seed) {
    thread_count = block[0] * block[1] * block[2];
    failure[0] = 0;
    if (thread_count > MAX_THREADS) return "more than 1024 threads in a block";
    if (!threads) {
        threads = (Thread*)__builtin_calloc(MAX_THREADS, sizeof(Thread));
        u8* stacks = (u8*)mmap(nullptr, MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (!threads || stacks == MAP_FAILED) return "no memory for the threads of a block";
        for (int i = 0; i < MAX_THREADS; i++) threads[i].stack = stacks + i * STACK_BYTES;
    }
    for (int i = 0; i < thread_count; i++) {
        threads[i].index = {i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
        threads[i].lane = i % 32;
        threads[i].warp = i / 32;
    }
    body = kernel;
    body_arguments = arguments;
    coin_state = seed;
    pending_count = 0;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    u64 blocks = (u64)grid[0] * grid[1] * grid[2];
    bool backwards = coin() & 1;
    for (u64 i = 0; i < blocks; i++) {
        u64 b = backwards ? blocks - 1 - i : i;
        blockIdx = {(u32)(b % grid[0]), (u32)(b / grid[0] % grid[1]), (u32)(b / grid[0] / grid[1])};
        if (!run_block()) {
            snprintf(failure, sizeof failure, "block (%u, %u, %u): every thread waits, one of them for %s", blockIdx.x,
                     blockIdx.y, blockIdx.z, waiting_for);
            return failure;
        }
        if (pending_count) return "a copy into shared memory was still under way when its block ended";
        if (failure[0]) return failure;
    }
    return nullptr;
}

// Calls a kernel with arguments given by address, as a driver does.
template <size_t... I> struct Indices {};
template <size_t N, size_t... I> struct Count : Count<N - 1, N - 1, I...> {};
template <size_t... I> struct Count<0, I...> { typedef Indices<I...> Type; };
template <class T> struct Plain { typedef T Type; };
template <class T> struct Plain<const T> { typedef T Type; };
template <class... A, size_t... I> static void spread(void (*f)(A...), void** a, Indices<I...>) {
    f(*(typename Plain<A>::Type*)a[I]...);
}
template <class... A> static void apply(void (*f)(A...), void** a) {
    spread(f, a, typename Count<sizeof...(A)>::Type());
}

}  // namespace emulated

// ---- CUDA's own ----------------------------------------------------------------------------------------------------

static inline void __syncthreads() {
    emulated::meet(emulated::barriers[0], "__syncthreads", [] { return (u32)emulated::alive; });
}
static inline void __syncwarp(u32 = ~0u) { emulated::meet_warp(); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

template <class T> static inline T emulated_shuffle(T value, u32 lane, bool valid) {
    u64 word = 0;
    memcpy(&word, &value, sizeof value);
    emulated::Shown shown = emulated::show(&word, 1);
    if (valid) memcpy(&value, shown.of(lane), sizeof value);
    return value;
}
template <class T> static inline T __shfl_sync(u32, T v, int from, int width = 32) {
    u32 me = emulated::self->lane, base = me / width * width;
    return emulated_shuffle(v, base + (u32)from % width, true);
}
template <class T> static inline T __shfl_xor_sync(u32, T v, int mask, int width = 32) {
    u32 me = emulated::self->lane, to = me ^ mask;
    return emulated_shuffle(v, to % 32, to / width == me / width);
}
template <class T> static inline T __shfl_up_sync(u32, T v, u32 delta, int width = 32) {
    u32 me = emulated::self->lane;
    return emulated_shuffle(v, (me - delta) % 32, me % width >= delta);
}
template <class T> static inline T __shfl_down_sync(u32, T v, u32 delta, int width = 32) {
    u32 me = emulated::self->lane;
    return emulated_shuffle(v, (me + delta) % 32, me % width + delta < (u32)width);
}
static inline u32 __ballot_sync(u32, int predicate) {
    u64 word = predicate != 0;
    emulated::Shown shown = emulated::show(&word, 1);
    u32 bits = 0, first = emulated::self->warp * 32;
    for (u32 l = 0; l < 32; l++)
        if ((int)(first + l) < emulated::thread_count && !emulated::threads[first + l].done) bits |= (u32)*shown.of(l) << l;
    return bits;
}
static inline int __all_sync(u32 mask, int p) { return __ballot_sync(mask, !p) == 0; }
static inline int __any_sync(u32 mask, int p) { return __ballot_sync(mask, p) != 0; }

static inline float __uint_as_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }
static inline u32 __float_as_uint(float x) { u32 y; memcpy(&y, &x, 4); return y; }
static inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
static inline float __int_as_float(int x) { return __uint_as_float((u32)x); }
template <class T> static inline T __ldg(const T* p) { return *p; }
// Mathematics, by the names of C and of CUDA, for the types that CUDA has them for.
#define ACRLPD_MATH_1(name)                                                                                             \
    static inline float name(float x) { return __builtin_##name##f(x); }                                                \
    static inline double name(double x) { return __builtin_##name(x); }                                                 \
    static inline float name##f(float x) { return __builtin_##name##f(x); }
#define ACRLPD_MATH_2(name)                                                                                             \
    static inline float name(float x, float y) { return __builtin_##name##f(x, y); }                                    \
    static inline double name(double x, double y) { return __builtin_##name(x, y); }                                    \
    static inline float name##f(float x, float y) { return __builtin_##name##f(x, y); }
ACRLPD_MATH_1(exp)
ACRLPD_MATH_1(exp2)
ACRLPD_MATH_1(log)
ACRLPD_MATH_1(log2)
ACRLPD_MATH_1(log1p)
ACRLPD_MATH_1(sqrt)
ACRLPD_MATH_1(sin)
ACRLPD_MATH_1(cos)
ACRLPD_MATH_1(tan)
ACRLPD_MATH_1(tanh)
ACRLPD_MATH_1(erf)
ACRLPD_MATH_1(floor)
ACRLPD_MATH_1(ceil)
ACRLPD_MATH_1(trunc)
ACRLPD_MATH_1(round)
ACRLPD_MATH_1(rint)
ACRLPD_MATH_1(fabs)
ACRLPD_MATH_2(pow)
ACRLPD_MATH_2(fmod)
ACRLPD_MATH_2(fmin)
ACRLPD_MATH_2(fmax)
ACRLPD_MATH_2(atan2)
static inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
static inline float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float abs(float x) { return __builtin_fabsf(x); }
static inline int abs(int x) { return x < 0 ? -x : x; }
static inline float rsqrt(float x) { return 1.f / __builtin_sqrtf(x); }
static inline float rsqrtf(float x) { return 1.f / __builtin_sqrtf(x); }
static inline bool isnan(float x) { return x != x; }
static inline bool isinf(float x) { return __builtin_isinf(x); }
#define __expf __builtin_expf
#define __logf __builtin_logf
#define __fdividef(a, b) ((a) / (b))
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }
static inline float min(float a, float b) { return __builtin_fminf(a, b); }
static inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
struct __attribute__((aligned(8))) float2 { float x, y; };
struct __attribute__((aligned(16))) float4 { float x, y, z, w; };
struct __attribute__((aligned(8))) uint2 { u32 x, y; };
struct __attribute__((aligned(16))) uint4 { u32 x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
static inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }

// ---- twins of prelude.cuh ------------------------------------------------------------------------------------------

DEVICE float bf16_to_float(bf16 x) { return __uint_as_float((u32)x << 16); }
DEVICE float bf16_low(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float bf16_high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
DEVICE bf16 bf16_from_float(float x) {
    u32 bits = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
DEVICE u32 bf16_pair(float low, float high) { return (u32)bf16_from_float(high) << 16 | bf16_from_float(low); }
DEVICE float exp2_approx(float x) { return exp2f(x); }
DEVICE float reciprocal_approx(float x) { return 1.f / x; }
DEVICE void prefetch_l2(const void*) {}

DEVICE u32 shared_address(const void* p) { return (u32)((const u8*)p - emulated::shared); }
DEVICE void named_barrier(u32 id, u32 threads) {
    emulated::meet(emulated::barriers[id], "a named barrier", [=] { return threads; });
}

DEVICE void emulated_copy_async(const emulated::Copy& c) {
    if ((uintptr_t)c.to % c.size || (uintptr_t)c.from % c.size || c.bytes > c.size)
        return emulated::fail("cp.async at an address that is no multiple of its size");
    if (emulated::coin() & 1 || emulated::self->copy_count == 512) emulated::do_copy(c);
    else emulated::self->copies[emulated::self->copy_count++] = c;
}
DEVICE void copy_async_16(void* to, const void* from, u32 bytes) { emulated_copy_async({to, from, 16, bytes}); }
DEVICE void copy_async_4(void* to, const void* from, u32 bytes) { emulated_copy_async({to, from, 4, bytes}); }
DEVICE void copy_async_commit() {
    emulated::Thread* t = emulated::self;
    if (t->copy_groups == 64) return emulated::fail("more than 64 groups of cp.async");
    t->copy_end[t->copy_groups++] = t->copy_count;
}
template <int N> DEVICE void copy_async_wait() {
    emulated::Thread* t = emulated::self;
    int over = t->copy_groups - N;
    if (over <= 0) return;
    emulated::do_copies(*t, t->copy_end[over - 1]);
    for (int g = over; g < t->copy_groups; g++) t->copy_end[g - over] = t->copy_end[g];
    t->copy_groups -= over;
}

DEVICE void emulated_matrices(u32 (&r)[4], const void* row, bool transposed) {
    u64 address = (u64)(uintptr_t)row;
    if (address % 16) emulated::fail("ldmatrix at an address that is no multiple of 16");
    emulated::Shown shown = emulated::show(&address, 1);
    u32 lane = emulated::self->lane;
    for (u32 i = 0; i < 4; i++) {
        u32 halves[2];
        for (u32 h = 0; h < 2; h++) {
            u32 r = transposed ? lane % 4 * 2 + h : lane / 4, c = transposed ? lane / 4 : lane % 4 * 2 + h;
            halves[h] = ((const u16*)(uintptr_t)*shown.of(8 * i + r))[c];
        }
        r[i] = halves[0] | halves[1] << 16;
    }
    emulated::meet_warp();  // no lane may overwrite what another still reads
}
DEVICE void load_matrices(u32 (&r)[4], const void* row) { emulated_matrices(r, row, false); }
DEVICE void load_matrices_transposed(u32 (&r)[4], const void* row) { emulated_matrices(r, row, true); }

DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    u64 words[3] = {a[0] | (u64)a[1] << 32, a[2] | (u64)a[3] << 32, b0 | (u64)b1 << 32};
    emulated::Shown shown = emulated::show(words, 3);
    u32 g = emulated::self->lane / 4, q = emulated::self->lane % 4;
    for (u32 i = 0; i < 4; i++) {
        u32 column = 2 * q + i % 2;
        float sum = d[i];
        for (u32 k = 0; k < 16; k++) {
            u32 holder = k % 8 / 2;
            const u64* of_a = shown.of(4 * g + holder);
            u32 pair_a = (u32)(of_a[k / 8] >> (i / 2 ? 32 : 0));
            u32 pair_b = (u32)(shown.of(4 * column + holder)[2] >> (k / 8 ? 32 : 0));
            float x = k % 2 ? bf16_high(pair_a) : bf16_low(pair_a), y = k % 2 ? bf16_high(pair_b) : bf16_low(pair_b);
            sum = fmaf(x, y, sum);
        }
        d[i] = sum;
    }
}

DEVICE void mbarrier_init(u64* barrier, u32 arrivals) {
    emulated::MBarrier b = {0, (u16)arrivals, (u16)(arrivals << 1)};
    memcpy(barrier, &b, 8);
}
DEVICE void mbarrier_fence_init() {}
DEVICE void mbarrier_arrive(u64* barrier) {
    emulated::MBarrier* b = (emulated::MBarrier*)barrier;
    if (b->missing == 0) return emulated::fail("more arrivals at an mbarrier than it was made for");
    b->missing--;
    emulated::settle(b);
}
DEVICE void mbarrier_arrive_expect(u64* barrier, u32 bytes) {
    ((emulated::MBarrier*)barrier)->bytes += (int)bytes;
    mbarrier_arrive(barrier);
}
DEVICE void mbarrier_arrive_copies(u64* barrier) {
    emulated::Thread* t = emulated::self;
    emulated::Tma arrival = {nullptr, nullptr, (int)(t - emulated::threads), 0, 0, barrier, t->copies_before + t->copy_count};
    if (emulated::coin() & 1 || emulated::pending_count == emulated::MAX_PENDING) emulated::do_arrival(arrival);
    else emulated::pending[emulated::pending_count++] = arrival;
}
DEVICE void mbarrier_wait(u64* barrier, u32 parity) {
    emulated::wait("an mbarrier", [=] { return (((emulated::MBarrier*)barrier)->state & 1) != (parity & 1); });
}
DEVICE void tma_load(void* to, const CUtensorMap* map, int x, int y, int z, u64* barrier) {
    emulated::Tma t = {to, map, x, y, z, barrier, 0};
    if (shared_address(to) % 128) return emulated::fail("a tensor copy to an address that is no multiple of 128");
    if (map->swizzled && map->box[0] * map->element_bytes > 128) return emulated::fail("a swizzled box wider than 128 bytes");
    if (emulated::coin() & 1 || emulated::pending_count == emulated::MAX_PENDING) emulated::do_tma(t);
    else emulated::pending[emulated::pending_count++] = t;
}
DEVICE void tma_prefetch(const CUtensorMap*) {}
DEVICE void fence_async_proxy() {}
template <int N> DEVICE void registers_raise() {}
template <int N> DEVICE void registers_lower() {}

// Address of element (mn, k) of an operand of wgmma.
DEVICE float emulated_operand(u64 descriptor, bool mn_major, u32 mn, u32 k) {
    u64 at = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    at += mn_major ? mn / 64 * leading + k / 8 * stride + k % 8 * 128 + mn % 64 * 2
                   : mn / 8 * stride + mn % 8 * 128 + k * 2;
    at ^= (at >> 7 & 7) << 4;
    return bf16_to_float(*(const bf16*)(emulated::shared + at));
}
// Two rows of A against the columns of B that the thread has.
template <int N, int B_MN> DEVICE void emulated_products(const emulated::Wgmma& op, const float (&x)[2][16]) {
    u32 lane = emulated::self->lane;
    for (u32 j = 0; j < N / 8; j++)
        for (u32 c = 0; c < 2; c++) {
            u32 column = 8 * j + lane % 4 * 2 + c;
            float *upper = op.d + 4 * j + c, *lower = upper + 2;
            if (!op.add) *upper = *lower = 0.f;
            for (u32 k = 0; k < 16; k++) {
                float y = emulated_operand(op.b, B_MN, column, k);
                *upper = fmaf(x[0][k], y, *upper);
                *lower = fmaf(x[1][k], y, *lower);
            }
        }
}
template <int N, int A_MN, int B_MN> DEVICE void emulated_wgmma(const emulated::Wgmma& op) {
    u32 row = emulated::self->warp % 4 * 16 + emulated::self->lane / 4;
    float x[2][16];
    for (u32 k = 0; k < 16; k++)
        for (u32 i = 0; i < 2; i++) x[i][k] = emulated_operand(op.a, A_MN, row + 8 * i, k);
    emulated_products<N, B_MN>(op, x);
}
template <int N, int B_MN> DEVICE void emulated_wgmma_registers(const emulated::Wgmma& op) {
    float x[2][16];
    for (u32 k = 0; k < 16; k++)
        for (u32 i = 0; i < 2; i++) x[i][k] = k % 2 ? bf16_high(op.held[i][k / 2]) : bf16_low(op.held[i][k / 2]);
    emulated_products<N, B_MN>(op, x);
}
DEVICE void wgmma_fence() {}
DEVICE void wgmma_commit() {
    emulated::Thread* t = emulated::self;
    if (t->groups == 64) return emulated::fail("more than 64 groups of wgmma");
    t->group_end[t->groups++] = t->wgmmas;
}
// The warp waits as one: when a lane goes on, no other still reads the operands.
template <int N> DEVICE void wgmma_wait() {
    emulated::Thread* t = emulated::self;
    int over = t->groups - N;
    if (over > 0) {
        int done = t->group_end[over - 1];
        for (int i = 0; i < done; i++) t->wgmma[i].run(t->wgmma[i]);
        for (int i = done; i < t->wgmmas; i++) t->wgmma[i - done] = t->wgmma[i];
        t->wgmmas -= done;
        for (int g = over; g < t->groups; g++) t->group_end[g - over] = t->group_end[g] - done;
        t->groups -= over;
    }
    emulated::meet_warp();
}
template <int N> DEVICE void wgmma_done(float (&)[N]) {
    if (emulated::self->wgmmas) emulated::fail("sums are read while wgmma is under way");
}
DEVICE u64 wgmma_k_major(const void* p) { return (u64)(shared_address(p) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
DEVICE u64 wgmma_mn_major(const void* p, u32 block_bytes) {
    return (u64)(shared_address(p) >> 4) | (u64)(block_bytes >> 4) << 16 | 64ull << 32 | 1ull << 62;
}
DEVICE void emulated_issue(const emulated::Wgmma& op) {
    emulated::Thread* t = emulated::self;
    // In order: an early one only if none is waiting.
    if (t->wgmmas == 0 && emulated::coin() & 1) op.run(op);
    else if (t->wgmmas == 64) emulated::fail("more than 64 wgmma under way");
    else t->wgmma[t->wgmmas++] = op;
}
template <int A_MN, int B_MN, int R> DEVICE void wgmma(float (&d)[R], u64 a, u64 b, u32 add) {
    emulated_issue({emulated_wgmma<2 * R, A_MN, B_MN>, d, a, b, add, {}});
}
// What is in the registers of other threads is taken when the instruction is issued.
template <int B_MN, int R> DEVICE void wgmma_registers(float (&d)[R], const u32 (&a)[4], u64 b, u32 add) {
    u64 words[2] = {a[0] | (u64)a[1] << 32, a[2] | (u64)a[3] << 32};
    emulated::Shown shown = emulated::show(words, 2);
    emulated::Wgmma op = {emulated_wgmma_registers<2 * R, B_MN>, d, 0, b, add, {}};
    u32 row = emulated::self->lane / 4;
    for (u32 pair = 0; pair < 8; pair++)
        for (u32 i = 0; i < 2; i++) op.held[i][pair] = (u32)(shown.of(4 * row + pair % 4)[pair / 4] >> 32 * i);
    emulated_issue(op);
}
template <int N> DEVICE void wgmma_results(float (&)[N]) {}

#define ACRLPD_ENTRY(kernel)                                                                                            \
    extern "C" const char* acrlpd_launch(void** arguments, const unsigned* grid, const unsigned* block, u64 seed) {     \
        return emulated::launch([](void** a) { emulated::apply(kernel, a); }, arguments, grid, block, seed);            \
    }
