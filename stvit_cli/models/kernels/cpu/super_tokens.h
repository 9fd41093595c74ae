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

// Equation 1 for up to LANES tokens (C in float32 each), the first `count` of which are written: their columns of Q (9, n).
// `centres` are the scaled super tokens as [channel][neighbour], eight of them if a vector holds no more; `ninth` is the last one.
constexpr int64_t NEAR_ROW = std::max<int64_t>(8, LANES);

INLINE void associate(const float* const* tokens, const float* centres, const float* ninth, int64_t channels, int64_t count,
                      float* q, int64_t n) {
  constexpr int PARTS = NEAR_ROW / LANES, STEP = 4;  // channels at a time, as the address of each token is loaded once for them
  Vector sums[PARTS][LANES] = {}, last = {};
  for (int64_t c = 0; c < channels; c += STEP)
    for (int part = 0; part < PARTS; part++) {
      Vector centre[STEP];
      for (int i = 0; i < STEP; i++) centre[i] = load(centres + (c + i) * NEAR_ROW + part * LANES);
      for (int t = 0; t < LANES; t++)
        for (int i = 0; i < STEP; i++) sums[part][t] += centre[i] * tokens[t][c + i];
    }
  for (int part = 0; part < PARTS; part++) transpose(sums[part]);
  if constexpr (LANES < NEAR) {
    Vector of_ninth[LANES] = {};
    for (int64_t c = 0; c < channels; c += LANES) {
      const Vector centre = load(ninth + c);
      for (int t = 0; t < LANES; t++) of_ninth[t] += centre * load(tokens[t] + c);
    }
    transpose(of_ninth);
    for (int i = 0; i < LANES; i++) last += of_ninth[i];
  }
  // The softmax over the nine, of as many tokens at a time as there are lanes.
  Vector shares[NEAR];
  for (int64_t k = 0; k < NEAR; k++) shares[k] = k < NEAR_ROW ? sums[k / LANES][k % LANES] : last;
  Vector most = shares[0], total = {};
  for (int64_t k = 1; k < NEAR; k++) most = larger(shares[k], most);
  for (int64_t k = 0; k < NEAR; k++) shares[k] -= most;
  for (int64_t k = 0; k < NEAR; k += 3) exponential<3>(&shares[k]);
  for (int64_t k = 0; k < NEAR; k++) total += shares[k];
  total = 1.0f / total;
  for (int64_t k = 0; k < NEAR; k++) {
    const Vector share = shares[k] * total;
    if (count == LANES) {
      store(q + k * n, share);
    } else {
      for (int64_t t = 0; t < count; t++) q[k * n + t] = share[t];
    }
  }
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

// Q S of a cell: each token is the sum of its nine super tokens weighted by Q, plus `x` if ADD.
template <int VECTORS, bool ADD, typename T>
INLINE void spread(const float* const* near, const float* q, int64_t n, int64_t c, T* const* tokens, const T* const* x) {
  Vector centres[NEAR][VECTORS];
  for (int k = 0; k < NEAR; k++)
    for (int v = 0; v < VECTORS; v++) centres[k][v] = load(near[k] + c + v * LANES);
  for (int64_t t = 0; t < n; t++) {
    Vector sums[VECTORS];
    for (int v = 0; v < VECTORS; v++) sums[v] = ADD ? load(x[t] + c + v * LANES) : Vector{};
    for (int k = 0; k < NEAR; k++)
      for (int v = 0; v < VECTORS; v++) sums[v] += q[k * n + t] * centres[k][v];
    for (int v = 0; v < VECTORS; v++) store(tokens[t] + c + v * LANES, sums[v]);
  }
}

// Nine vectors and what they are multiplied with fit into 16 registers, eighteen into 32.
template <typename Body>
INLINE void for_channels(int64_t channels, const Body& body) {
  constexpr int VECTORS = REGISTERS / 16;
  int64_t c = 0;
  for (; c + VECTORS * LANES <= channels; c += VECTORS * LANES) body(c, std::integral_constant<int, VECTORS>{});
  for (; c < channels; c += LANES) body(c, std::integral_constant<int, 1>{});
}

// Values in float32: themselves, or widened to `room`.
INLINE const float* widened(const float* from, int64_t, float*) { return from; }
INLINE const float* widened(const BFloat16* from, int64_t count, float* room) {
  convert(from, count, room);
  return room;
}

// Q of a cell (9, n), whose size is no multiple of LANES.
INLINE const float* widened_q(const float* from, int64_t, float*) { return from; }
INLINE const float* widened_q(const BFloat16* from, int64_t count, float* room) {
  for (int64_t i = 0; i < count; i++) room[i] = from[i];
  return room;
}

// The super tokens around a cell in float32; `room` is for nine of them.
template <typename T>
INLINE std::array<const float*, NEAR> nearest(const Grid& grid, int64_t cell, const T* super_tokens, const float* zeros,
                                              float* room) {
  std::array<const float*, NEAR> near;
  const auto around = grid.around(cell);
  for (int64_t k = 0; k < NEAR; k++)
    near[k] = around[k] < 0 ? zeros : widened(super_tokens + around[k] * grid.channels, grid.channels, room + k * grid.channels);
  return near;
}

// The association of a cell with its nine super tokens, written to q (9, n), and its sums over the tokens.
INLINE void associate_cell(const std::vector<const float*>& tokens, const std::array<const float*, NEAR>& near, int64_t channels,
                           float* centres, float* ninth, float* q, float* column_sums) {
  const int64_t n = tokens.size() - LANES;  // then LANES of zeros
  const float scale = 1.0f / std::sqrt(static_cast<float>(channels));
  for (int64_t c = 0; c < channels; c++) {
    for (int64_t k = 0; k < std::min(NEAR_ROW, NEAR); k++) centres[c * NEAR_ROW + k] = near[k][c] * scale;
    ninth[c] = near[NEAR - 1][c] * scale;
  }
  for (int64_t t = 0; t < n; t += LANES) associate(&tokens[t], centres, ninth, channels, std::min(n - t, LANES), q + t, n);
  for (int64_t k = 0; k < NEAR; k++) {
    float column_sum = 0.0f;
    for (int64_t token = 0; token < n; token++) column_sum += q[k * n + token];
    column_sums[k] = column_sum;
  }
}

// Q^T X (cells, C). With super tokens (cells, C), Q is computed and written first, `totals` are normalized, and the column sums
// of Q are written to `weights` (cells).
template <typename T>
void gather_all(const Grid& grid, int64_t images, const T* base, const T* super_tokens, T* association, T* totals,
                float* weights) {
  const int64_t n = grid.h * grid.w, channels = grid.channels, cells = images * grid.p * grid.q;
  const auto parts = room_for<float>(cells * NEAR * channels), column_sums = room_for<float>(cells * NEAR);
  const std::vector<float> zeros(channels, 0.0f);
  const std::vector<T> absent(channels, T(0.0f));
  at::parallel_for(0, cells, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> centres(channels * NEAR_ROW, 0.0f), ninth(channels);
    const auto room = room_for<float>((n + NEAR) * channels), room_q = room_for<float>(NEAR * n);
    std::vector<const T*> stored(n);
    std::vector<const float*> tokens(n + LANES, zeros.data());
    for (int64_t cell = begin; cell < end; cell++) {
      grid.tokens(cell, base, absent.data(), stored);
      for (int64_t t = 0; t < n; t++) tokens[t] = widened(stored[t], channels, &room[(NEAR + t) * channels]);
      T* own = association + cell * NEAR * n;
      const float* q;
      if (super_tokens) {
        constexpr bool WIDE = std::is_same_v<T, float>;
        float* written = WIDE ? reinterpret_cast<float*>(own) : room_q.get();
        associate_cell(tokens, nearest(grid, cell, super_tokens, zeros.data(), room.get()), channels, centres.data(), ninth.data(),
                       written, &column_sums[cell * NEAR]);
        for (int64_t i = 0; !WIDE && i < NEAR * n; i++) own[i] = written[i];
        q = written;
      } else {
        q = widened_q(own, NEAR * n, room_q.get());
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

// See `operators.py`; so for those below.
std::tuple<Tensor, Tensor, Tensor> associate_and_aggregate(const Tensor& x, const Tensor& super_tokens, int64_t h, int64_t w) {
  const Tensor tokens = channels_last(x), centres = super_tokens.to(x.scalar_type()).contiguous();
  const Shape shape(tokens);
  const Grid grid(shape.height, shape.width, shape.channels, h, w);
  Tensor sampled = at::empty(centres.sizes(), centres.options());
  Tensor association = at::empty({shape.images, grid.p, grid.q, NEAR, h * w}, tokens.options());
  Tensor weight = empty_float32({shape.images, grid.p, grid.q, 1}, tokens);
  by_type(tokens, [&](auto type) {
    using T = decltype(type);
    gather_all(grid, shape.images, tokens.const_data_ptr<T>(), centres.const_data_ptr<T>(), association.mutable_data_ptr<T>(),
               sampled.mutable_data_ptr<T>(), weight.mutable_data_ptr<float>());
  });
  return {sampled, association, weight};
}

Tensor aggregate(const Tensor& association, const Tensor& x, int64_t h, int64_t w) {
  const Tensor tokens = channels_last(x), dense = association.to(x.scalar_type()).contiguous();
  const Shape shape(tokens);
  const Grid grid(shape.height, shape.width, shape.channels, h, w);
  Tensor totals = at::empty({shape.images, grid.p, grid.q, shape.channels}, tokens.options());
  by_type(tokens, [&](auto type) {
    using T = decltype(type);
    gather_all<T>(grid, shape.images, tokens.const_data_ptr<T>(), nullptr, const_cast<T*>(dense.const_data_ptr<T>()),
                  totals.mutable_data_ptr<T>(), nullptr);
  });
  return totals;
}

// Q S, plus tokens x (B, H, W, C) if ADD.
template <bool ADD, typename T>
void spread_all(const Grid& grid, int64_t images, const T* association, const T* super_tokens, const T* x, T* y) {
  const int64_t n = grid.h * grid.w, channels = grid.channels;
  const std::vector<float> zeros(channels, 0.0f);
  const std::vector<T> nothing(channels, T(0.0f));
  at::parallel_for(0, images * grid.p * grid.q, 1, [&](int64_t begin, int64_t end) {
    std::vector<T*> tokens(n);
    std::vector<const T*> added(n);
    std::vector<T> absent(channels);  // target of the padding
    const auto room = room_for<float>(NEAR * channels), room_q = room_for<float>(NEAR * n);
    for (int64_t cell = begin; cell < end; cell++) {
      grid.tokens(cell, y, absent.data(), tokens);
      if (ADD) grid.tokens(cell, x, nothing.data(), added);
      const auto near = nearest(grid, cell, super_tokens, zeros.data(), room.get());
      const float* q = widened_q(association + cell * NEAR * n, NEAR * n, room_q.get());
      for_channels(channels, [&](int64_t c, auto vectors) {
        spread<vectors, ADD>(near.data(), q, n, c, tokens.data(), added.data());
      });
    }
  });
}

template <bool ADD>
Tensor upsampled(const Tensor& association, const Tensor& centres, const Tensor& x, int64_t h, int64_t w, int64_t height,
                 int64_t width) {
  const auto dtype = ADD ? x.scalar_type() : centres.scalar_type();
  const Tensor super_tokens = centres.to(dtype).contiguous(), dense = association.to(dtype).contiguous();
  const int64_t images = centres.size(0), channels = centres.size(3);
  const Grid grid(height, width, channels, h, w);
  Tensor y = at::empty({images, height, width, channels}, super_tokens.options());
  by_type(y, [&](auto type) {
    using T = decltype(type);
    spread_all<ADD>(grid, images, dense.const_data_ptr<T>(), super_tokens.const_data_ptr<T>(),
                    ADD ? x.const_data_ptr<T>() : nullptr, y.mutable_data_ptr<T>());
  });
  return y.permute({0, 3, 1, 2});
}

Tensor upsample(const Tensor& association, const Tensor& super_tokens, int64_t h, int64_t w, int64_t height, int64_t width) {
  return upsampled<false>(association, super_tokens, super_tokens, h, w, height, width);
}

Tensor upsample_add(const Tensor& association, const Tensor& super_tokens, const Tensor& x, int64_t h, int64_t w) {
  const Tensor tokens = channels_last(x);
  return upsampled<true>(association, super_tokens, tokens, h, w, tokens.size(1), tokens.size(2));
}

}  // namespace
