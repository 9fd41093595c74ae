// Vectors of floats by GCC's or Clang's vector extensions, as wide as the registers of the processor; and channels-last tensors in
// float32 or bfloat16, whose number of channels is a multiple of CHANNELS. bfloat16 is widened as it is loaded, and rounded as it
// is stored: all sums are in float32.
//
// Run by the tests: AVX2, and AVX-512 with bfloat16 by emulation. NEON and SSE are compiled from the same source, but untested.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if !defined(__AVX512BF16__) && defined(STVIT_EMULATE_AVX512_BF16)  // by a test: SIMDe computes what the instructions do
#include <simde/x86/avx512/dpbf16.h>
#endif

namespace {

using at::Tensor;
using c10::BFloat16;
#if defined(__AVX512F__) || defined(STVIT_EMULATE_AVX512_BF16)
constexpr int64_t LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int64_t LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int64_t LANES = 4, REGISTERS = 32;
#else
constexpr int64_t LANES = 4, REGISTERS = 16;
#endif
constexpr int64_t CHANNELS = 16;
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
#define INLINE inline __attribute__((always_inline))

INLINE Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
INLINE void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

// The bits of bfloat16, each in the lower half of a lane.
INLINE Words load_bits(const BFloat16* from) {
  const Halves halves = *reinterpret_cast<const Halves*>(from);
#if defined(__AVX512F__)  // GCC widens the two halves of a vector one by one
  return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(halves)));
#elif defined(__AVX2__) && !defined(STVIT_EMULATE_AVX512_BF16)
  return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(halves)));
#else
  return __builtin_convertvector(halves, Words);
#endif
}

INLINE Vector load(const BFloat16* from) { return reinterpret_cast<Vector>(load_bits(from) << 16); }

// The bits of bfloat16, the nearest or the even one of two, in the upper half of each lane; the lower half is undefined.
INLINE Words round_to_bfloat16(Vector value) {
  const Words bits = reinterpret_cast<Words>(value);
  const Words rounded = bits + ((bits >> 16 & 1) + 0x7fff);
  return value == value ? rounded : bits | 0x400000;  // NaN remains NaN
}

template <size_t... I>
INLINE Halves upper_halves(Words words, std::index_sequence<I...>) {
  typedef uint16_t Both __attribute__((vector_size(4 * LANES)));
  const Both both = reinterpret_cast<Both>(words);
  return __builtin_shufflevector(both, both, (2 * I + (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__))...);
}

INLINE Words rounded_bits(Vector value) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(value));
  return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(rounded)));
#else
  return round_to_bfloat16(value) >> 16;
#endif
}

INLINE void store(BFloat16* to, Vector value) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(value));
  std::memcpy(to, &rounded, sizeof(rounded));
#else
  *reinterpret_cast<Halves*>(to) = upper_halves(round_to_bfloat16(value), std::make_index_sequence<LANES>());
#endif
}

// exp(x) of COUNT vectors, x <= 0. A vector alone waits for the result of each step; the steps of several are interleaved, as they
// would otherwise be further apart than a processor looks ahead.
template <int COUNT>
INLINE void exponential(Vector* x) {
  const Vector magic = Vector{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Vector shifted[COUNT], r[COUNT], y[COUNT];
  for (int i = 0; i < COUNT; i++) x[i] = x[i] < -87.0f ? Vector{} - 87.0f : x[i];
  for (int i = 0; i < COUNT; i++) shifted[i] = x[i] * 1.44269504f + magic;
  for (int i = 0; i < COUNT; i++) {
    const Vector whole = shifted[i] - magic;
    r[i] = (x[i] - whole * 0.693359375f) + whole * 2.12194440e-4f;  // log 2 in two parts
  }
  // Cephes' polynomial for exp on [-log(2) / 2, log(2) / 2]
  for (int i = 0; i < COUNT; i++) y[i] = r[i] * 1.9875691e-4f + 1.3981999e-3f;
  for (int i = 0; i < COUNT; i++) y[i] = y[i] * r[i] + 8.3334519e-3f;
  for (int i = 0; i < COUNT; i++) y[i] = y[i] * r[i] + 4.1665796e-2f;
  for (int i = 0; i < COUNT; i++) y[i] = y[i] * r[i] + 1.6666667e-1f;
  for (int i = 0; i < COUNT; i++) y[i] = y[i] * r[i] + 5.0000001e-1f;
  for (int i = 0; i < COUNT; i++) y[i] = y[i] * (r[i] * r[i]) + r[i] + 1.0f;
  for (int i = 0; i < COUNT; i++) {
    const Integers exponent = reinterpret_cast<Integers>(shifted[i]) - reinterpret_cast<Integers>(magic) + 127;
    x[i] = y[i] * reinterpret_cast<Vector>(exponent << 23);
  }
}

template <int64_t STEP, size_t... I>
INLINE Vector rotate(Vector x, std::index_sequence<I...>) {
  return __builtin_shufflevector(x, x, ((I + STEP) % LANES)...);
}

// Reduces all lanes; the result is in every lane.
template <int64_t STEP = LANES / 2, typename Operation>
INLINE Vector over_lanes(Vector x, const Operation& combine) {
  if constexpr (STEP == 0) {
    return x;
  } else {
    return over_lanes<STEP / 2>(combine(x, rotate<STEP>(x, std::make_index_sequence<LANES>())), combine);
  }
}

INLINE Vector larger(Vector a, Vector b) { return a > b ? a : b; }

INLINE Vector largest(Vector x) { return over_lanes(x, larger); }

INLINE Vector sum(Vector x) {
  return over_lanes(x, [](Vector a, Vector b) { return a + b; });
}

// Transposes LANES vectors: as often as the number of lanes can be halved, the first half of the vectors is interleaved with the
// second.
template <size_t... I>
INLINE void interleave(const Vector* from, Vector* to, std::index_sequence<I...>) {
  for (int64_t i = 0; i < LANES / 2; i++) {
    const Vector low = from[i], high = from[i + LANES / 2];
    to[2 * i] = __builtin_shufflevector(low, high, (I % 2 * LANES + I / 2)...);
    to[2 * i + 1] = __builtin_shufflevector(low, high, (I % 2 * LANES + LANES / 2 + I / 2)...);
  }
}

INLINE void transpose(Vector* rows) {
  Vector other[LANES];
  constexpr auto lanes = std::make_index_sequence<LANES>();
  for (int64_t round = 1; round < LANES; round *= 4) {
    interleave(rows, other, lanes);
    if (round * 2 < LANES) {
      interleave(other, rows, lanes);
    } else {
      for (int64_t i = 0; i < LANES; i++) rows[i] = other[i];
    }
  }
}

// Call `body` with the first of two adjacent vectors of channels, or of one.
template <typename Body>
INLINE void for_vectors(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + 2 * LANES <= channels; c += 2 * LANES) body(c, std::integral_constant<int, 2>{});
  if (c < channels) body(c, std::integral_constant<int, 1>{});
}

// Memory for `count` values that are written before they are read.
template <typename T>
std::unique_ptr<T[]> room_for(int64_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

// Copy values to another type.
template <typename From, typename To>
INLINE void convert(const From* from, int64_t count, To* to) {
  for (int64_t i = 0; i < count; i += LANES) store(to + i, load(from + i));
}

// Sizes of tokens (B, H, W, C), and the offset of a channel in a row.
struct Shape {
  int64_t images, height, width, channels;
  explicit Shape(const Tensor& nhwc)
      : images(nhwc.size(0)), height(nhwc.size(1)), width(nhwc.size(2)), channels(nhwc.size(3)) {}
  INLINE int64_t at(int64_t image, int64_t row, int64_t c) const { return (image * height + row) * width * channels + c; }
};

// (B, C, H, W) as (B, H, W, C), contiguous.
Tensor channels_last(const Tensor& x) {
  TORCH_CHECK(x.dim() == 4 && x.numel() > 0 && x.size(1) % CHANNELS == 0 &&
                  (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16),
              "expected tokens (B, C, H, W) in float32 or bfloat16, at least one, with C a multiple of ", CHANNELS, ", got ",
              x.sizes(), " in ", x.scalar_type());
  return x.permute({0, 2, 3, 1}).contiguous();
}

// The same, in the dtype of other tokens.
Tensor channels_last_like(const Tensor& x, const Tensor& other) { return channels_last(x.to(other.scalar_type())); }

// Weights of any dtype in float32.
Tensor in_float32(const Tensor& weight) { return weight.to(at::kFloat).contiguous(); }

Tensor empty_float32(at::IntArrayRef sizes, const Tensor& like) { return at::empty(sizes, like.options().dtype(at::kFloat)); }

// Call `body` with a value of the type of the tokens.
template <typename Body>
auto by_type(const Tensor& tokens, const Body& body) {
  return tokens.scalar_type() == at::kFloat ? body(float{}) : body(BFloat16{});
}

}  // namespace
