// Self-attention among the positions of an image, one head at a time. Its memory is linear in the head_index of positions.

#pragma once

#include "vector.h"

namespace {

// C (M, V vectors) = or += A B. A (M, K) has any strides; the columns of B (K, V vectors) and C are contiguous.
struct Left {
  const float* at;
  int64_t row, column;
};

template <int ROWS, int VECTORS>
INLINE void tile(Left a, const float* b, int64_t b_row, int64_t depth, float* c, int64_t c_row, bool add) {
  Vector sums[ROWS][VECTORS];
  for (int i = 0; i < ROWS; i++)
    for (int v = 0; v < VECTORS; v++) sums[i][v] = add ? load(c + i * c_row + v * LANES) : Vector{};
  for (int64_t k = 0; k < depth; k++) {
    Vector right[VECTORS];
    for (int v = 0; v < VECTORS; v++) right[v] = load(b + k * b_row + v * LANES);
    for (int i = 0; i < ROWS; i++) {
      const float left = a.at[i * a.row + k * a.column];
      for (int v = 0; v < VECTORS; v++) sums[i][v] += right[v] * left;
    }
  }
  for (int i = 0; i < ROWS; i++)
    for (int v = 0; v < VECTORS; v++) store(c + i * c_row + v * LANES, sums[i][v]);
}

template <int VECTORS>
INLINE void panel(int64_t rows, Left a, const float* b, int64_t b_row, int64_t depth, float* c, int64_t c_row, bool add) {
  int64_t i = 0;
  const auto left = [&] { return Left{a.at + i * a.row, a.row, a.column}; };
  for (; i + 6 <= rows; i += 6) tile<6, VECTORS>(left(), b, b_row, depth, c + i * c_row, c_row, add);
  for (; i + 2 <= rows; i += 2) tile<2, VECTORS>(left(), b, b_row, depth, c + i * c_row, c_row, add);
  for (; i < rows; i++) tile<1, VECTORS>(left(), b, b_row, depth, c + i * c_row, c_row, add);
}

void multiply(int64_t rows, int64_t columns, int64_t depth, Left a, const float* b, int64_t b_row, float* c, int64_t c_row,
              bool add) {
  int64_t j = 0;
  if constexpr (REGISTERS == 32)  // 6 x 4 sums fit into 32 registers, 6 x 2 into 16
    for (; j + 4 * LANES <= columns; j += 4 * LANES) panel<4>(rows, a, b + j, b_row, depth, c + j, c_row, add);
  for (; j + 2 * LANES <= columns; j += 2 * LANES) panel<2>(rows, a, b + j, b_row, depth, c + j, c_row, add);
  for (; j < columns; j += LANES) panel<1>(rows, a, b + j, b_row, depth, c + j, c_row, add);
}

// Copy rows (n, d) that are `stride` apart to contiguous memory, times `scale`.
template <typename T>
void copy_rows(const T* from, int64_t stride, int64_t n, int64_t d, float scale, float* to) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t c = 0; c < d; c += LANES) store(to + i * d + c, load(from + i * stride + c) * scale);
}

// Copy contiguous rows (n, d) to rows that are `stride` apart.
template <typename T>
void spread_rows(const float* from, int64_t n, int64_t d, T* to, int64_t stride) {
  for (int64_t i = 0; i < n; i++) convert(from + i * d, d, to + i * stride);
}

// Copy them transposed: (d, padded), zeros beyond n.
template <typename T>
void transpose_rows(const T* from, int64_t stride, int64_t n, int64_t d, int64_t padded, float* to) {
  for (int64_t c = 0; c < d; c += LANES)
    for (int64_t i = 0; i < padded; i++) {
      const Vector row = i < n ? load(from + i * stride + c) : Vector{};
      for (int64_t lane = 0; lane < LANES; lane++) to[(c + lane) * padded + i] = row[lane];
    }
}

constexpr int64_t QUERIES = 48;  // processed at a time

// The layout of a head in qkv (B, H, W, 3 C) and y (B, H, W, C), and the scale of its products.
struct Head {
  int64_t n, d, padded, qkv_stride, y_stride;  // positions, channels, positions padded to whole vectors, strides of qkv and y
  float scale;
  Head(const Tensor& qkv, int64_t heads)
      : n(qkv.size(1) * qkv.size(2)),
        d(qkv.size(3) / 3 / heads),
        padded((n + LANES - 1) / LANES * LANES),
        qkv_stride(qkv.size(3)),
        y_stride(qkv.size(3) / 3),
        scale(1.0f / std::sqrt(static_cast<float>(d))) {}
};

// Softmax of the first n of `padded` logits, not normalized: returns the sum in all lanes, and the largest logit in `most`.
INLINE Vector powers(float* row, int64_t n, int64_t padded, float& largest_logit) {
  std::fill(row + n, row + padded, -INFINITY);
  Vector most = load(row);
  for (int64_t j = LANES; j < padded; j += LANES) most = larger(load(row + j), most);
  most = largest(most);
  largest_logit = most[0];
  Vector sums = {};
  for (int64_t j = 0; j < padded; j += LANES) {
    const Vector power = exponential(load(row + j) - most);
    sums += power;
    store(row + j, power);
  }
  return sum(sums);
}

template <typename T>
void attend(const Head& head, int64_t images, int64_t heads, const T* from, T* to, float* to_logs) {
  const int64_t n = head.n, d = head.d, padded = head.padded;
  // With few heads per thread, the queries of a head are split.
  const int64_t blocks =
      std::min((n + QUERIES - 1) / QUERIES, (4 * at::get_num_threads() + images * heads - 1) / (images * heads));
  const int64_t block = (n + blocks - 1) / blocks;
  at::parallel_for(0, images * heads * blocks, 1, [&](int64_t begin, int64_t end) {
    const auto keys = room_for<float>(d * padded), values = room_for<float>(n * d), queries = room_for<float>(QUERIES * d);
    const auto probs = room_for<float>(QUERIES * padded), mixed = room_for<float>(QUERIES * d);
    for (int64_t task = begin; task < end; task++) {
      const int64_t head_index = task / blocks, image = head_index / heads, which = head_index % heads;
      const T* q = from + image * n * head.qkv_stride + which * 3 * d;
      T* out = to + image * n * head.y_stride + which * d;
      if (task == begin || task % blocks == 0) {
        transpose_rows(q + d, head.qkv_stride, n, d, padded, keys.get());
        copy_rows(q + 2 * d, head.qkv_stride, n, d, 1.0f, values.get());
      }
      const int64_t last = std::min(n, (task % blocks + 1) * block);
      for (int64_t first = task % blocks * block; first < last; first += QUERIES) {
        const int64_t rows = std::min(QUERIES, last - first);
        Vector sums[QUERIES];
        copy_rows(q + first * head.qkv_stride, head.qkv_stride, rows, d, head.scale, queries.get());
        multiply(rows, padded, d, {queries.get(), d, 1}, keys.get(), padded, probs.get(), padded, false);
        for (int64_t i = 0; i < rows; i++) {
          float most;
          sums[i] = powers(&probs[i * padded], n, padded, most);
          to_logs[head_index * n + first + i] = most + std::log(sums[i][0]);
        }
        multiply(rows, d, n, {probs.get(), padded, 1}, values.get(), d, mixed.get(), d, false);
        for (int64_t i = 0; i < rows; i++)
          for (int64_t c = 0; c < d; c += LANES) store(out + (first + i) * head.y_stride + c, load(&mixed[i * d + c]) / sums[i]);
      }
    }
  });
}

// See `operators.py`; so for the next.
std::tuple<Tensor, Tensor> self_attention(const Tensor& input, int64_t heads) {
  const Tensor qkv = channels_last(input);
  const Head head(qkv, heads);
  const int64_t images = qkv.size(0);
  Tensor y = at::empty({images, qkv.size(1), qkv.size(2), head.y_stride}, qkv.options());
  Tensor logs = empty_float32({images, heads, head.n}, qkv);
  by_type(qkv, [&](auto type) {
    using T = decltype(type);
    attend(head, images, heads, qkv.const_data_ptr<T>(), y.mutable_data_ptr<T>(), logs.mutable_data_ptr<float>());
  });
  return {y.permute({0, 3, 1, 2}), logs};
}

template <typename T>
void attend_backward(const Head& head, int64_t images, int64_t heads, const T* above, const T* from, const T* outputs,
                     const float* of_logs, T* to) {
  const int64_t n = head.n, d = head.d, padded = head.padded;
  at::parallel_for(0, images * heads, 1, [&](int64_t begin, int64_t end) {
    const auto transposed_keys = room_for<float>(d * padded), transposed_values = room_for<float>(d * padded);
    const auto keys = room_for<float>(n * d), of_keys = room_for<float>(n * d), of_values = room_for<float>(n * d);
    const auto queries = room_for<float>(QUERIES * d), grads = room_for<float>(QUERIES * d);
    const auto probs = room_for<float>(QUERIES * padded), grad_probs = room_for<float>(QUERIES * padded);
    const auto of_queries = room_for<float>(QUERIES * d);
    for (int64_t head_index = begin; head_index < end; head_index++) {
      const int64_t image = head_index / heads, which = head_index % heads;
      const T* q = from + image * n * head.qkv_stride + which * 3 * d;
      const int64_t y_stride = image * n * head.y_stride + which * d;
      T* of_q = to + image * n * head.qkv_stride + which * 3 * d;
      transpose_rows(q + d, head.qkv_stride, n, d, padded, transposed_keys.get());
      transpose_rows(q + 2 * d, head.qkv_stride, n, d, padded, transposed_values.get());
      copy_rows(q + d, head.qkv_stride, n, d, head.scale, keys.get());
      for (int64_t first = 0; first < n; first += QUERIES) {
        const int64_t rows = std::min(QUERIES, n - first);
        const T *out = outputs + y_stride + first * head.y_stride, *of_out = above + y_stride + first * head.y_stride;
        copy_rows(q + first * head.qkv_stride, head.qkv_stride, rows, d, head.scale, queries.get());
        copy_rows(of_out, head.y_stride, rows, d, 1.0f, grads.get());
        multiply(rows, padded, d, {queries.get(), d, 1}, transposed_keys.get(), padded, probs.get(), padded, false);
        multiply(rows, padded, d, {grads.get(), d, 1}, transposed_values.get(), padded, grad_probs.get(), padded, false);
        for (int64_t i = 0; i < rows; i++) {
          float *row = &probs[i * padded], *of_row = &grad_probs[i * padded];
          Vector dot = {};
          for (int64_t c = 0; c < d; c += LANES) dot += load(out + i * head.y_stride + c) * load(&grads[i * d + c]);
          dot = sum(dot);
          const float log = of_logs[head_index * n + first + i];
          for (int64_t j = 0; j < padded; j += LANES) {
            const Vector probability = exponential(load(row + j) - log);
            store(row + j, probability);
            store(of_row + j, probability * (load(of_row + j) - dot));
          }
        }
        multiply(rows, d, n, {grad_probs.get(), padded, 1}, keys.get(), d, of_queries.get(), d, false);
        spread_rows(of_queries.get(), rows, d, of_q + first * head.qkv_stride, head.qkv_stride);
        multiply(n, d, rows, {grad_probs.get(), 1, padded}, queries.get(), d, of_keys.get(), d, first > 0);
        multiply(n, d, rows, {probs.get(), 1, padded}, grads.get(), d, of_values.get(), d, first > 0);
      }
      spread_rows(of_keys.get(), n, d, of_q + d, head.qkv_stride);
      spread_rows(of_values.get(), n, d, of_q + 2 * d, head.qkv_stride);
    }
  });
}

Tensor self_attention_backward(const Tensor& upstream, const Tensor& input, const Tensor& output, const Tensor& logs,
                               int64_t heads) {
  const Tensor qkv = channels_last(input), grad = channels_last_like(upstream, qkv), y = channels_last_like(output, qkv);
  const Tensor dense = in_float32(logs);
  const Head head(qkv, heads);
  Tensor result = at::empty(qkv.sizes(), qkv.options());
  by_type(qkv, [&](auto type) {
    using T = decltype(type);
    attend_backward(head, qkv.size(0), heads, grad.const_data_ptr<T>(), qkv.const_data_ptr<T>(), y.const_data_ptr<T>(),
                    dense.const_data_ptr<float>(), result.mutable_data_ptr<T>());
  });
  return result.permute({0, 3, 1, 2});
}

}  // namespace
