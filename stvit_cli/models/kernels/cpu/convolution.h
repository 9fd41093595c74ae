// Depth-wise 3 x 3 convolution of x, plus x if residual; x = GELU(u + shift), or u. Shapes as in `operators.py`.

#pragma once

#include "vector.h"

namespace {

constexpr int64_t TAPS = 9;
constexpr int64_t CACHE = 640 * 1024;  // bytes of the L2 cache for the rows in use

// GELU(u) = u P(u) with P the normal distribution, and its derivative P(u) + u P'(u).
// P(-a) = exp(-a^2 / 2) f(t), t = 1 / (1 + 0.21 a), f fitted here to 1.4e-8 relative for all a >= 0 where P is not 0 in
// float32.
struct Gelu {
  Vector value, slope;
};

INLINE Gelu gelu(Vector u) {
  const Vector a = u < 0.0f ? -u : u;
  const Vector t = 1.0f / (1.0f + 0.21f * a);
  const Vector bell = exponential(-0.5f * (a * a));
  Vector f = t * -0.07203397757f + 0.2854533878f;
  f = f * t - 0.3341896657f;
  f = f * t + 0.3540336705f;
  f = f * t - 0.09724572863f;
  f = f * t + 0.1263551563f;
  f = f * t + 0.06879003786f;
  f = f * t + 0.08512940843f;
  f = f * t + 0.0837077029f;
  const Vector tail = bell * (f * t);
  const Vector below = u < 0.0f ? tail : 1.0f - tail;
  return {u * below, below + u * (bell * 0.3989422804f)};
}

// A unit of work: rows of one image, and channels.
struct Part {
  int64_t image, row_from, row_to, channel_from, channels;
};

// As many channels as keep the rows in use in the L2 cache, so that memory is read in long runs; if threads would be idle, bands
// of rows, and then fewer channels.
std::vector<Part> divide(const Shape& shape, int64_t rows_held) {
  const int64_t vectors = shape.channels / LANES, row = (shape.width + 2) * LANES * sizeof(float);
  const int64_t min_parts = 4 * at::get_num_threads();
  const auto ceil = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int64_t steps = ceil(vectors, std::max<int64_t>(1, CACHE / (rows_held * row)));
  const int64_t bands = std::max<int64_t>(1, std::min(shape.height / 8, ceil(min_parts, shape.images * steps)));
  steps = std::max(steps, std::min(ceil(vectors, 4), ceil(min_parts, shape.images * bands)));
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
      : stride((width + 2) | 1), count_(count), row_(channels * stride), data_(count * row_, 0.0f) {}
  // Starts at column -1.
  float* at(int64_t row) { return &data_[(row + count_) % count_ * row_]; }
  void clear(int64_t row) { std::memset(at(row), 0, row_ * sizeof(float)); }
  const int64_t stride;  // from one vector of channels to the next; odd, so that they do not share a cache set

 private:
  int64_t count_, row_;
  std::vector<float> data_;
};

// The kernel (C, 1, 3, 3) as [tap][channel]; the residual adds 1 to the middle tap.
std::vector<float> taps_of(const Tensor& weight, bool residual) {
  const Tensor dense = weight.contiguous();
  const int64_t channels = dense.size(0);
  std::vector<float> taps(TAPS * channels);
  for (int64_t c = 0; c < channels; c++)
    for (int64_t k = 0; k < TAPS; k++)
      taps[k * channels + c] = dense.const_data_ptr<float>()[c * TAPS + k] + (residual && k == 4);
  return taps;
}

// Add nine taps for COLUMNS adjacent columns; with the flipped kernel in the backward pass.
template <int COLUMNS, bool FLIPPED>
INLINE void convolve(const std::array<const float*, 3>& rows, int64_t at, const float* taps, int64_t channels, Vector* sums) {
  for (int i = 0; i < 3; i++) {
    Vector near[COLUMNS + 2];
    for (int x = 0; x < COLUMNS + 2; x++) near[x] = load(rows[i] + at + x * LANES);
    for (int j = 0; j < 3; j++) {
      const Vector tap = load(taps + (FLIPPED ? 8 - 3 * i - j : 3 * i + j) * channels);
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

// Each row of u is read once, through GELU, into a buffer of three rows; then the result of the row before it is computed.
template <bool GELU>
Tensor convolve_all(const Tensor& input, const float* shift, const Tensor& weight, const Tensor& bias, bool residual) {
  const Tensor u = channels_last(input);
  const Shape shape(u);
  const std::vector<float> taps = taps_of(weight, residual);
  const Tensor dense = bias.contiguous();
  Tensor y = at::empty(u.sizes(), u.options());
  const float* from = u.const_data_ptr<float>();
  const float* of_bias = dense.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  const std::vector<Part> parts = divide(shape, 3);
  at::parallel_for(0, parts.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; number++) {
      const Part part = parts[number];
      Rows held(3, shape.width, part.channels);
      for (int64_t ahead = part.row_from - 1; ahead <= part.row_to; ahead++) {
        if (ahead < 0 || ahead >= shape.height) {
          held.clear(ahead);
        } else {
          const float* read = from + shape.at(part.image, ahead, part.channel_from);
          float* next = held.at(ahead);
          for (int64_t x = 0; x < shape.width; x++)
            for (int64_t c = 0; c < part.channels; c += LANES) {
              Vector value = load(read + x * shape.channels + c);
              if (GELU) value = gelu(value + load(shift + part.channel_from + c)).value;
              store(next + c * held.stride + (x + 1) * LANES, value);
            }
        }
        const int64_t row = ahead - 1;
        if (row < part.row_from) continue;
        const std::array<const float*, 3> rows = {held.at(row - 1), held.at(row), held.at(row + 1)};
        float* write = to + shape.at(part.image, row, part.channel_from);
        for_columns(shape.width, [&](int64_t x, auto columns) {
          for (int64_t c = 0; c < part.channels; c += LANES) {
            Vector sums[columns];
            for (int i = 0; i < columns; i++) sums[i] = load(of_bias + part.channel_from + c);
            convolve<columns, false>(rows, c * held.stride + x * LANES, &taps[part.channel_from + c], shape.channels, sums);
            for (int i = 0; i < columns; i++) store(write + (x + i) * shape.channels + c, sums[i]);
          }
        });
      }
    }
  });
  return y.permute({0, 3, 1, 2});
}

// The gradients of u (B, C, H, W), shift (C), weight (C, 1, 3, 3) and bias (C).
template <bool GELU>
std::tuple<Tensor, Tensor, Tensor, Tensor> convolve_all_backward(const Tensor& upstream, const Tensor& input,
                                                                 const float* shift, const Tensor& weight, bool residual) {
  const Tensor u = channels_last(input), gradient = channels_last(upstream);
  const Shape shape(u);
  const std::vector<float> taps = taps_of(weight, residual);
  Tensor result = at::empty(u.sizes(), u.options());
  const float* from = u.const_data_ptr<float>();
  const float* above = gradient.const_data_ptr<float>();
  float* to = result.mutable_data_ptr<float>();
  const std::vector<Part> parts = divide(shape, GELU ? 8 : 6);
  // Of each part: nine taps, bias, shift. Summed afterwards, always in the same order.
  constexpr int64_t SUMS = TAPS + 2;
  const int64_t room = SUMS * parts[0].channels;
  std::vector<float> sums(parts.size() * room, 0.0f);
  at::parallel_for(0, parts.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; number++) {
      const Part part = parts[number];
      Rows values(3, shape.width, part.channels), gradients(3, shape.width, part.channels);
      Rows slopes(2, shape.width, part.channels);
      for (int64_t ahead = part.row_from - 1; ahead <= part.row_to; ahead++) {
        if (ahead < 0 || ahead >= shape.height) {
          values.clear(ahead);
          gradients.clear(ahead);
        } else {
          const int64_t at = shape.at(part.image, ahead, part.channel_from);
          float *next_value = values.at(ahead), *next_gradient = gradients.at(ahead), *next_slope = slopes.at(ahead);
          for (int64_t x = 0; x < shape.width; x++)
            for (int64_t c = 0; c < part.channels; c += LANES) {
              const int64_t position = at + x * shape.channels + c, held = c * values.stride + (x + 1) * LANES;
              Vector value = load(from + position);
              if (GELU) {
                const Gelu both = gelu(value + load(shift + part.channel_from + c));
                store(next_slope + held, both.slope);
                value = both.value;
              }
              store(next_value + held, value);
              store(next_gradient + held, load(above + position));
            }
        }
        const int64_t row = ahead - 1;
        if (row < part.row_from) continue;
        float* own = &sums[number * room];
        const std::array<const float*, 3> g = {gradients.at(row - 1), gradients.at(row), gradients.at(row + 1)};
        const std::array<const float*, 3> v = {values.at(row - 1), values.at(row), values.at(row + 1)};
        const float* slope = slopes.at(row);
        float* write = to + shape.at(part.image, row, part.channel_from);
        float* of_shift = own + (TAPS + 1) * part.channels;
        for_columns(shape.width, [&](int64_t x, auto columns) {
          for (int64_t c = 0; c < part.channels; c += LANES) {
            Vector back[columns] = {};
            convolve<columns, true>(g, c * gradients.stride + x * LANES, &taps[part.channel_from + c], shape.channels, back);
            Vector total = GELU ? load(of_shift + c) : Vector{};
            for (int i = 0; i < columns; i++) {
              if (GELU) total += back[i] *= load(slope + c * slopes.stride + (x + i + 1) * LANES);
              store(write + (x + i) * shape.channels + c, back[i]);
            }
            if (GELU) store(of_shift + c, total);
          }
        });
        for (int64_t c = 0; c < part.channels; c += LANES) {
          Vector of_taps[TAPS], of_bias = load(own + TAPS * part.channels + c);
          for (int k = 0; k < TAPS; k++) of_taps[k] = load(own + k * part.channels + c);
          for (int64_t x = 0; x < shape.width; x++) {
            const Vector here = load(g[1] + c * gradients.stride + (x + 1) * LANES);
            for (int i = 0; i < 3; i++)
              for (int j = 0; j < 3; j++) of_taps[3 * i + j] += here * load(v[i] + c * values.stride + (x + j) * LANES);
            of_bias += here;
          }
          for (int k = 0; k < TAPS; k++) store(own + k * part.channels + c, of_taps[k]);
          store(own + TAPS * part.channels + c, of_bias);
        }
      }
    }
  });
  const int64_t channels = shape.channels;
  Tensor of_shift = at::empty({channels}, u.options()), of_bias = at::empty({channels}, u.options());
  Tensor of_weight = at::empty({channels, 1, 3, 3}, u.options());
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

Tensor conv_pos_enc(const Tensor& x, const Tensor& weight, const Tensor& bias, bool residual) {
  return convolve_all<false>(x, nullptr, weight, bias, residual);
}

std::tuple<Tensor, Tensor, Tensor> conv_pos_enc_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                         bool residual) {
  auto [of_x, _, of_weight, of_bias] = convolve_all_backward<false>(grad, x, nullptr, weight, residual);
  return {of_x, of_weight, of_bias};
}

Tensor gelu_conv_pos_enc(const Tensor& u, const Tensor& shift, const Tensor& weight, const Tensor& bias, bool residual) {
  const Tensor dense = shift.contiguous();
  return convolve_all<true>(u, dense.const_data_ptr<float>(), weight, bias, residual);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gelu_conv_pos_enc_backward(const Tensor& grad, const Tensor& u, const Tensor& shift,
                                                                      const Tensor& weight, bool residual) {
  const Tensor dense = shift.contiguous();
  return convolve_all_backward<true>(grad, u, dense.const_data_ptr<float>(), weight, residual);
}

}  // namespace
