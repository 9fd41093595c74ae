// Depth-wise 3 x 3 convolution of x, plus x if residual; x = GELU(u + shift), or u. Layer norm of the result, where it is asked
// for. Shapes as in `operators.py`.

#pragma once

#include "vector.h"

namespace {

constexpr int64_t TAPS = 9;
constexpr int64_t CACHE = 640 * 1024;  // bytes of the L2 cache for the rows in use

// GELU(u) = u P(u) with P the normal distribution, and its derivative P(u) + u P'(u).
// P(-a) = exp(-a^2 / 2) f(t), t = 1 / (1 + 0.21 a), f fitted here to 1.4e-8 relative for all a >= 0 where P is not 0 in
// float32.
template <int COUNT>
struct Gelu {
  Vector value[COUNT], slope[COUNT];
};

template <int COUNT>
INLINE Gelu<COUNT> gelu(const Vector* u) {
  Vector bell[COUNT], t[COUNT], f[COUNT];
  for (int i = 0; i < COUNT; i++) bell[i] = -0.5f * (u[i] * u[i]);
  for (int i = 0; i < COUNT; i++) t[i] = 1.0f / (1.0f + 0.21f * (u[i] < 0.0f ? -u[i] : u[i]));
  exponential<COUNT>(bell);
  for (int i = 0; i < COUNT; i++) f[i] = t[i] * -0.07203397757f + 0.2854533878f;
  for (int i = 0; i < COUNT; i++) f[i] = f[i] * t[i] - 0.3341896657f;
  for (int i = 0; i < COUNT; i++) f[i] = f[i] * t[i] + 0.3540336705f;
  for (int i = 0; i < COUNT; i++) f[i] = f[i] * t[i] - 0.09724572863f;
  for (int i = 0; i < COUNT; i++) f[i] = f[i] * t[i] + 0.1263551563f;
  for (int i = 0; i < COUNT; i++) f[i] = f[i] * t[i] + 0.06879003786f;
  for (int i = 0; i < COUNT; i++) f[i] = f[i] * t[i] + 0.08512940843f;
  for (int i = 0; i < COUNT; i++) f[i] = f[i] * t[i] + 0.0837077029f;
  Gelu<COUNT> result;
  for (int i = 0; i < COUNT; i++) {
    const Vector tail = bell[i] * (f[i] * t[i]);
    const Vector below = u[i] < 0.0f ? tail : 1.0f - tail;
    result.value[i] = u[i] * below;
    result.slope[i] = below + u[i] * (bell[i] * 0.3989422804f);
  }
  return result;
}

// A unit of work: rows of one image, and channels.
struct Part {
  int64_t image, row_from, row_to, channel_from, channels;
};

// As many channels as keep the rows in use in the L2 cache, so that memory is read in long runs, or all; if threads would be idle,
// bands of at least `min_rows` rows, and then fewer channels.
std::vector<Part> divide(const Shape& shape, int64_t rows_held, int64_t min_rows, bool all_channels) {
  const int64_t vectors = shape.channels / LANES, row = (shape.width + 2) * LANES * sizeof(float);
  const int64_t min_parts = 4 * at::get_num_threads();
  const auto ceil = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int64_t steps = all_channels ? 1 : ceil(vectors, std::max<int64_t>(1, CACHE / (rows_held * row)));
  const int64_t bands = std::max<int64_t>(1, std::min(shape.height / min_rows, ceil(min_parts, shape.images * steps)));
  if (!all_channels) steps = std::max(steps, std::min(ceil(vectors, 64 / LANES), ceil(min_parts, shape.images * bands)));
  const int64_t step = ceil(vectors, steps) * LANES, band = ceil(shape.height, bands);
  std::vector<Part> parts;
  for (int64_t image = 0; image < shape.images; image++)
    for (int64_t from = 0; from < shape.height; from += band)
      for (int64_t c = 0; c < shape.channels; c += step)
        parts.push_back({image, from, std::min(from + band, shape.height), c, std::min(step, shape.channels - c)});
  return parts;
}

// The last `count` rows of a part, each as [vector of channels][column, with one of zeros on either side].
class Rows {
 public:
  Rows(int64_t count, int64_t width, int64_t channels)
      : stride(((width + 2) | 1) * LANES), count_(count), row_(channels / LANES * stride), data_(room_for<float>(count * row_)) {
    for (int64_t vector = 0; vector < count * channels / LANES; vector++) {
      store(&data_[vector * stride], Vector{});
      store(&data_[vector * stride + (width + 1) * LANES], Vector{});
    }
  }
  // Starts at column -1.
  float* at(int64_t row) { return &data_[(row + count_) % count_ * row_]; }
  void clear(int64_t row) { std::memset(at(row), 0, row_ * sizeof(float)); }
  const int64_t stride;  // from one vector of channels to the next; an odd number of vectors: they do not share a cache set

 private:
  int64_t count_, row_;
  std::unique_ptr<float[]> data_;
};

// The kernel (C, 1, 3, 3) as [vector of channels][tap][lane], and the bias after the taps of each vector; the residual adds 1 to
// the middle tap.
constexpr int64_t TAPS_ROW = (TAPS + 1) * LANES;

std::vector<float> taps_of(const Tensor& weight, const float* bias, bool residual) {
  const Tensor dense = in_float32(weight);
  const int64_t channels = dense.size(0);
  std::vector<float> taps(channels / LANES * TAPS_ROW);
  for (int64_t c = 0; c < channels; c++) {
    float* at = &taps[c / LANES * TAPS_ROW + c % LANES];
    for (int64_t k = 0; k < TAPS; k++) at[k * LANES] = dense.const_data_ptr<float>()[c * TAPS + k] + (residual && k == 4);
    at[TAPS * LANES] = bias ? bias[c] : 0.0f;
  }
  return taps;
}

// Bias and nine taps for COLUMNS adjacent columns; with the flipped kernel in the backward pass. Four columns are 36 multiplications,
// 18 cycles of two units, and 28 loads, 14 cycles where two are loaded in one: the multiplications are what bounds it.
template <int COLUMNS, bool FLIPPED>
INLINE void convolve(const std::array<const float*, 3>& rows, int64_t at, const float* taps, Vector* sums) {
  for (int x = 0; x < COLUMNS; x++) sums[x] = load(taps + TAPS * LANES);
  for (int i = 0; i < 3; i++) {
    Vector near[COLUMNS + 2];
    for (int x = 0; x < COLUMNS + 2; x++) near[x] = load(rows[i] + at + x * LANES);
    for (int j = 0; j < 3; j++) {
      const Vector tap = load(taps + (FLIPPED ? 8 - 3 * i - j : 3 * i + j) * LANES);
      for (int x = 0; x < COLUMNS; x++) sums[x] += near[x + j] * tap;
    }
  }
}

template <typename Body>
INLINE void for_columns(int64_t width, const Body& body) {
  int64_t x = 0;
  for (; x + 4 <= width; x += 4) body(x, std::integral_constant<int, 4>{});
  if (width - x == 3) body(x, std::integral_constant<int, 3>{});
  if (width - x == 2) body(x, std::integral_constant<int, 2>{});
  if (width - x == 1) body(x, std::integral_constant<int, 1>{});
}

// What a layer norm reads and writes beside the tokens (B, H, W, C): their mean and 1 / standard deviation (B, H, W).
template <typename T>
struct LayerNorm {
  const float *weight, *bias;
  float eps;
  T* y;
  float *mean, *rstd;

  // Normalize the channels of a position.
  INLINE void apply(const float* x, Vector total, int64_t channels, int64_t position) const {
    const Vector of_mean = sum(total) / static_cast<float>(channels);
    Vector squares = {};
    for (int64_t c = 0; c < channels; c += LANES) {
      const Vector centered = load(x + c) - of_mean;
      squares += centered * centered;
    }
    const float scale = 1.0f / std::sqrt(sum(squares)[0] / static_cast<float>(channels) + eps);
    mean[position] = of_mean[0];
    rstd[position] = scale;
    for (int64_t c = 0; c < channels; c += LANES)
      store(y + position * channels + c, (load(x + c) - of_mean) * scale * load(weight + c) + load(bias + c));
  }
};

// Each row of u is read once, through GELU, into a buffer of three rows; then the result of the row before it is computed.
template <bool GELU, bool NORM, typename T>
void convolve_all(const T* from, const Shape& shape, const float* shift, const float* taps, T* to, const LayerNorm<T>& norm) {
  const std::vector<Part> parts = divide(shape, 3, GELU ? 8 : 2, NORM);
  at::parallel_for(0, parts.size(), 1, [&](int64_t begin, int64_t end) {
    Rows held(3, shape.width, parts[0].channels);
    const auto sums_of = room_for<float>(NORM ? 4 * shape.channels : 0);
    for (int64_t number = begin; number < end; number++) {
      const Part part = parts[number];
      for (int64_t ahead = part.row_from - 1; ahead <= part.row_to; ahead++) {
        if (ahead < 0 || ahead >= shape.height) {
          held.clear(ahead);
        } else {
          const T* read = from + shape.at(part.image, ahead, part.channel_from);
          float* next = held.at(ahead) + LANES;
          for (int64_t x = 0; x < shape.width; x++) {
            float* write = next + x * LANES;
            for_vectors(part.channels, [&](int64_t c, auto vectors) {
              Vector values[vectors];
              for (int i = 0; i < vectors; i++) {
                values[i] = load(read + x * shape.channels + c + i * LANES);
                if (GELU) values[i] += load(shift + part.channel_from + c + i * LANES);
              }
              const auto store_all = [&](const Vector* from) {
                for (int i = 0; i < vectors; i++, write += held.stride) store(write, from[i]);
              };
              if constexpr (GELU) {
                store_all(gelu<vectors>(values).value);
              } else {
                store_all(values);
              }
            });
          }
        }
        const int64_t row = ahead - 1;
        if (row < part.row_from) continue;
        const std::array<const float*, 3> rows = {held.at(row - 1), held.at(row), held.at(row + 1)};
        T* write = to + shape.at(part.image, row, part.channel_from);
        for_columns(shape.width, [&](int64_t x, auto columns) {
          Vector totals[columns] = {};
          const float* of_vector = taps + part.channel_from / LANES * TAPS_ROW;
          int64_t at = x * LANES;
          for (int64_t c = 0; c < part.channels; c += LANES, at += held.stride, of_vector += TAPS_ROW) {
            Vector sums[columns];
            convolve<columns, false>(rows, at, of_vector, sums);
            for (int i = 0; i < columns; i++) {
              store(write + (x + i) * shape.channels + c, sums[i]);
              if (NORM) store(&sums_of[i * shape.channels + c], sums[i]), totals[i] += sums[i];
            }
          }
          for (int i = 0; NORM && i < columns; i++)
            norm.apply(&sums_of[i * shape.channels], totals[i], shape.channels,
                       (part.image * shape.height + row) * shape.width + x + i);
        });
      }
    }
  });
}

// The gradients of u (B, C, H, W), shift (C), weight (C, 1, 3, 3) and bias (C), the last three in float32.
template <bool GELU, typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> convolve_all_backward(const Tensor& upstream, const Tensor& u, const float* shift,
                                                                 const Tensor& weight, bool residual) {
  const Tensor gradient = channels_last_like(upstream, u);
  const Shape shape(u);
  const std::vector<float> taps = taps_of(weight, nullptr, residual);
  Tensor result = at::empty(u.sizes(), u.options());
  const T* from = u.const_data_ptr<T>();
  const T* above = gradient.const_data_ptr<T>();
  T* to = result.mutable_data_ptr<T>();
  const std::vector<Part> parts = divide(shape, GELU ? 8 : 6, 8, false);
  // Of each part: nine taps, bias, shift. Summed afterwards, always in the same order.
  constexpr int64_t SUMS = TAPS + 2;
  const int64_t room = SUMS * parts[0].channels;
  std::vector<float> sums(parts.size() * room, 0.0f);
  at::parallel_for(0, parts.size(), 1, [&](int64_t begin, int64_t end) {
    Rows values(3, shape.width, parts[0].channels), gradients(3, shape.width, parts[0].channels);
    Rows slopes(GELU ? 2 : 0, shape.width, parts[0].channels);
    for (int64_t number = begin; number < end; number++) {
      const Part part = parts[number];
      for (int64_t ahead = part.row_from - 1; ahead <= part.row_to; ahead++) {
        if (ahead < 0 || ahead >= shape.height) {
          values.clear(ahead);
          gradients.clear(ahead);
        } else {
          const int64_t at = shape.at(part.image, ahead, part.channel_from);
          float *next_value = values.at(ahead), *next_gradient = gradients.at(ahead);
          float* next_slope = GELU ? slopes.at(ahead) : nullptr;
          for (int64_t x = 0; x < shape.width; x++)
            for_vectors(part.channels, [&](int64_t c, auto vectors) {
              const int64_t position = at + x * shape.channels + c, held = c / LANES * values.stride + (x + 1) * LANES;
              Vector inputs[vectors];
              for (int i = 0; i < vectors; i++) {
                inputs[i] = load(from + position + i * LANES);
                if (GELU) inputs[i] += load(shift + part.channel_from + c + i * LANES);
                store(next_gradient + held + i * values.stride, load(above + position + i * LANES));
              }
              if constexpr (GELU) {
                const auto both = gelu<vectors>(inputs);
                for (int i = 0; i < vectors; i++) store(next_value + held + i * values.stride, both.value[i]);
                for (int i = 0; i < vectors; i++) store(next_slope + held + i * values.stride, both.slope[i]);
              } else {
                for (int i = 0; i < vectors; i++) store(next_value + held + i * values.stride, inputs[i]);
              }
            });
        }
        const int64_t row = ahead - 1;
        if (row < part.row_from) continue;
        float* own = &sums[number * room];
        const std::array<const float*, 3> g = {gradients.at(row - 1), gradients.at(row), gradients.at(row + 1)};
        const std::array<const float*, 3> v = {values.at(row - 1), values.at(row), values.at(row + 1)};
        const float* slope = GELU ? slopes.at(row) : nullptr;
        T* write = to + shape.at(part.image, row, part.channel_from);
        float* of_shift = own + (TAPS + 1) * part.channels;
        for_columns(shape.width, [&](int64_t x, auto columns) {
          const float* of_vector = &taps[part.channel_from / LANES * TAPS_ROW];
          int64_t at = x * LANES;
          for (int64_t c = 0; c < part.channels; c += LANES, at += gradients.stride, of_vector += TAPS_ROW) {
            Vector back[columns];
            convolve<columns, true>(g, at, of_vector, back);
            Vector total = GELU ? load(of_shift + c) : Vector{};
            for (int i = 0; i < columns; i++) {
              if (GELU) total += back[i] *= load(slope + at + (i + 1) * LANES);
              store(write + (x + i) * shape.channels + c, back[i]);
            }
            if (GELU) store(of_shift + c, total);
          }
        });
        for (int64_t c = 0; c < part.channels; c += LANES) {
          Vector of_taps[TAPS], of_bias = load(own + TAPS * part.channels + c);
          for (int k = 0; k < TAPS; k++) of_taps[k] = load(own + k * part.channels + c);
          for (int64_t x = 0; x < shape.width; x++) {
            const Vector here = load(g[1] + c / LANES * gradients.stride + (x + 1) * LANES);
            for (int i = 0; i < 3; i++)
              for (int j = 0; j < 3; j++) of_taps[3 * i + j] += here * load(v[i] + c / LANES * values.stride + (x + j) * LANES);
            of_bias += here;
          }
          for (int k = 0; k < TAPS; k++) store(own + k * part.channels + c, of_taps[k]);
          store(own + TAPS * part.channels + c, of_bias);
        }
      }
    }
  });
  const int64_t channels = shape.channels;
  Tensor of_shift = empty_float32({channels}, u), of_bias = empty_float32({channels}, u);
  Tensor of_weight = empty_float32({channels, 1, 3, 3}, u);
  float *to_shift = of_shift.mutable_data_ptr<float>(), *to_bias = of_bias.mutable_data_ptr<float>();
  float* to_weight = of_weight.mutable_data_ptr<float>();
  at::parallel_for(0, channels, LANES, [&](int64_t begin, int64_t end) {
    std::fill(to_shift + begin, to_shift + end, 0.0f);
    std::fill(to_bias + begin, to_bias + end, 0.0f);
    std::fill(to_weight + begin * TAPS, to_weight + end * TAPS, 0.0f);
    for (size_t number = 0; number < parts.size(); number++) {
      const Part& part = parts[number];
      const float* own = &sums[number * room];
      const int64_t stop = std::min(end, part.channel_from + part.channels);
      for (int64_t channel = std::max(begin, part.channel_from); channel < stop; channel++) {
        const int64_t c = channel - part.channel_from;
        for (int64_t k = 0; k < TAPS; k++) to_weight[channel * TAPS + k] += own[k * part.channels + c];
        to_bias[channel] += own[TAPS * part.channels + c];
        to_shift[channel] += own[(TAPS + 1) * part.channels + c];
      }
    }
  });
  return {result.permute({0, 3, 1, 2}), of_shift, of_weight, of_bias};
}

// See `operators.py`; so for those below.
template <bool GELU>
Tensor convolved(const Tensor& input, const float* shift, const Tensor& weight, const Tensor& bias, bool residual) {
  const Tensor u = channels_last(input), of_bias = in_float32(bias);
  const std::vector<float> taps = taps_of(weight, of_bias.const_data_ptr<float>(), residual);
  Tensor y = at::empty(u.sizes(), u.options());
  by_type(u, [&](auto type) {
    using T = decltype(type);
    convolve_all<GELU, false>(u.const_data_ptr<T>(), Shape(u), shift, taps.data(), y.mutable_data_ptr<T>(), LayerNorm<T>{});
  });
  return y.permute({0, 3, 1, 2});
}

template <bool GELU>
std::tuple<Tensor, Tensor, Tensor, Tensor> convolved_backward(const Tensor& grad, const Tensor& input, const float* shift,
                                                              const Tensor& weight, bool residual) {
  const Tensor u = channels_last(input);
  return by_type(u, [&](auto type) { return convolve_all_backward<GELU, decltype(type)>(grad, u, shift, weight, residual); });
}

Tensor conv_pos_enc(const Tensor& x, const Tensor& weight, const Tensor& bias, bool residual) {
  return convolved<false>(x, nullptr, weight, bias, residual);
}

std::tuple<Tensor, Tensor, Tensor> conv_pos_enc_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                         bool residual) {
  auto [of_x, _, of_weight, of_bias] = convolved_backward<false>(grad, x, nullptr, weight, residual);
  return {of_x, of_weight.to(weight.scalar_type()), of_bias.to(weight.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv_pos_enc_layer_norm(const Tensor& input, const Tensor& weight, const Tensor& bias,
                                                                   bool residual, const Tensor& norm_weight,
                                                                   const Tensor& norm_bias, double eps) {
  const Tensor x = channels_last(input), of_bias = in_float32(bias), scale = in_float32(norm_weight), shift = in_float32(norm_bias);
  const std::vector<float> taps = taps_of(weight, of_bias.const_data_ptr<float>(), residual);
  const Shape shape(x);
  Tensor y = at::empty(x.sizes(), x.options()), normalized = at::empty(x.sizes(), x.options());
  Tensor mean = empty_float32({shape.images, shape.height, shape.width, 1}, x), rstd = at::empty(mean.sizes(), mean.options());
  by_type(x, [&](auto type) {
    using T = decltype(type);
    const LayerNorm<T> norm{scale.const_data_ptr<float>(), shift.const_data_ptr<float>(), static_cast<float>(eps),
                            normalized.mutable_data_ptr<T>(), mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>()};
    convolve_all<false, true>(x.const_data_ptr<T>(), shape, nullptr, taps.data(), y.mutable_data_ptr<T>(), norm);
  });
  return {y.permute({0, 3, 1, 2}), normalized.permute({0, 3, 1, 2}), mean, rstd};
}

Tensor gelu_conv_pos_enc(const Tensor& u, const Tensor& shift, const Tensor& weight, const Tensor& bias, bool residual) {
  const Tensor dense = in_float32(shift);
  return convolved<true>(u, dense.const_data_ptr<float>(), weight, bias, residual);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gelu_conv_pos_enc_backward(const Tensor& grad, const Tensor& u, const Tensor& shift,
                                                                      const Tensor& weight, bool residual) {
  const Tensor dense = in_float32(shift);
  auto [of_u, of_shift, of_weight, of_bias] =
      convolved_backward<true>(grad, u, dense.const_data_ptr<float>(), weight, residual);
  return {of_u, of_shift.to(shift.scalar_type()), of_weight.to(weight.scalar_type()), of_bias.to(weight.scalar_type())};
}

}  // namespace
