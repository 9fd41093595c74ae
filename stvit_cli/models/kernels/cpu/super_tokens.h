// Super token sampling and upsampling. Shapes as in `operators.py`.

#pragma once

#include "vector.h"

namespace {

constexpr int64_t NEAR = 9;
constexpr float EPS = 1e-12f;  // of the normalizer in Algorithm 1, as in `neighbours.py`

// The grid of cells over the tokens of an image.
struct Grid {
  int64_t height, width, channels, h, w, p, q;
  Grid(int64_t height, int64_t width, int64_t channels, int64_t h, int64_t w)
      : height(height), width(width), channels(channels), h(h), w(w), p((height + h - 1) / h), q((width + w - 1) / w) {}

  // Addresses of the tokens of a cell in images that start at `base`; tokens of the padding are at `absent`.
  template <typename Pointer>
  void tokens(int64_t cell, Pointer base, Pointer absent, std::vector<Pointer>& found) const {
    const int64_t image = cell / (p * q), top = cell / q % p * h, left = cell % q * w;
    for (int64_t t = 0; t < h * w; t++) {
      const int64_t y = top + t / w, x = left + t % w;
      const bool inside = y < height && x < width;
      found[t] = inside ? base + ((image * height + y) * width + x) * channels : absent;
    }
  }

  // Indices of the nine cells around a cell; -1 outside the image.
  std::array<int64_t, NEAR> around(int64_t cell) const {
    const int64_t row = cell / q % p, column = cell % q;
    std::array<int64_t, NEAR> found;
    for (int64_t k = 0; k < NEAR; k++) {
      const int64_t y = row + k / 3 - 1, x = column + k % 3 - 1;
      found[k] = y >= 0 && y < p && x >= 0 && x < q ? cell + (k / 3 - 1) * q + k % 3 - 1 : -1;
    }
    return found;
  }
};

INLINE Vector softmax(Vector x) {
  const Vector powers = exponential(x - largest(x));
  return powers / sum(powers);
}

// Equation 1 for TOKENS tokens: writes their columns of Q (9, n). `centres` are the scaled super tokens, [channel][neighbour].
template <int TOKENS>
INLINE void associate(const float* const* tokens, const float* centres, int64_t channels, float* q, int64_t n) {
  Vector affinity[TOKENS];
  for (int t = 0; t < TOKENS; t++)
    for (int k = 0; k < LANES; k++) affinity[t][k] = k < NEAR ? 0.0f : -1e30f;  // the padding beyond the ninth takes no part
  for (int64_t c = 0; c < channels; c++) {
    const Vector centre = load(centres + c * LANES);
    for (int t = 0; t < TOKENS; t++) affinity[t] += centre * tokens[t][c];
  }
  float column_sums[TOKENS][LANES];
  for (int t = 0; t < TOKENS; t++) store(column_sums[t], softmax(affinity[t]));
  for (int64_t k = 0; k < NEAR; k++)
    for (int t = 0; t < TOKENS; t++) q[k * n + t] = column_sums[t][k];
}

// Q^T X of a cell, part (9, C), for VECTORS vectors of channels from c.
template <int VECTORS>
INLINE void gather(const float* const* tokens, const float* q, int64_t n, int64_t c, int64_t channels, float* part) {
  Vector sums[NEAR][VECTORS] = {};
  for (int64_t t = 0; t < n; t++) {
    Vector x[VECTORS];
    for (int v = 0; v < VECTORS; v++) x[v] = load(tokens[t] + c + v * LANES);
    for (int k = 0; k < NEAR; k++)
      for (int v = 0; v < VECTORS; v++) sums[k][v] += q[k * n + t] * x[v];
  }
  for (int k = 0; k < NEAR; k++)
    for (int v = 0; v < VECTORS; v++) store(part + k * channels + c + v * LANES, sums[k][v]);
}

// Q S of a cell: each token is the sum of its nine super tokens weighted by Q.
template <int VECTORS>
INLINE void spread(const float* const* near, const float* q, int64_t n, int64_t c, float* const* tokens) {
  Vector centres[NEAR][VECTORS];
  for (int k = 0; k < NEAR; k++)
    for (int v = 0; v < VECTORS; v++) centres[k][v] = load(near[k] + c + v * LANES);
  for (int64_t t = 0; t < n; t++) {
    Vector sums[VECTORS] = {};
    for (int k = 0; k < NEAR; k++)
      for (int v = 0; v < VECTORS; v++) sums[v] += q[k * n + t] * centres[k][v];
    for (int v = 0; v < VECTORS; v++) store(tokens[t] + c + v * LANES, sums[v]);
  }
}

template <typename Body>
INLINE void for_channels(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + 2 * LANES <= channels; c += 2 * LANES) body(c, std::integral_constant<int, 2>{});
  if (c < channels) body(c, std::integral_constant<int, 1>{});
}

// Q^T X (cells, C). With super tokens (cells, C), Q is computed and written first, `totals` are normalized, and the column sums
// of Q are written to `weights` (cells).
void gather_all(const Grid& grid, int64_t images, const float* base, const float* super_tokens, float* association,
                float* totals, float* weights) {
  const int64_t n = grid.h * grid.w, channels = grid.channels, cells = images * grid.p * grid.q;
  std::vector<float> parts(cells * NEAR * channels), column_sums(super_tokens ? cells * NEAR : 0);
  const std::vector<float> zeros(channels, 0.0f);
  const float scale = 1.0f / std::sqrt(static_cast<float>(channels));
  at::parallel_for(0, cells, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> centres(super_tokens ? channels * LANES : 0, 0.0f);
    std::vector<const float*> tokens(n);
    for (int64_t cell = begin; cell < end; cell++) {
      grid.tokens(cell, base, zeros.data(), tokens);
      float* q = association + cell * NEAR * n;
      if (super_tokens) {
        const auto around = grid.around(cell);
        for (int64_t k = 0; k < NEAR; k++) {
          const float* near = around[k] < 0 ? zeros.data() : super_tokens + around[k] * channels;
          for (int64_t c = 0; c < channels; c++) centres[c * LANES + k] = near[c] * scale;
        }
        int64_t t = 0;
        for (; t + 8 <= n; t += 8) associate<8>(&tokens[t], centres.data(), channels, q + t, n);
        for (; t < n; t++) associate<1>(&tokens[t], centres.data(), channels, q + t, n);
        for (int64_t k = 0; k < NEAR; k++) {
          float column_sum = 0.0f;
          for (int64_t token = 0; token < n; token++) column_sum += q[k * n + token];
          column_sums[cell * NEAR + k] = column_sum;
        }
      }
      for_channels(channels, [&](int64_t c, auto vectors) {
        gather<vectors>(tokens.data(), q, n, c, channels, &parts[cell * NEAR * channels]);
      });
    }
  });
  // A super token receives part 8 - k of its neighbour k.
  at::parallel_for(0, cells, 16, [&](int64_t begin, int64_t end) {
    for (int64_t cell = begin; cell < end; cell++) {
      const auto around = grid.around(cell);
      float weight = 0.0f;
      for (int64_t k = 0; super_tokens && k < NEAR; k++) weight += around[k] < 0 ? 0.0f : column_sums[around[k] * NEAR + 8 - k];
      weight += EPS;
      if (super_tokens) weights[cell] = weight;
      for (int64_t c = 0; c < channels; c += LANES) {
        Vector total = {};
        for (int64_t k = 0; k < NEAR; k++)
          if (around[k] >= 0) total += load(&parts[(around[k] * NEAR + 8 - k) * channels + c]);
        store(totals + cell * channels + c, super_tokens ? total / weight : total);
      }
    }
  });
}

// See `operators.py`.
std::tuple<Tensor, Tensor, Tensor> associate_and_aggregate(const Tensor& x, const Tensor& super_tokens, int64_t h, int64_t w) {
  const Tensor tokens = channels_last(x), centres = super_tokens.contiguous();
  const Shape shape(tokens);
  const Grid grid(shape.height, shape.width, shape.channels, h, w);
  Tensor sampled = at::empty(centres.sizes(), centres.options());
  Tensor association = at::empty({shape.images, grid.p, grid.q, NEAR, h * w}, tokens.options());
  Tensor weight = at::empty({shape.images, grid.p, grid.q, 1}, tokens.options());
  gather_all(grid, shape.images, tokens.const_data_ptr<float>(), centres.const_data_ptr<float>(),
             association.mutable_data_ptr<float>(), sampled.mutable_data_ptr<float>(), weight.mutable_data_ptr<float>());
  return {sampled, association, weight};
}

// See `operators.py`.
Tensor aggregate(const Tensor& association, const Tensor& x, int64_t h, int64_t w) {
  const Tensor tokens = channels_last(x), dense = association.contiguous();
  const Shape shape(tokens);
  const Grid grid(shape.height, shape.width, shape.channels, h, w);
  Tensor totals = at::empty({shape.images, grid.p, grid.q, shape.channels}, tokens.options());
  gather_all(grid, shape.images, tokens.const_data_ptr<float>(), nullptr, const_cast<float*>(dense.const_data_ptr<float>()),
             totals.mutable_data_ptr<float>(), nullptr);
  return totals;
}

// See `operators.py`.
Tensor upsample(const Tensor& association, const Tensor& super_tokens, int64_t h, int64_t w, int64_t height, int64_t width) {
  const Tensor centres = super_tokens.contiguous(), dense = association.contiguous();
  const int64_t images = centres.size(0), channels = centres.size(3), n = h * w;
  const Grid grid(height, width, channels, h, w);
  Tensor y = at::empty({images, height, width, channels}, centres.options());
  float* base = y.mutable_data_ptr<float>();
  const float *of_centres = centres.const_data_ptr<float>(), *of_association = dense.const_data_ptr<float>();
  const std::vector<float> zeros(channels, 0.0f);
  at::parallel_for(0, images * grid.p * grid.q, 1, [&](int64_t begin, int64_t end) {
    std::vector<float*> tokens(n);
    std::vector<float> absent(channels);  // target of the padding
    for (int64_t cell = begin; cell < end; cell++) {
      grid.tokens(cell, base, absent.data(), tokens);
      std::array<const float*, NEAR> near;
      const auto around = grid.around(cell);
      for (int64_t k = 0; k < NEAR; k++) near[k] = around[k] < 0 ? zeros.data() : of_centres + around[k] * channels;
      for_channels(channels, [&](int64_t c, auto vectors) {
        spread<vectors>(near.data(), of_association + cell * NEAR * n, n, c, tokens.data());
      });
    }
  });
  return y.permute({0, 3, 1, 2});
}

}  // namespace
