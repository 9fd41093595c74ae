// Vectors of sixteen floats by GCC's or Clang's vector extensions, which compile to AVX-512, AVX2 or NEON; and channels-last
// tensors, whose number of channels is a multiple of sixteen.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;
constexpr int64_t LANES = 16;
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
#define INLINE inline __attribute__((always_inline))

INLINE Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
INLINE void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

INLINE Vector exponential(Vector x) {
  x = x < -87.0f ? Vector{} - 87.0f : x;        // x <= 0 in all calls
  const Vector magic = Vector{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector shifted = x * 1.44269504f + magic;
  const Vector whole = shifted - magic;
  const Vector r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // log 2 in two parts
  Vector y = r * 1.9875691e-4f + 1.3981999e-3f;  // Cephes' polynomial for exp on [-log(2) / 2, log(2) / 2]
  y = y * r + 8.3334519e-3f;
  y = y * r + 4.1665796e-2f;
  y = y * r + 1.6666667e-1f;
  y = y * r + 5.0000001e-1f;
  y = y * (r * r) + r + 1.0f;
  const Integers exponent = reinterpret_cast<Integers>(shifted) - reinterpret_cast<Integers>(magic) + 127;
  return y * reinterpret_cast<Vector>(exponent << 23);
}

// Reduces all lanes; the result is in every lane.
template <typename Operation>
INLINE Vector over_lanes(Vector x, const Operation& combine) {
  x = combine(x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  x = combine(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3));
  x = combine(x, __builtin_shufflevector(x, x, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1));
  return combine(x, __builtin_shufflevector(x, x, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0));
}

INLINE Vector largest(Vector x) {
  return over_lanes(x, [](Vector a, Vector b) { return a > b ? a : b; });
}

INLINE Vector sum(Vector x) {
  return over_lanes(x, [](Vector a, Vector b) { return a + b; });
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
  TORCH_CHECK(x.dim() == 4 && x.numel() > 0 && x.size(1) % LANES == 0 && x.scalar_type() == at::kFloat,
              "expected tokens (B, C, H, W) in float32, at least one, with C a multiple of ", LANES, ", got ", x.sizes(), " in ",
              x.scalar_type());
  return x.permute({0, 2, 3, 1}).contiguous();
}

}  // namespace
