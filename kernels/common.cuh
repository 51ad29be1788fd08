// What all kernels share. A kernel is one translation unit: hwnas/runtime/cuda/kernels.py puts this text before its
// source, so that neither NVRTC nor nvcc needs an include path.
//
// The same text compiles for the host with HWNAS_HOST defined: tests run every thread of the grid one after the other
// and compare with the reference in numpy. Kernels therefore have no barrier and share no memory between threads.

#ifdef HWNAS_HOST
#include <cmath>
#include <cstdint>
#include <cstring>
#define __global__
#define __device__
#define __restrict__
#define __forceinline__ inline
struct Index3 {
    unsigned x, y, z;
};
static thread_local Index3 threadIdx, blockIdx, blockDim, gridDim;
static inline int min(int a, int b) { return a < b ? a : b; }
#else
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef long long int64_t;
#endif

// An IEEE half, by its bits: NVRTC brings no cuda_fp16.h.
struct half_t {
    uint16_t bits;
};

static __device__ __forceinline__ float to_float(float x) { return x; }

static __device__ __forceinline__ float to_float(half_t x) {
    float out;
#ifdef HWNAS_HOST
    const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
    uint32_t word;
    if (magnitude >= 0x7c00u) {
        word = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;  // infinity, NaN
    } else if (magnitude >= 0x400u) {
        word = sign | ((magnitude << 13) + (112u << 23));
    } else {
        out = (sign ? -1.0f : 1.0f) * (float)magnitude * 5.9604644775390625e-8f;  // subnormal: units of 2^-24
        return out;
    }
    std::memcpy(&out, &word, sizeof(out));
#else
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
#endif
    return out;
}

template <typename T>
static __device__ __forceinline__ T from_float(float x);

template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}

template <>
__device__ __forceinline__ half_t from_float<half_t>(float x) {  // to nearest, ties to even
    half_t out;
#ifdef HWNAS_HOST
    uint32_t word;
    std::memcpy(&word, &x, sizeof(word));
    const uint32_t sign = word >> 16 & 0x8000u, magnitude = word & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        out.bits = (uint16_t)(sign | 0x7e00u);
    } else if (magnitude >= 0x477ff000u) {
        out.bits = (uint16_t)(sign | 0x7c00u);  // 65520 and more round to infinity
    } else if (magnitude < 0x38800000u) {       // below 2^-14: subnormal, the sum rounds to units of 2^-24
        float y;
        std::memcpy(&y, &magnitude, sizeof(y));
        y += 0.5f;
        uint32_t rounded;
        std::memcpy(&rounded, &y, sizeof(rounded));
        out.bits = (uint16_t)(sign | (rounded - 0x3f000000u));
    } else {
        const uint32_t odd = magnitude >> 13 & 1u;
        out.bits = (uint16_t)(sign | ((magnitude - (112u << 23) + 0xfffu + odd) >> 13));
    }
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#endif
    return out;
}
