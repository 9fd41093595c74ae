// Products of small matrices in the cache, in float32 or of bfloat16 by AVX512-BF16.

#pragma once

#include <bit>

#include "vector.h"

namespace {

// Two factors in bfloat16 that are multiplied and added by one instruction; the first is in the lower half.
struct __attribute__((packed, aligned(2), may_alias)) Pair {
  uint32_t bits;
};

#if defined(__AVX512BF16__) && defined(__AVX512F__)
constexpr bool HAVE_PAIRS = true;
INLINE Vector add_product(Vector sums, Words right, Pair left) {
  const auto both = reinterpret_cast<__m512bh>(Words{} + left.bits);
  return reinterpret_cast<Vector>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sums), reinterpret_cast<__m512bh>(right), both));
}
#elif defined(STVIT_EMULATE_AVX512_BF16)
constexpr bool HAVE_PAIRS = true;
INLINE Vector add_product(Vector sums, Words right, Pair left) {
  const auto pairs = [](Words words) { return std::bit_cast<simde__m512bh>(words); };
  return std::bit_cast<Vector>(simde_mm512_dpbf16_ps(std::bit_cast<simde__m512>(sums), pairs(right), pairs(Words{} + left.bits)));
}
#else
constexpr bool HAVE_PAIRS = false;
INLINE Vector add_product(Vector sums, Words, Pair) { return sums; }  // not called
#endif
INLINE Vector add_product(Vector sums, Vector right, float left) { return sums + right * left; }

INLINE Vector load_factors(const float* from) { return load(from); }
INLINE Words load_factors(const Pair* from) {
  Words words;
  std::memcpy(&words, from, sizeof(words));
  return words;
}

template <typename Factor>
struct Left {
  const Factor* at;
  int64_t row, column;
};

// C (M, V vectors) = or += A B. A (M, K) has any strides; the columns of B (K, V vectors) and C are contiguous. With pairs, K counts
// them: A is (M, K, 2), B (K, V vectors, 2).
// An iteration of 6 x 4 sums is 24 multiplications, whose left factor is broadcast from memory, and 4 loads, so that the two units
// that multiply are what bounds it: by llvm-mca 14 for sapphirerapids 12 cycles in float32 and 13 with pairs. It has no znver4.
template <int ROWS, int VECTORS, typename Factor>
INLINE void tile(Left<Factor> a, const Factor* b, int64_t b_row, int64_t depth, float* c, int64_t c_row, bool add) {
  Vector sums[ROWS][VECTORS];
  for (int i = 0; i < ROWS; i++)
    for (int v = 0; v < VECTORS; v++) sums[i][v] = add ? load(c + i * c_row + v * LANES) : Vector{};
  for (int64_t k = 0; k < depth; k++) {
    decltype(load_factors(b)) right[VECTORS];
    for (int v = 0; v < VECTORS; v++) right[v] = load_factors(b + k * b_row + v * LANES);
    for (int i = 0; i < ROWS; i++) {
      const Factor left = a.at[i * a.row + k * a.column];
      for (int v = 0; v < VECTORS; v++) sums[i][v] = add_product(sums[i][v], right[v], left);
    }
  }
  for (int i = 0; i < ROWS; i++)
    for (int v = 0; v < VECTORS; v++) store(c + i * c_row + v * LANES, sums[i][v]);
}

template <int VECTORS, typename Factor>
INLINE void panel(int64_t rows, Left<Factor> a, const Factor* b, int64_t b_row, int64_t depth, float* c, int64_t c_row, bool add) {
  int64_t i = 0;
  const auto left = [&] { return Left<Factor>{a.at + i * a.row, a.row, a.column}; };
  for (; i + 6 <= rows; i += 6) tile<6, VECTORS>(left(), b, b_row, depth, c + i * c_row, c_row, add);
  for (; i + 2 <= rows; i += 2) tile<2, VECTORS>(left(), b, b_row, depth, c + i * c_row, c_row, add);
  for (; i < rows; i++) tile<1, VECTORS>(left(), b, b_row, depth, c + i * c_row, c_row, add);
}

template <typename Factor>
void multiply(int64_t rows, int64_t columns, int64_t depth, Left<Factor> a, const Factor* b, int64_t b_row, float* c,
              int64_t c_row, bool add) {
  int64_t j = 0;
  if constexpr (REGISTERS == 32)  // 6 x 4 sums fit into 32 registers, 6 x 2 into 16
    for (; j + 4 * LANES <= columns; j += 4 * LANES) panel<4>(rows, a, b + j, b_row, depth, c + j, c_row, add);
  for (; j + 2 * LANES <= columns; j += 2 * LANES) panel<2>(rows, a, b + j, b_row, depth, c + j, c_row, add);
  for (; j < columns; j += LANES) panel<1>(rows, a, b + j, b_row, depth, c + j, c_row, add);
}

// The operands of a head's products. Rows (n, d) of queries, keys, values and gradients of y are `stride` apart in memory; products
// are (rows, padded) or (rows, d) in float32. In the backward pass, `block` is a block of queries.
//
// In float32: matrices are widened where the tokens are bfloat16.
template <typename T>
class Float32Operands {
 public:
  using Factor = float;
  // Copied as rows: (n, d).
  static void copy(const T* from, int64_t stride, int64_t n, int64_t d, float* to) {
    for (int64_t i = 0; i < n; i++) convert(from + i * stride, d, to + i * d);
  }
  // Copied as a right operand of a product over n: (n, d).
  static void copy_right(const T* from, int64_t stride, int64_t n, int64_t d, float* to) { copy(from, stride, n, d, to); }
  // Copied as a right operand of a product over d: (d, padded), zeros beyond n.
  static void copy_transposed(const T* from, int64_t stride, int64_t n, int64_t d, int64_t padded, float* to) {
    for (int64_t c = 0; c < d; c += LANES)
      for (int64_t first = 0; first < padded; first += LANES) {
        Vector rows[LANES];
        for (int64_t i = 0; i < LANES; i++) rows[i] = first + i < n ? load(from + (first + i) * stride + c) : Vector{};
        transpose(rows);
        for (int64_t i = 0; i < LANES; i++) store(to + (c + i) * padded + first, rows[i]);
      }
  }
  // Probabilities (rows, padded) as the left operand of a product over padded.
  static Left<float> left(const float* probs, int64_t, int64_t padded, float*) { return {probs, padded, 1}; }
  // And of their transposed over the rows.
  static Left<float> transposed_left(const float* probs, int64_t, int64_t padded, float*) { return {probs, 1, padded}; }
  static int64_t depth(int64_t n) { return n; }
};

// As pairs of bfloat16, in about half the instructions.
class PairOperands {
 public:
  using Factor = Pair;
  static void copy(const BFloat16* from, int64_t stride, int64_t n, int64_t d, Pair* to) {
    for (int64_t i = 0; i < n; i++) std::memcpy(to + i * d / 2, from + i * stride, d * sizeof(BFloat16));
  }
  // Rows 2 i and 2 i + 1 interleaved.
  static void copy_right(const BFloat16* from, int64_t stride, int64_t n, int64_t d, Pair* to) {
    for (int64_t i = 0; i < n; i += 2)
      for (int64_t c = 0; c < d; c += LANES) {
        const BFloat16* at = from + i * stride + c;
        store_pairs(to + i / 2 * d + c, load_bits(at), i + 1 < n ? load_bits(at + stride) : Words{});
      }
  }
  static void copy_transposed(const BFloat16* from, int64_t stride, int64_t n, int64_t d, int64_t padded, Pair* to) {
    for (int64_t c = 0; c < d / 2; c += LANES)  // d is a multiple of LANES: half of it may end within a vector
      for (int64_t first = 0; first < padded; first += LANES) {
        const int64_t count = std::min(LANES, d / 2 - c);
        Vector rows[LANES] = {};
        for (int64_t i = 0; i < std::min(LANES, n - first); i++)
          std::memcpy(&rows[i], from + (first + i) * stride + 2 * c, count * sizeof(Pair));
        transpose(rows);
        for (int64_t i = 0; i < count; i++) std::memcpy(to + (c + i) * padded + first, &rows[i], sizeof(Vector));
      }
  }
  static Left<Pair> left(const float* probs, int64_t rows, int64_t padded, Pair* room) {
    convert(probs, rows * padded, reinterpret_cast<BFloat16*>(room));
    return {room, padded / 2, 1};
  }
  static Left<Pair> transposed_left(const float* probs, int64_t rows, int64_t padded, Pair* room) {
    for (int64_t i = 0; i < rows; i += 2)
      for (int64_t j = 0; j < padded; j += LANES) {
        const float* at = probs + i * padded + j;
        store_pairs(room + i / 2 * padded + j, rounded_bits(load(at)), i + 1 < rows ? rounded_bits(load(at + padded)) : Words{});
      }
    return {room, 1, padded};
  }
  static int64_t depth(int64_t n) { return (n + 1) / 2; }

 private:
  static INLINE void store_pairs(Pair* to, Words first, Words second) {
    const Words words = first | second << 16;
    std::memcpy(to, &words, sizeof(words));
  }
};

template <typename T>
using Operands = std::conditional_t<HAVE_PAIRS && std::is_same_v<T, BFloat16>, PairOperands, Float32Operands<T>>;

}  // namespace
