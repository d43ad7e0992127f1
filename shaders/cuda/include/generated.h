// What CUDA's own headers give to the kernels that cubecl generates, for emulated.h: half precision, and bit counts.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef u16 bf16;

#include "emulated.h"

// Storage alone: arithmetic happens in f32. Conversions round to nearest even.
struct __half {
    _Float16 value;
    __half() = default;
    template <class T> __half(T x) : value((_Float16)(float)x) {}
    operator float() const { return (float)value; }
};

struct __nv_bfloat16 {
    u16 bits;
    __nv_bfloat16() = default;
    template <class T> __nv_bfloat16(T x) : bits(bf16_from_float((float)x)) {}
    operator float() const { return bf16_to_float(bits); }
};

// Members of the vectors of halves.
struct __half2 {
    __half x, y;
};
struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

static inline __half __float2half(float x) { return x; }
static inline __half __float2half_rn(float x) { return x; }
static inline float __half2float(__half x) { return x; }
static inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
static inline float __bfloat162float(__nv_bfloat16 x) { return x; }

static inline int __popc(u32 x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline u32 __umulhi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
