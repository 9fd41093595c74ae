// ---- arithmetic: all values are computed from each layer's association, attention and column sums

function bytes(text) { return Uint8Array.from(atob(text), c => c.charCodeAt(0)); }
function floats(text) { return new Float32Array(bytes(text).buffer); }
function uint16s(text) { return new Uint16Array(bytes(text).buffer); }

function unpack(layer) {
  layer.attention = bytes(layer.attention);
  layer.largest = floats(layer.largest);
  if (layer.association) {
    layer.association = uint16s(layer.association);
    layer.columnSums = floats(layer.columnSums);
    layer.labels = uint16s(layer.labels);
  }
  return layer;
}

// Indices of the nine super tokens around the cell of the token at (y, x), row-major; -1 outside the image.
function neighbours(layer, y, x) {
  const result = [], cy = Math.floor(y / layer.cell[0]), cx = Math.floor(x / layer.cell[1]);
  for (let i = cy - 1; i <= cy + 1; i++)
    for (let j = cx - 1; j <= cx + 1; j++)
      result.push(i < 0 || j < 0 || i >= layer.grid[0] || j >= layer.grid[1] ? -1 : i * layer.grid[1] + j);
  return result;
}

// Association weights of all tokens with one super token.
function column(layer, superToken) {
  const [H, W] = layer.tokens, result = new Float32Array(H * W);
  for (let y = 0; y < H; y++)
    for (let x = 0; x < W; x++)
      neighbours(layer, y, x).forEach((s, k) => { if (s === superToken) result[y * W + x] = layer.association[(y * W + x) * 9 + k] / 65535; });
  return result;
}

// Association weight of each token with its strongest super token.
function confidence(layer) {
  const [H, W] = layer.tokens, result = new Float32Array(H * W);
  for (let y = 0; y < H; y++)
    for (let x = 0; x < W; x++) {
      const at = y * W + x, k = neighbours(layer, y, x).indexOf(layer.labels[at]);
      result[at] = layer.association[at * 9 + k] / 65535;
    }
  return result;
}

// Attention of the token at (y, x) to every token: association x attention x association^T. Head -1 is the mean.
function attention(layer, y, x, head) {
  const [H, W] = layer.tokens, n = layer.grid[0] * layer.grid[1];
  const from = layer.association ? neighbours(layer, y, x) : [y * W + x];
  const mixed = new Float32Array(n), heads = head < 0 ? [...Array(layer.heads).keys()] : [head];
  from.forEach((s, k) => {
    if (s < 0) return;
    const weight = layer.association ? layer.association[(y * W + x) * 9 + k] / 65535 : 1;
    for (const h of heads) {
      const row = h * n + s, factor = weight * layer.largest[row] / 255 / heads.length;
      for (let t = 0; t < n; t++) mixed[t] += factor * layer.attention[row * n + t];
    }
  });
  if (!layer.association) return mixed;
  for (let s = 0; s < n; s++) mixed[s] /= layer.columnSums[s];
  const result = new Float32Array(H * W);
  for (let b = 0; b < H; b++)
    for (let a = 0; a < W; a++)
      neighbours(layer, b, a).forEach((s, k) => { if (s >= 0) result[b * W + a] += mixed[s] * layer.association[(b * W + a) * 9 + k] / 65535; });
  return result;
}

// Centres, in tokens, of `count` equal parts of the image along an axis (0: height, 1: width).
function positions(layer, axis, count) {
  return Float64Array.from({ length: count }, (_, i) => (((i + 0.5) / count) * page.input[axis] - 0.5 - layer.offset) / layer.stride);
}

function nearest(layer, axis, count) {
  return Int32Array.from(positions(layer, axis, count), v => Math.min(Math.max(Math.floor(v + 0.5), 0), layer.tokens[axis] - 1));
}

function tokenAt(layer, [x, y]) {
  return [nearest(layer, 0, page.height)[y], nearest(layer, 1, page.width)[x]];
}

// Resize a token map to `rows` x `columns` pixels, bilinearly between the centres of the tokens.
function resizeLinear(layer, values, rows, columns) {
  const [H, W] = layer.tokens, result = new Float32Array(rows * columns);
  const clip = (v, n) => Math.min(Math.max(v, 0), n - 1);
  const ys = positions(layer, 0, rows).map(v => clip(v, H)), xs = positions(layer, 1, columns).map(v => clip(v, W));
  for (let i = 0; i < rows; i++) {
    const y = Math.floor(ys[i]), v = ys[i] - y, below = Math.min(y + 1, H - 1);
    for (let j = 0; j < columns; j++) {
      const x = Math.floor(xs[j]), u = xs[j] - x, right = Math.min(x + 1, W - 1);
      result[i * columns + j] = (1 - v) * ((1 - u) * values[y * W + x] + u * values[y * W + right])
        + v * ((1 - u) * values[below * W + x] + u * values[below * W + right]);
    }
  }
  return result;
}

// Attention as a multiple of uniform attention within the image: the mean of the result is 1.
function timesUniform(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return values.map(value => value / mean);
}

// The part of a token's attention that goes outside the image: super tokens there are zero vectors, as is padding.
function outside(values) { return Math.max(0, 1 - values.reduce((sum, value) => sum + value, 0)); }

// Position on the scale of attention, 0 to 1: logarithmic, 0.5 is uniform.
function attentionPosition(value) { return Math.min(Math.max(0.5 + Math.log2(value) / (2 * Math.log2(page.attentionRange)), 0), 1); }
