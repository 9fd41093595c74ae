// The gradients of the weight and bias of a convolution: products of all output positions' gradients with the inputs under each
// tap of the kernel, dW[n][tap][c] = sum over positions m of g[m][n] x[m, tap][c]. See `convolution.py`.
//
// oneDNN's and BLAS' routines are for one operand in rows and one in columns; here both have the positions outermost, so that
// blocks of both are copied without a transposition, and the inputs under a tap without a matrix of all taps. Where the processor
// multiplies bfloat16 (AVX512-BF16), two positions are one element of the copies; elsewhere bfloat16 is copied to float32.

#pragma once

#include "products.h"

namespace {

constexpr int COLUMN_VECTORS = 2, PANEL_ROWS = REGISTERS == 32 ? 8 : 6;  // sums in registers
constexpr int64_t PANEL_COLUMNS = LANES * COLUMN_VECTORS;
constexpr int64_t PANEL_BYTES = 16 * 1024;                    // of the L1 cache, for a panel of x
constexpr int64_t DEPTH = PANEL_BYTES / (4 * PANEL_COLUMNS);  // elements of a block: positions, or pairs of them
constexpr int64_t PANEL = DEPTH * PANEL_COLUMNS + 16;         // not a power of two: panels do not share a cache set
constexpr int64_t ROWS_AT_ONCE = 96;                          // of g, whose panels stay in the L2 cache

// Whether an element of a panel is two bfloat16.
template <typename T>
constexpr bool PAIRS = HAVE_PAIRS && std::is_same_v<T, BFloat16>;

template <bool PAIR>
INLINE Vector add_element(Vector total, Vector x, float g) {
  if constexpr (PAIR)
    return add_product(total, reinterpret_cast<Words>(x), Pair{std::bit_cast<uint32_t>(g)});
  else
    return add_product(total, x, g);
}

// out[rows][columns] = panel of g [depth][rows], transposed, times panel of x [depth][PANEL_COLUMNS], + out if `add`.
template <int ROWS, bool PAIR>
void multiply_panels(const float* g, const float* x, int64_t depth, float* out, int64_t stride, int64_t columns, bool add) {
  Vector totals[ROWS][COLUMN_VECTORS] = {};
  for (int64_t k = 0; k < depth; k++) {
    Vector near[COLUMN_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < COLUMN_VECTORS; v++) near[v] = load(x + k * PANEL_COLUMNS + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
      for (int v = 0; v < COLUMN_VECTORS; v++) totals[r][v] = add_element<PAIR>(totals[r][v], near[v], g[k * ROWS + r]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < COLUMN_VECTORS; v++) {
      float* to = out + r * stride + v * LANES;
      if (v * LANES < columns) store(to, add ? load(to) + totals[r][v] : totals[r][v]);
    }
}

// Sizes of a convolution: of its input x, its kernel and its output.
struct Convolution {
  int64_t images, height, width, channels, out_height, out_width, out_channels, kernel, stride, padding;
  int64_t positions() const { return images * out_height * out_width; }
  int64_t columns() const { return kernel * kernel * channels; }
};

// The input position under the first tap of an output position: the image's first row, and row and column within the image.
struct Origin {
  int64_t image_row, y, x;
};

// The origins of output positions `from` to `until`.
std::vector<Origin> origins_of(const Convolution& conv, int64_t from, int64_t until) {
  int64_t column = from % conv.out_width, row = from / conv.out_width % conv.out_height;
  int64_t image = from / conv.out_width / conv.out_height;
  std::vector<Origin> origins;
  origins.reserve(until - from);
  for (int64_t position = from; position < until; position++) {
    origins.push_back({image * conv.height, row * conv.stride - conv.padding, column * conv.stride - conv.padding});
    if (++column == conv.out_width) {
      column = 0;
      if (++row == conv.out_height) row = 0, image++;
    }
  }
  return origins;
}

// Elements of as many channels as a vector has lanes.
template <typename T>
INLINE Vector elements(const T* first, const T* second) {
  if constexpr (PAIRS<T>)
    return reinterpret_cast<Vector>(load_bits(first) | load_bits(second) << 16);
  else
    return load(first);
}

// Copies x under the taps of a block of output positions into panels of all columns.
template <typename T>
void copy_inputs(const Convolution& conv, const T* x, const T* zeros, int64_t from, int64_t until, float* panels) {
  constexpr int64_t STEP = PAIRS<T> ? 2 : 1;
  const int64_t panels_of_tap = (conv.channels + PANEL_COLUMNS - 1) / PANEL_COLUMNS, count = until - from;
  const std::vector<Origin> origins = origins_of(conv, from, until);
  for (int64_t tap = 0; tap < conv.kernel * conv.kernel; tap++) {
    const int64_t down = tap / conv.kernel, across = tap % conv.kernel;
    const auto at = [&](int64_t position) {
      if (position >= count) return zeros;
      const int64_t row = origins[position].y + down, column = origins[position].x + across;
      const bool inside = row >= 0 && row < conv.height && column >= 0 && column < conv.width;
      return inside ? x + ((origins[position].image_row + row) * conv.width + column) * conv.channels : zeros;
    };
    for (int64_t position = 0; position < count; position += STEP) {
      const T *first = at(position), *second = STEP == 2 ? at(position + 1) : nullptr;
      float* to = panels + tap * panels_of_tap * PANEL + position / STEP * PANEL_COLUMNS;
      for (int64_t c = 0; c < conv.channels; c += LANES)
        store(to + c / PANEL_COLUMNS * PANEL + c % PANEL_COLUMNS, elements(first + c, STEP == 2 ? second + c : nullptr));
    }
  }
}

// Copies a block of g, channels n to n + count, into panels of PANEL_ROWS channels.
template <typename T>
void copy_gradients(const T* g, const T* zeros, int64_t width, int64_t n, int64_t count, int64_t from, int64_t until,
                    float* panels) {
  constexpr int64_t STEP = PAIRS<T> ? 2 : 1;
  float row[ROWS_AT_ONCE];
  for (int64_t position = from; position < until; position += STEP) {
    const T* first = g + position * width + n;
    const float* copied = row;
    if constexpr (std::is_same_v<T, float>) {
      copied = first;
    } else {
      const T* second = position + 1 < until ? first + width : zeros;
      for (int64_t c = 0; c < count; c += LANES) store(row + c, elements(first + c, second + c));
    }
    float* to = panels + (position - from) / STEP * PANEL_ROWS;
    int64_t c = 0;
    for (; c + PANEL_ROWS <= count; c += PANEL_ROWS) std::memcpy(to + c * DEPTH, copied + c, PANEL_ROWS * sizeof(float));
    const int64_t rest = count - c;
    if (rest) std::memcpy(panels + c * DEPTH + (position - from) / STEP * rest, copied + c, rest * sizeof(float));
  }
}

// Adds g, channels n to n + count, over positions.
template <typename T>
void add_positions(const T* g, int64_t width, int64_t n, int64_t count, int64_t from, int64_t until, float* sums) {
  for (int64_t c = 0; c < count; c += LANES) {
    Vector total = load(sums + c);
    for (int64_t position = from; position < until; position++) total += load(g + position * width + n + c);
    store(sums + c, total);
  }
}

// The gradient of the weight (N, columns) for output channels `n` to `last`: products of positions `from` to `until`; and that
// of the bias, unless it is null.
template <typename T>
void multiply_positions(const Convolution& conv, const T* g, const T* x, int64_t n, int64_t last, int64_t from, int64_t until,
                        float* of_weight, float* of_bias) {
  constexpr bool PAIR = PAIRS<T>;
  const int64_t columns = conv.columns(), panels_of_tap = (conv.channels + PANEL_COLUMNS - 1) / PANEL_COLUMNS;
  const int64_t num_panels = conv.kernel * conv.kernel * panels_of_tap;
  std::vector<float> inputs(num_panels * PANEL, 0.0f), gradients(ROWS_AT_ONCE * DEPTH);
  const std::vector<T> zeros(std::max(conv.channels, ROWS_AT_ONCE), T(0));
  if (of_bias) std::fill(of_bias + n, of_bias + last, 0.0f);
  for (int64_t block = from; block < until; block += DEPTH * (1 + PAIR)) {
    const int64_t end = std::min(block + DEPTH * (1 + PAIR), until), depth = PAIR ? (end - block + 1) / 2 : end - block;
    copy_inputs(conv, x, zeros.data(), block, end, inputs.data());
    for (int64_t at = n; at < last; at += ROWS_AT_ONCE) {
      const int64_t count = std::min(ROWS_AT_ONCE, last - at);
      copy_gradients(g, zeros.data(), conv.out_channels, at, count, block, end, gradients.data());
      if (of_bias) add_positions(g, conv.out_channels, at, count, block, end, of_bias + at);
      for (int64_t panel = 0; panel < num_panels; panel++) {
        const int64_t c = panel % panels_of_tap * PANEL_COLUMNS, used = std::min(PANEL_COLUMNS, conv.channels - c);
        float* to = of_weight + at * columns + panel / panels_of_tap * conv.channels + c;
        const float* near = &inputs[panel * PANEL];
        const auto multiply = [&](auto rows, int64_t row) {
          multiply_panels<rows, PAIR>(&gradients[row * DEPTH], near, depth, to + row * columns, columns, used, block > from);
        };
        int64_t row = 0;
        for (; row + PANEL_ROWS <= count; row += PANEL_ROWS) multiply(std::integral_constant<int, PANEL_ROWS>{}, row);
        if (count - row == 4) multiply(std::integral_constant<int, 4>{}, row);
        if (count - row == 2) multiply(std::integral_constant<int, 2>{}, row);
      }
    }
  }
}

// `of_bias` may be null.
template <typename T>
void weight_gradients(const Convolution& conv, const T* g, const T* x, float* of_weight, float* of_bias) {
  // Threads divide the output channels, down to 64 for each, then the positions; the results of these are added in order.
  const auto ceil = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t threads = at::get_num_threads(), positions = conv.positions();
  const int64_t tile = ceil(ceil(conv.out_channels, std::min(threads, ceil(conv.out_channels, 64))), CHANNELS) * CHANNELS;
  const int64_t tiles = ceil(conv.out_channels, tile);
  const int64_t slice = ceil(positions, std::max<int64_t>(1, std::min(ceil(threads, tiles), positions / 512)));
  const int64_t slices = ceil(positions, slice), size = conv.out_channels * conv.columns(), room = size + conv.out_channels;
  const auto others = room_for<float>((slices - 1) * room);
  at::parallel_for(0, tiles * slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t part = item / tiles, n = item % tiles * tile, last = std::min(n + tile, conv.out_channels);
      float* to = part ? &others[(part - 1) * room] : of_weight;
      float* to_bias = part && of_bias ? to + size : of_bias;
      multiply_positions(conv, g, x, n, last, part * slice, std::min((part + 1) * slice, positions), to, to_bias);
    }
  });
  if (slices == 1) return;
  at::parallel_for(0, of_bias ? room : size, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t part = 0; part < slices - 1; part++)
      for (int64_t i = begin; i < end; i++) (i < size ? of_weight[i] : of_bias[i - size]) += others[part * room + i];
  });
}

// See `convolution.py`.
std::tuple<Tensor, Tensor> conv2d_weight_backward(const Tensor& grad, const Tensor& input, int64_t kernel, int64_t stride,
                                                  int64_t padding, bool bias) {
  const Tensor x = channels_last(input), g = channels_last_like(grad, x);
  const Convolution conv{x.size(0), x.size(1), x.size(2), x.size(3), g.size(1), g.size(2), g.size(3), kernel, stride, padding};
  Tensor of_weight = empty_float32({conv.out_channels, kernel, kernel, conv.channels}, x);
  Tensor of_bias = empty_float32({bias ? conv.out_channels : 0}, x);
  by_type(x, [&](auto type) {
    using T = decltype(type);
    weight_gradients(conv, g.const_data_ptr<T>(), x.const_data_ptr<T>(), of_weight.mutable_data_ptr<float>(),
                     bias ? of_bias.mutable_data_ptr<float>() : nullptr);
  });
  return {of_weight.permute({0, 3, 1, 2}), of_bias};
}

}  // namespace
