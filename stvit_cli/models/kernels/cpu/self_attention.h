// Self-attention among the positions of an image, one head at a time. Its memory is linear in the head_index of positions.

#pragma once

#include "vector.h"

namespace {

// C (M, 16 V) = or += A B. A (M, K) has any strides; the columns of B (K, 16 V) and C are contiguous.
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
  for (; j + 4 * LANES <= columns; j += 4 * LANES) panel<4>(rows, a, b + j, b_row, depth, c + j, c_row, add);
  for (; j + 2 * LANES <= columns; j += 2 * LANES) panel<2>(rows, a, b + j, b_row, depth, c + j, c_row, add);
  for (; j < columns; j += LANES) panel<1>(rows, a, b + j, b_row, depth, c + j, c_row, add);
}

// Copy rows (n, d) that are `stride` apart to contiguous memory, times `scale`.
void copy_rows(const float* from, int64_t stride, int64_t n, int64_t d, float scale, float* to) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t c = 0; c < d; c += LANES) store(to + i * d + c, load(from + i * stride + c) * scale);
}

// Copy them transposed: (d, padded), zeros beyond n.
void transpose_rows(const float* from, int64_t stride, int64_t n, int64_t d, int64_t padded, float* to) {
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

// See `operators.py`.
std::tuple<Tensor, Tensor> self_attention(const Tensor& input, int64_t heads) {
  const Tensor qkv = channels_last(input);
  const Head head(qkv, heads);
  const int64_t images = qkv.size(0), n = head.n, d = head.d, padded = head.padded;
  Tensor y = at::empty({images, qkv.size(1), qkv.size(2), head.y_stride}, qkv.options());
  Tensor logs = at::empty({images, heads, n}, qkv.options());
  const float* from = qkv.const_data_ptr<float>();
  float *to = y.mutable_data_ptr<float>(), *to_logs = logs.mutable_data_ptr<float>();
  // With few heads per thread, the queries of a head are split.
  const int64_t blocks =
      std::min((n + QUERIES - 1) / QUERIES, (4 * at::get_num_threads() + images * heads - 1) / (images * heads));
  const int64_t block = (n + blocks - 1) / blocks;
  at::parallel_for(0, images * heads * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> keys(d * padded), values(n * d), queries(QUERIES * d), probs(QUERIES * padded);
    for (int64_t task = begin; task < end; task++) {
      const int64_t head_index = task / blocks, image = head_index / heads, which = head_index % heads;
      const float* q = from + image * n * head.qkv_stride + which * 3 * d;
      float* out = to + image * n * head.y_stride + which * d;
      if (task == begin || task % blocks == 0) {
        transpose_rows(q + d, head.qkv_stride, n, d, padded, keys.data());
        copy_rows(q + 2 * d, head.qkv_stride, n, d, 1.0f, values.data());
      }
      const int64_t last = std::min(n, (task % blocks + 1) * block);
      for (int64_t first = task % blocks * block; first < last; first += QUERIES) {
        const int64_t rows = std::min(QUERIES, last - first);
        copy_rows(q + first * head.qkv_stride, head.qkv_stride, rows, d, head.scale, queries.data());
        multiply(rows, padded, d, {queries.data(), d, 1}, keys.data(), padded, probs.data(), padded, false);
        for (int64_t i = 0; i < rows; i++) {
          float* row = &probs[i * padded];
          std::fill(row + n, row + padded, -INFINITY);
          Vector most = load(row);
          for (int64_t j = LANES; j < padded; j += LANES) most = load(row + j) > most ? load(row + j) : most;
          most = largest(most);
          Vector sums = {};
          for (int64_t j = 0; j < padded; j += LANES) {
            const Vector power = exponential(load(row + j) - most);
            sums += power;
            store(row + j, power);
          }
          sums = sum(sums);
          for (int64_t j = 0; j < padded; j += LANES) store(row + j, load(row + j) / sums);
          to_logs[head_index * n + first + i] = most[0] + std::log(sums[0]);
        }
        multiply(rows, d, n, {probs.data(), padded, 1}, values.data(), d, out + first * head.y_stride, head.y_stride, false);
      }
    }
  });
  return {y.permute({0, 3, 1, 2}), logs};
}

// See `operators.py`.
Tensor self_attention_backward(const Tensor& upstream, const Tensor& input, const Tensor& output, const Tensor& logs,
                               int64_t heads) {
  const Tensor grad = channels_last(upstream), qkv = channels_last(input), y = channels_last(output);
  const Head head(qkv, heads);
  const int64_t images = qkv.size(0), n = head.n, d = head.d, padded = head.padded;
  Tensor result = at::empty(qkv.sizes(), qkv.options());
  const float *from = qkv.const_data_ptr<float>(), *above = grad.const_data_ptr<float>();
  const float *outputs = y.const_data_ptr<float>(), *of_logs = logs.const_data_ptr<float>();
  float* to = result.mutable_data_ptr<float>();
  at::parallel_for(0, images * heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> transposed_keys(d * padded), transposed_values(d * padded), keys(n * d), of_keys(n * d), of_values(n * d);
    std::vector<float> queries(QUERIES * d), grads(QUERIES * d), probs(QUERIES * padded), grad_probs(QUERIES * padded),
        of_queries(QUERIES * d);
    for (int64_t head_index = begin; head_index < end; head_index++) {
      const int64_t image = head_index / heads, which = head_index % heads;
      const float* q = from + image * n * head.qkv_stride + which * 3 * d;
      const int64_t y_stride = image * n * head.y_stride + which * d;
      float* of_q = to + image * n * head.qkv_stride + which * 3 * d;
      transpose_rows(q + d, head.qkv_stride, n, d, padded, transposed_keys.data());
      transpose_rows(q + 2 * d, head.qkv_stride, n, d, padded, transposed_values.data());
      copy_rows(q + d, head.qkv_stride, n, d, head.scale, keys.data());
      for (int64_t first = 0; first < n; first += QUERIES) {
        const int64_t rows = std::min(QUERIES, n - first);
        const float *out = outputs + y_stride + first * head.y_stride, *of_out = above + y_stride + first * head.y_stride;
        copy_rows(q + first * head.qkv_stride, head.qkv_stride, rows, d, head.scale, queries.data());
        copy_rows(of_out, head.y_stride, rows, d, 1.0f, grads.data());
        multiply(rows, padded, d, {queries.data(), d, 1}, transposed_keys.data(), padded, probs.data(), padded, false);
        multiply(rows, padded, d, {grads.data(), d, 1}, transposed_values.data(), padded, grad_probs.data(), padded, false);
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
        multiply(rows, d, n, {grad_probs.data(), padded, 1}, keys.data(), d, of_queries.data(), d, false);
        for (int64_t i = 0; i < rows; i++)
          std::memcpy(of_q + (first + i) * head.qkv_stride, &of_queries[i * d], d * sizeof(float));
        multiply(n, d, rows, {grad_probs.data(), 1, padded}, queries.data(), d, of_keys.data(), d, first > 0);
        multiply(n, d, rows, {probs.data(), 1, padded}, grads.data(), d, of_values.data(), d, first > 0);
      }
      for (int64_t i = 0; i < n; i++) {
        std::memcpy(of_q + i * head.qkv_stride + d, &of_keys[i * d], d * sizeof(float));
        std::memcpy(of_q + i * head.qkv_stride + 2 * d, &of_values[i * d], d * sizeof(float));
      }
    }
  });
  return result.permute({0, 3, 1, 2});
}

}  // namespace
