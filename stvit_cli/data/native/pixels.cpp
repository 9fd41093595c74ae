// Resizing and affine transforms of RGB images: the results of Pillow to the last bit, by AVX2. Each function repeats
// Pillow's arithmetic in Pillow's order (fixed point with 22 bits for resizing, float64 for affine transforms). `pixels.py` compiles
// it on the user's machine and compares it with Pillow before it is used. C ABI; no dependency beside the C++ library.
//
// Images have 4 bytes for a pixel, R G B and one that is not used, as Pillow keeps them.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int BITS = 22;  // of the fraction of a weight
constexpr int HALF = 1 << (BITS - 1);

__m256i two_pixels(const uint8_t* from) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))); }

__m128i one_pixel(const uint8_t* from) {
  int bytes;
  std::memcpy(&bytes, from, 4);
  return _mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes));
}

// Writes 32-bit values as bytes, clipped to 0..255.
void store_pixel(uint8_t* out, __m128i values) {
  values = _mm_packus_epi32(values, values);
  const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(values, values));
  std::memcpy(out, &bytes, 4);
}

double bilinear(double x) {
  x = std::abs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

// The weights of the input pixels of each output pixel, in fixed point; `stride` of them are reserved for each.
struct Weights {
  int stride;
  std::vector<int> first, count;
  std::vector<int32_t> values;

  Weights(int in_size, int out_size, bool is_bicubic) : first(out_size), count(out_size) {
    const double scale = static_cast<double>(in_size) / out_size, filter_scale = std::max(scale, 1.0);
    const double support = (is_bicubic ? 2.0 : 1.0) * filter_scale, inverse = 1.0 / filter_scale;
    stride = static_cast<int>(std::ceil(support)) * 2 + 2;
    values.assign(static_cast<size_t>(out_size) * stride, 0);
    std::vector<double> exact(stride);
    for (int i = 0; i < out_size; ++i) {
      const double center = (i + 0.5) * scale;
      const int low = std::max(static_cast<int>(center - support + 0.5), 0);
      const int high = std::min(static_cast<int>(center + support + 0.5), in_size);
      double sum = 0.0;
      for (int k = 0; k < high - low; ++k) {
        const double x = (k + low - center + 0.5) * inverse;
        exact[k] = is_bicubic ? bicubic(x) : bilinear(x);
        sum += exact[k];
      }
      first[i] = low;
      count[i] = high - low;
      for (int k = 0; k < high - low; ++k) {
        const double weight = sum != 0.0 ? exact[k] / sum : exact[k];
        values[static_cast<size_t>(i) * stride + k] = static_cast<int>((weight < 0 ? -0.5 : 0.5) + weight * (1 << BITS));
      }
    }
  }
};

void resize_row(const uint8_t* row, uint8_t* out, int out_width, const Weights& weights) {
  const __m256i spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  for (int x = 0; x < out_width; ++x) {
    const uint8_t* from = row + 4 * weights.first[x];
    const int32_t* w = weights.values.data() + static_cast<size_t>(x) * weights.stride;
    const int count = weights.count[x];
    __m256i sum = _mm256_setzero_si256();
    int k = 0;
    for (; k + 2 <= count; k += 2) {
      const __m256i pair = _mm256_castsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w + k)));
      sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(two_pixels(from + 4 * k), _mm256_permutevar8x32_epi32(pair, spread)));
    }
    __m128i pixel = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    if (k < count) pixel = _mm_add_epi32(pixel, _mm_mullo_epi32(one_pixel(from + 4 * k), _mm_set1_epi32(w[k])));
    store_pixel(out + 4 * x, _mm_srai_epi32(_mm_add_epi32(pixel, _mm_set1_epi32(HALF)), BITS));
  }
}

// Writes the bytes of four pixels from the sums of two and two; packing works within halves of 128 bits.
void store_four(uint8_t* out, __m256i left, __m256i right) {
  __m256i words = _mm256_packus_epi32(_mm256_srai_epi32(left, BITS), _mm256_srai_epi32(right, BITS));
  words = _mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0));
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
}

// Sums rows of `width` pixels; reads and writes nothing beyond them.
void sum_rows(const uint8_t* rows, int64_t row_bytes, uint8_t* out, int width, const int32_t* w, int count) {
  int x = 0;
  for (; x + 4 <= width; x += 4) {
    __m256i left = _mm256_set1_epi32(HALF), right = left;
    for (int k = 0; k < count; ++k) {
      const uint8_t* from = rows + k * row_bytes + 4 * x;
      const __m256i weight = _mm256_set1_epi32(w[k]);
      left = _mm256_add_epi32(left, _mm256_mullo_epi32(two_pixels(from), weight));
      right = _mm256_add_epi32(right, _mm256_mullo_epi32(two_pixels(from + 8), weight));
    }
    store_four(out + 4 * x, left, right);
  }
  for (; x < width; ++x) {
    __m128i pixel = _mm_set1_epi32(HALF);
    for (int k = 0; k < count; ++k)
      pixel = _mm_add_epi32(pixel, _mm_mullo_epi32(one_pixel(rows + k * row_bytes + 4 * x), _mm_set1_epi32(w[k])));
    store_pixel(out + 4 * x, _mm_srai_epi32(pixel, BITS));
  }
}

void copy_row(const uint8_t* row, uint8_t* out, int width, int channels, bool flip) {
  if (channels == 4 && !flip) {
    std::memcpy(out, row, static_cast<size_t>(4) * width);
    return;
  }
  const uint8_t* from = flip ? row + 4 * (width - 1) : row;
  const int step = flip ? -4 : 4;
  for (int x = 0; x < width; ++x, from += step, out += channels) {
    out[0] = from[0];
    out[1] = from[1];
    out[2] = from[2];
    if (channels == 4) out[3] = from[3];
  }
}

// A cubic through four pixels, in the order of Pillow's operations.
__m256d cubic(__m256d a, __m256d b, __m256d c, __m256d d, __m256d at) {
  const __m256d two = _mm256_set1_pd(2.0);
  const __m256d p2 = _mm256_sub_pd(c, a);
  const __m256d p3 = _mm256_sub_pd(_mm256_add_pd(_mm256_mul_pd(two, _mm256_sub_pd(a, b)), c), d);
  const __m256d p4 = _mm256_add_pd(_mm256_sub_pd(_mm256_sub_pd(b, a), c), d);
  const __m256d inner = _mm256_add_pd(p3, _mm256_mul_pd(at, p4));
  return _mm256_add_pd(b, _mm256_mul_pd(at, _mm256_add_pd(p2, _mm256_mul_pd(at, inner))));
}

int floor_of(double value) { return value < 0.0 ? static_cast<int>(std::floor(value)) : static_cast<int>(value); }

}  // namespace

extern "C" {

// Resizes `width` x `height` pixels, whose rows are `row_bytes` apart, to `out_width` x `out_height`, and flips them left to right.
// channels: bytes of an output pixel, 3 or 4. vertical_first: the order of the passes; values between them are rounded to bytes.
void stvit_resize(const uint8_t* in, int64_t row_bytes, int width, int height, uint8_t* out, int out_width, int out_height,
                  int channels, int is_bicubic, int vertical_first, int flip) {
  const bool across = width != out_width, down = height != out_height;
  const Weights vertical(height, out_height, is_bicubic), horizontal(width, out_width, is_bicubic);
  std::vector<uint8_t> narrow, sums(static_cast<size_t>(4) * std::max(width, out_width)), line(static_cast<size_t>(4) * out_width);
  const auto sum = [&](const uint8_t* rows, int y, int row_width) {
    const int32_t* w = vertical.values.data() + static_cast<size_t>(y) * vertical.stride;
    sum_rows(rows + vertical.first[y] * row_bytes, row_bytes, sums.data(), row_width, w, vertical.count[y]);
    return static_cast<const uint8_t*>(sums.data());
  };
  const bool across_first = across && !(down && vertical_first);
  const uint8_t* rows = in;
  if (across_first) {
    const int first_row = down ? vertical.first[0] : 0;
    const int last_row = down ? vertical.first[out_height - 1] + vertical.count[out_height - 1] : height;
    const int64_t narrow_bytes = static_cast<int64_t>(4) * out_width;
    narrow.resize(static_cast<size_t>(last_row) * narrow_bytes);
    for (int y = first_row; y < last_row; ++y) resize_row(in + y * row_bytes, narrow.data() + y * narrow_bytes, out_width, horizontal);
    rows = narrow.data();
    row_bytes = narrow_bytes;
  }
  for (int y = 0; y < out_height; ++y) {
    const uint8_t* row = down ? sum(rows, y, across_first ? out_width : width) : rows + y * row_bytes;
    if (across && !across_first) {
      resize_row(row, line.data(), out_width, horizontal);
      row = line.data();
    }
    copy_row(row, out + static_cast<size_t>(y) * out_width * channels, out_width, channels, flip);
  }
}

// Writes each output pixel (x, y) whose source (a0 x + a1 y + a2, a3 x + a4 y + a5) is in the image; `out` has the fill color before.
void stvit_affine(const uint8_t* in, int width, int height, uint8_t* out, const double* a, int is_bicubic) {
  const auto row_at = [&](int y) { return in + static_cast<int64_t>(4) * width * std::clamp(y, 0, height - 1); };
  for (int out_y = 0; out_y < height; ++out_y)
    for (int out_x = 0; out_x < width; ++out_x) {
      const double at_x = out_x + 0.5, at_y = out_y + 0.5;
      double from_x = a[0] * at_x + a[1] * at_y + a[2], from_y = a[3] * at_x + a[4] * at_y + a[5];
      if (!(from_x >= 0.0 && from_x < width && from_y >= 0.0 && from_y < height)) continue;
      from_x -= 0.5;
      from_y -= 0.5;
      const int x = floor_of(from_x), y = floor_of(from_y);
      const __m256d dx = _mm256_set1_pd(from_x - x), dy = _mm256_set1_pd(from_y - y);
      // Shearing and translating along one axis ends at whole pixels of the other, where a polynomial is its first coefficient.
      const bool is_whole_x = from_x == x, is_whole_y = from_y == y;
      int columns[4];
      for (int k = 0; k < 4; ++k) columns[k] = 4 * std::clamp(x - 1 + k, 0, width - 1);
      const auto pixel = [&](const uint8_t* row, int k) { return _mm256_cvtepi32_pd(one_pixel(row + columns[k])); };
      __m256d value;
      if (is_bicubic) {
        const auto across = [&](const uint8_t* row) {
          return is_whole_x ? pixel(row, 1) : cubic(pixel(row, 0), pixel(row, 1), pixel(row, 2), pixel(row, 3), dx);
        };
        value = across(row_at(y));
        if (!is_whole_y) value = cubic(across(row_at(y - 1)), value, across(row_at(y + 1)), across(row_at(y + 2)), dy);
      } else {
        const auto across = [&](const uint8_t* row) {
          const __m256d left = pixel(row, 1);
          return is_whole_x ? left : _mm256_add_pd(left, _mm256_mul_pd(_mm256_sub_pd(pixel(row, 2), left), dx));
        };
        value = across(row_at(y));
        if (!is_whole_y) value = _mm256_add_pd(value, _mm256_mul_pd(_mm256_sub_pd(across(row_at(y + 1)), value), dy));
      }
      store_pixel(out + 4 * (static_cast<int64_t>(out_y) * width + out_x), _mm256_cvttpd_epi32(value));
    }
}

// Replaces each byte by the float of its channel in `table` (channels x 256). `in` has `in_channels` bytes for a pixel, 1 or `channels`.
void stvit_look_up(const uint8_t* in, int64_t pixels, int in_channels, int channels, const float* table, float* out) {
  if (channels == 3 && in_channels == 3) {
    for (int64_t i = 0; i < pixels; ++i) {
      out[3 * i] = table[in[3 * i]];
      out[3 * i + 1] = table[256 + in[3 * i + 1]];
      out[3 * i + 2] = table[512 + in[3 * i + 2]];
    }
    return;
  }
  for (int64_t i = 0; i < pixels; ++i)
    for (int c = 0; c < channels; ++c) out[channels * i + c] = table[256 * c + in[in_channels * i + (in_channels == 1 ? 0 : c)]];
}

}  // extern "C"
