// ---- drawing

// The first call decides: the browser keeps such a canvas where pixels are read quickly.
function contextOf(canvas) { return canvas.getContext("2d", { willReadFrequently: true }); }

// Blend a colour of a palette (256 of red, green, blue, opacity) over grey (0 to 1) into `out`.
function blend(palette, position, grey, out, offset) {
  const at = 4 * Math.round(Math.min(Math.max(position, 0), 1) * 255), opacity = palette[at + 3] / 255;
  for (let k = 0; k < 3; k++) out[offset + k] = 255 * (0.06 + 0.54 * grey) * (1 - opacity) + palette[at + k] * opacity;
  out[offset + 3] = 255;
}

// Draw a token map, already positions on a scale, over the grey image.
function paintHeat(canvas, layer, heat, palette, withoutImage) {
  const context = contextOf(canvas), { width, height } = canvas;
  context.drawImage(image, 0, 0, width, height);
  const frame = context.getImageData(0, 0, width, height), resized = resizeLinear(layer, heat, height, width);
  for (let i = 0; i < resized.length; i++) {
    const grey = withoutImage ? 0.3 : (frame.data[4 * i] + frame.data[4 * i + 1] + frame.data[4 * i + 2]) / 765;
    blend(palette, resized[i], grey, frame.data, 4 * i);
  }
  context.putImageData(frame, 0, 0);
}

function paintMeans(canvas, layer) {
  const context = contextOf(canvas), { width, height } = canvas, [, W] = layer.tokens;
  context.drawImage(image, 0, 0, width, height);
  const frame = context.getImageData(0, 0, width, height), pixels = frame.data, sums = {};
  const rows = nearest(layer, 0, height), columns = nearest(layer, 1, width);
  const label = i => layer.labels[rows[Math.floor(i / width)] * W + columns[i % width]];
  for (let i = 0; i < width * height; i++) {
    const sum = sums[label(i)] ||= [0, 0, 0, 0];
    for (let k = 0; k < 3; k++) sum[k] += pixels[4 * i + k];
    sum[3]++;
  }
  for (let i = 0; i < width * height; i++) {
    const sum = sums[label(i)];
    for (let k = 0; k < 3; k++) pixels[4 * i + k] = sum[k] / sum[3];
  }
  context.putImageData(frame, 0, 0);
}

// Edges of the tokens along an axis, in pixels of the canvas.
function edges(layer, axis, size) {
  const count = layer.tokens[axis];
  return Array.from({ length: count + 1 }, (_, i) => i === 0 ? 0 : i === count ? size
    : (layer.offset + (i - 0.5) * layer.stride + 0.5) * size / page.input[axis]);
}

// Lines between tokens with different labels, white on black.
function outline(canvas, layer, labels, factor = 1) {
  const context = contextOf(canvas), [H, W] = layer.tokens, line = new Path2D();
  const xs = edges(layer, 1, canvas.width), ys = edges(layer, 0, canvas.height);
  for (let y = 0; y < H; y++)
    for (let x = 0; x < W; x++) {
      const label = labels[y * W + x];
      if (y + 1 < H && labels[(y + 1) * W + x] !== label) { line.moveTo(xs[x], ys[y + 1]); line.lineTo(xs[x + 1], ys[y + 1]); }
      if (x + 1 < W && labels[y * W + x + 1] !== label) { line.moveTo(xs[x + 1], ys[y]); line.lineTo(xs[x + 1], ys[y + 1]); }
    }
  context.lineCap = "round";
  for (const [colour, width] of [["black", 3.2], ["white", 1.3]]) {
    context.strokeStyle = colour;
    context.lineWidth = factor * width * canvas.width / 720;
    context.stroke(line);
  }
}

// Fill the tokens of one super token.
function fill(canvas, layer, superToken) {
  const context = contextOf(canvas), [H, W] = layer.tokens, area = new Path2D();
  const xs = edges(layer, 1, canvas.width), ys = edges(layer, 0, canvas.height);
  for (let y = 0; y < H; y++)
    for (let x = 0; x < W; x++)
      if (layer.labels[y * W + x] === superToken) area.rect(xs[x], ys[y], xs[x + 1] - xs[x], ys[y + 1] - ys[y]);
  context.fillStyle = "rgba(236, 0, 180, .6)";
  context.fill(area);
}

function ring(canvas, size) {
  const context = contextOf(canvas);
  for (const [colour, width] of [["black", 4.5], ["white", 2]]) {
    context.beginPath();
    context.strokeStyle = colour;
    context.lineWidth = width * size / 7;
    context.arc((state.point[0] + 0.5) * canvas.width / page.width, (state.point[1] + 0.5) * canvas.height / page.height, size, 0, 7);
    context.stroke();
  }
}
