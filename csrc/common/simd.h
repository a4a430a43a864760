// SIMD chosen at run time. The library is compiled for the oldest CPU of its kind; a kernel's hot part is an
// always-inlined body that `simd::dispatch` instantiates once more inside functions compiled for AVX2 and for AVX-512,
// and picks from by what the running CPU has. D2PROJ_SIMD=base|avx2|avx512 lowers the choice (tests run every level).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define D2_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define D2_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#endif

#define D2_INLINE inline __attribute__((always_inline))

namespace d2proj {
namespace simd {

enum class Level { kBase, kAvx2, kAvx512 };

inline Level detect() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("D2PROJ_SIMD");
  if (wanted && !std::strcmp(wanted, "base")) return Level::kBase;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (wanted && !std::strcmp(wanted, "avx2")) return avx2 ? Level::kAvx2 : Level::kBase;
  return avx2 && avx512 ? Level::kAvx512 : avx2 ? Level::kAvx2 : Level::kBase;
#else
  return Level::kBase;
#endif
}

inline Level level() {
  static const Level found = detect();
  return found;
}

#if defined(__x86_64__)
template <typename Body, typename... Args>
D2_TARGET_AVX512 void run_avx512(const Args&... args) {
  Body::template run<Level::kAvx512>(args...);
}
template <typename Body, typename... Args>
D2_TARGET_AVX2 void run_avx2(const Args&... args) {
  Body::template run<Level::kAvx2>(args...);
}
#endif

// Calls `Body::run<level>(args...)`, a `template <simd::Level> static D2_INLINE void run(...)`, compiled for that
// level.
template <typename Body, typename... Args>
void dispatch(const Args&... args) {
#if defined(__x86_64__)
  if (level() == Level::kAvx512) return run_avx512<Body>(args...);
  if (level() == Level::kAvx2) return run_avx2<Body>(args...);
#endif
  Body::template run<Level::kBase>(args...);
}

// 64 bytes of T: one AVX-512 register, two AVX ones, four SSE or NEON ones.
template <typename T>
struct Wide {
  static constexpr int kLanes = 64 / sizeof(T);
  typedef T type __attribute__((vector_size(64)));
};

template <typename V, typename T>
D2_INLINE void load(V& value, const T* from) {
  __builtin_memcpy(&value, from, sizeof(V));
}
template <typename V, typename T>
D2_INLINE void store(T* to, const V& value) {
  __builtin_memcpy(to, &value, sizeof(V));
}

typedef float Float8 __attribute__((vector_size(32)));
typedef uint32_t Uint8 __attribute__((vector_size(32)));
typedef int32_t Int8 __attribute__((vector_size(32)));

// Eight elements of any storage type from and to eight floats.
#if defined(__x86_64__)
D2_TARGET_AVX2 inline void load8_f16c(Float8& value, const void* from) {
  const __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  __builtin_memcpy(&value, &wide, sizeof(value));
}
D2_TARGET_AVX2 inline void store8_f16c(void* to, const Float8& value) {
  __m256 wide;
  __builtin_memcpy(&wide, &value, sizeof(wide));
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT));
}
#endif

template <Level L>
D2_INLINE void load8(Float8& value, const float* from) {
  __builtin_memcpy(&value, from, sizeof(value));
}
template <Level L>
D2_INLINE void load8(Float8& value, const c10::BFloat16* from) {
  uint16_t raw[8];
  __builtin_memcpy(raw, from, sizeof(raw));
  Uint8 bits = {};
  for (int i = 0; i < 8; ++i) bits[i] = static_cast<uint32_t>(raw[i]) << 16;
  __builtin_memcpy(&value, &bits, sizeof(value));
}
template <Level L>
D2_INLINE void load8(Float8& value, const c10::Half* from) {
#if defined(__x86_64__)
  if constexpr (L != Level::kBase) return load8_f16c(value, from);
#endif
  for (int i = 0; i < 8; ++i) value[i] = static_cast<float>(from[i]);
}
template <Level L>
D2_INLINE void store8(float* to, const Float8& value) {
  __builtin_memcpy(to, &value, sizeof(value));
}
template <Level L>
D2_INLINE void store8(c10::BFloat16* to, const Float8& value) {
  // Round to nearest even; a NaN stays one.
  Uint8 bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  Uint8 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Int8 is_nan = value != value;
  rounded = is_nan ? Uint8{} + 0x7fc0u : rounded;
  uint16_t raw[8];
  for (int i = 0; i < 8; ++i) raw[i] = static_cast<uint16_t>(rounded[i]);
  __builtin_memcpy(to, raw, sizeof(raw));
}
template <Level L>
D2_INLINE void store8(c10::Half* to, const Float8& value) {
#if defined(__x86_64__)
  if constexpr (L != Level::kBase) return store8_f16c(to, value);
#endif
  for (int i = 0; i < 8; ++i) to[i] = static_cast<c10::Half>(value[i]);
}

#if defined(__clang__) || __GNUC__ >= 12
#define D2_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define D2_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, ::d2proj::simd::Int8{__VA_ARGS__})
#endif

// Transposes eight rows of eight. In intrinsics where it can be: g++ takes GNU shuffles apart, element by element, in
// code that is inlined into a function for a later instruction set.
#if defined(__x86_64__)
D2_TARGET_AVX2 inline void transpose8_avx2(Float8 (&rows)[8]) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = reinterpret_cast<const __m256&>(rows[i]);
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    reinterpret_cast<__m256&>(rows[i]) = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    reinterpret_cast<__m256&>(rows[i + 4]) = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
}
#endif

template <Level L>
D2_INLINE void transpose8(Float8 (&r)[8]) {
#if defined(__x86_64__)
  if constexpr (L != Level::kBase) return transpose8_avx2(r);
#endif
  Float8 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = D2_SHUFFLE(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[i + 1] = D2_SHUFFLE(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      u[i + 2 * j] = D2_SHUFFLE(t[i + j], t[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      u[i + 2 * j + 1] = D2_SHUFFLE(t[i + j], t[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = D2_SHUFFLE(u[i], u[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    r[i + 4] = D2_SHUFFLE(u[i], u[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// Two matrices that are each other's transpose, `planes` x `count` (element (p, i) at src[p * plane_stride + i * step])
// and count x kLanes (at dst[i * pitch + p]): `gather_lanes` writes the second, `scatter_lanes` the first. They turn
// planar channels into the lanes of a Wide and back, converting the storage type. Lanes from `planes` on are zeroed or
// ignored. `pitch` is the distance of the second's rows where it is part of a wider one.
template <Level L, typename T, typename A>
D2_INLINE void gather_lanes(A* dst, const T* src, int64_t plane_stride, int64_t step, int64_t planes, int64_t count,
                            int64_t pitch = Wide<A>::kLanes) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  int64_t done = 0;
  if constexpr (sizeof(A) == 4) {
    if (step == 1) {
      for (; done + 8 <= count; done += 8) {
        for (int64_t half = 0; half < kLanes; half += 8) {
          Float8 r[8] = {};
          if (half + 8 <= planes) {
            for (int i = 0; i < 8; ++i) load8<L>(r[i], src + (half + i) * plane_stride + done);
          } else {
            for (int i = 0; half + i < planes; ++i) load8<L>(r[i], src + (half + i) * plane_stride + done);
          }
          transpose8<L>(r);
          for (int i = 0; i < 8; ++i) store8<L>(dst + (done + i) * pitch + half, r[i]);
        }
      }
    } else if (plane_stride == 1 && planes == kLanes) {
      for (; done < count; ++done) {
        for (int64_t half = 0; half < kLanes; half += 8) {
          Float8 r;
          load8<L>(r, src + done * step + half);
          store8<L>(dst + done * pitch + half, r);
        }
      }
    }
  }
  for (; done < count; ++done) {
    for (int64_t p = 0; p < planes; ++p) dst[done * pitch + p] = static_cast<A>(src[p * plane_stride + done * step]);
    for (int64_t p = planes; p < kLanes; ++p) dst[done * pitch + p] = A(0);
  }
}

template <Level L, typename T, typename A>
D2_INLINE void scatter_lanes(T* dst, const A* src, int64_t plane_stride, int64_t step, int64_t planes, int64_t count,
                             int64_t pitch = Wide<A>::kLanes) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  int64_t done = 0;
  if constexpr (sizeof(A) == 4) {
    if (step == 1) {
      for (; done + 8 <= count; done += 8) {
        for (int64_t half = 0; half < planes; half += 8) {
          Float8 r[8];
          for (int i = 0; i < 8; ++i) load8<L>(r[i], src + (done + i) * pitch + half);
          transpose8<L>(r);
          if (half + 8 <= planes) {
            for (int i = 0; i < 8; ++i) store8<L>(dst + (half + i) * plane_stride + done, r[i]);
          } else {
            for (int i = 0; half + i < planes; ++i) store8<L>(dst + (half + i) * plane_stride + done, r[i]);
          }
        }
      }
    } else if (plane_stride == 1 && planes == kLanes) {
      for (; done < count; ++done) {
        for (int64_t half = 0; half < kLanes; half += 8) {
          Float8 r;
          load8<L>(r, src + done * pitch + half);
          store8<L>(dst + done * step + half, r);
        }
      }
    }
  }
  for (; done < count; ++done) {
    for (int64_t p = 0; p < planes; ++p) dst[p * plane_stride + done * step] = static_cast<T>(src[done * pitch + p]);
  }
}

}  // namespace simd
}  // namespace d2proj
