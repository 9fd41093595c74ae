// Self-attention among the positions of an image, one head at a time. Its memory is linear in the number of positions.

#pragma once

#include "products.h"

namespace {

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

// Softmax of `scale` times the first n of `padded` logits, not normalized: returns the sum in all lanes, and the largest logit in
// `largest_logit`.
INLINE Vector powers(float* row, int64_t n, int64_t padded, float scale, float& largest_logit) {
  std::fill(row + n, row + padded, -INFINITY);
  Vector most = load(row);
  for (int64_t j = LANES; j < padded; j += LANES) most = larger(load(row + j), most);
  most = largest(most) * scale;
  largest_logit = most[0];
  Vector sums = {};
  for_vectors(padded, [&](int64_t j, auto vectors) {
    Vector power[vectors];
    for (int i = 0; i < vectors; i++) power[i] = load(row + j + i * LANES) * scale - most;
    exponential<vectors>(power);
    for (int i = 0; i < vectors; i++) sums += power[i], store(row + j + i * LANES, power[i]);
  });
  return sum(sums);
}

template <typename T>
void attend(const Head& head, int64_t images, int64_t heads, const T* from, T* to, float* to_logs) {
  using Of = Operands<T>;
  using Factor = typename Of::Factor;
  const int64_t n = head.n, d = head.d, padded = head.padded, of_d = Of::depth(d), of_n = Of::depth(n);
  // With few heads per thread, the queries of a head are split.
  const int64_t blocks =
      std::min((n + QUERIES - 1) / QUERIES, (4 * at::get_num_threads() + images * heads - 1) / (images * heads));
  const int64_t block = (n + blocks - 1) / blocks;
  at::parallel_for(0, images * heads * blocks, 1, [&](int64_t begin, int64_t end) {
    const auto keys = room_for<Factor>(of_d * padded), values = room_for<Factor>(of_n * d), queries = room_for<Factor>(QUERIES * d);
    const auto room = room_for<Factor>(QUERIES * padded);
    const auto probs = room_for<float>(QUERIES * padded), mixed = room_for<float>(QUERIES * d);
    for (int64_t task = begin; task < end; task++) {
      const int64_t head_index = task / blocks, image = head_index / heads, which = head_index % heads;
      const T* q = from + image * n * head.qkv_stride + which * 3 * d;
      T* out = to + image * n * head.y_stride + which * d;
      if (task == begin || task % blocks == 0) {
        Of::copy_transposed(q + d, head.qkv_stride, n, d, padded, keys.get());
        Of::copy_right(q + 2 * d, head.qkv_stride, n, d, values.get());
      }
      const int64_t last = std::min(n, (task % blocks + 1) * block);
      for (int64_t first = task % blocks * block; first < last; first += QUERIES) {
        const int64_t rows = std::min(QUERIES, last - first);
        Vector sums[QUERIES];
        Of::copy(q + first * head.qkv_stride, head.qkv_stride, rows, d, queries.get());
        multiply<Factor>(rows, padded, of_d, {queries.get(), of_d, 1}, keys.get(), padded, probs.get(), padded, false);
        for (int64_t i = 0; i < rows; i++) {
          float most;
          sums[i] = powers(&probs[i * padded], n, padded, head.scale, most);
          to_logs[head_index * n + first + i] = most + std::log(sums[i][0]);
        }
        multiply(rows, d, of_n, Of::left(probs.get(), rows, padded, room.get()), values.get(), d, mixed.get(), d, false);
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

// Store rows (n, d), times `scale`, to rows that are `stride` apart.
template <typename T>
void store_rows(const float* from, int64_t n, int64_t d, float scale, T* to, int64_t stride) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t c = 0; c < d; c += LANES) store(to + i * stride + c, load(from + i * d + c) * scale);
}

template <typename T>
void attend_backward(const Head& head, int64_t images, int64_t heads, const T* above, const T* from, const T* outputs,
                     const float* of_logs, T* to) {
  using Of = Operands<T>;
  using Factor = typename Of::Factor;
  const int64_t n = head.n, d = head.d, padded = head.padded, of_d = Of::depth(d), of_n = Of::depth(n);
  at::parallel_for(0, images * heads, 1, [&](int64_t begin, int64_t end) {
    const auto transposed_keys = room_for<Factor>(of_d * padded), transposed_values = room_for<Factor>(of_d * padded);
    const auto keys = room_for<Factor>(of_n * d), queries = room_for<Factor>(QUERIES * d), grads = room_for<Factor>(QUERIES * d);
    const auto right = room_for<Factor>(QUERIES * d), room = room_for<Factor>(QUERIES * padded);
    const auto probs = room_for<float>(QUERIES * padded), grad_probs = room_for<float>(QUERIES * padded);
    const auto of_queries = room_for<float>(QUERIES * d), of_keys = room_for<float>(n * d), of_values = room_for<float>(n * d);
    for (int64_t head_index = begin; head_index < end; head_index++) {
      const int64_t image = head_index / heads, which = head_index % heads, stride = head.qkv_stride;
      const T* q = from + image * n * stride + which * 3 * d;
      const int64_t of_head = image * n * head.y_stride + which * d;
      T* of_q = to + image * n * stride + which * 3 * d;
      Of::copy_transposed(q + d, stride, n, d, padded, transposed_keys.get());
      Of::copy_transposed(q + 2 * d, stride, n, d, padded, transposed_values.get());
      Of::copy_right(q + d, stride, n, d, keys.get());
      for (int64_t first = 0; first < n; first += QUERIES) {
        const int64_t rows = std::min(QUERIES, n - first), of_rows = Of::depth(rows);
        const T *out = outputs + of_head + first * head.y_stride, *of_out = above + of_head + first * head.y_stride;
        Of::copy(q + first * stride, stride, rows, d, queries.get());
        Of::copy(of_out, head.y_stride, rows, d, grads.get());
        multiply<Factor>(rows, padded, of_d, {queries.get(), of_d, 1}, transposed_keys.get(), padded, probs.get(), padded, false);
        multiply<Factor>(rows, padded, of_d, {grads.get(), of_d, 1}, transposed_values.get(), padded, grad_probs.get(), padded,
                         false);
        for (int64_t i = 0; i < rows; i++) {
          float *row = &probs[i * padded], *of_row = &grad_probs[i * padded];
          Vector dot = {};
          for (int64_t c = 0; c < d; c += LANES) dot += load(out + i * head.y_stride + c) * load(of_out + i * head.y_stride + c);
          dot = sum(dot);
          const float log = of_logs[head_index * n + first + i];
          for_vectors(padded, [&](int64_t j, auto vectors) {
            Vector probability[vectors];
            for (int v = 0; v < vectors; v++) probability[v] = load(row + j + v * LANES) * head.scale - log;
            exponential<vectors>(probability);
            for (int v = 0; v < vectors; v++) {
              store(row + j + v * LANES, probability[v]);
              store(of_row + j + v * LANES, probability[v] * (load(of_row + j + v * LANES) - dot));
            }
          });
          std::fill(row + n, row + padded, 0.0f);
          std::fill(of_row + n, of_row + padded, 0.0f);
        }
        multiply(rows, d, of_n, Of::left(grad_probs.get(), rows, padded, room.get()), keys.get(), d, of_queries.get(), d, false);
        store_rows(of_queries.get(), rows, d, head.scale, of_q + first * stride, stride);
        Of::copy_right(q + first * stride, stride, rows, d, right.get());
        multiply(n, d, of_rows, Of::transposed_left(grad_probs.get(), rows, padded, room.get()), right.get(), d, of_keys.get(), d,
                 first > 0);
        Of::copy_right(of_out, head.y_stride, rows, d, right.get());
        multiply(n, d, of_rows, Of::transposed_left(probs.get(), rows, padded, room.get()), right.get(), d, of_values.get(), d,
                 first > 0);
      }
      store_rows(of_keys.get(), n, d, head.scale, of_q + d, stride);
      store_rows(of_values.get(), n, d, 1.0f, of_q + 2 * d, stride);
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
