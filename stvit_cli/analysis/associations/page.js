// ---- the page

const MODES = [
  ["outlines", "Super tokens", "Lines separate the super tokens: each pixel belongs to the one with its largest association weight. The filled one is that of the selected pixel."],
  ["means", "Mean colours", "Each super token in the mean colour of its pixels: what the image looks like at the resolution of the super tokens."],
  ["one", "Selected super token", "How strongly each token is associated with the super token of the selected pixel. Neighbours share: the weights of a token with nine super tokens sum to 1."],
  ["confidence", "Confidence", "How strongly each token is associated with its strongest super token. At 1/9 it belongs to all nine around it alike; at 1 to one alone."],
  ["attention", "Attention", "What the selected pixel takes from every other one, as a multiple of uniform attention: orange more, blue less."],
];
const page = JSON.parse(document.getElementById("data").textContent);
const palettes = { heat: bytes(page.palettes.heat), attention: bytes(page.palettes.attention) }, image = new Image();
const initial = { layer: page.layers[0].name, mode: "outlines", head: -1, point: page.point };
const state = { ...initial };
page.layers.forEach(unpack);
const get = id => document.getElementById(id), current = () => page.layers.find(layer => layer.name === state.layer);
// The chosen view and head are kept where a layer lacks them.
const modeOf = layer => layer.association ? state.mode : "attention";
const headOf = layer => state.head < layer.heads ? state.head : -1;
const layerTitle = name => name.replace("stage", "stage ").replace(".block", ", block ");
const capital = text => text[0].toUpperCase() + text.slice(1);
const formatNumber = value => value.toPrecision(3);
const formatRange = values => `${Math.min(...values).toPrecision(2)} to ${Math.max(...values).toPrecision(2)} × uniform`;
const range = page.attentionRange;
const ATTENTION_TICKS = [[0, `≤ 1/${range} ×`], [0.25, `1/${Math.sqrt(range)} ×`], [0.5, "uniform"], [0.75, `${Math.sqrt(range)} ×`], [1, `≥ ${range} ×`]];

function setButtons(row, title, choices, select) {
  const label = document.createElement("span");
  label.textContent = title;
  row.replaceChildren(label, ...choices.map(([value, text]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.dataset.value = value;
    button.onclick = () => { if (button.getAttribute("aria-disabled") !== "true") { select(value); update(); } };
    return button;
  }));
}

function markButtons(row, selected, isDisabled = () => false) {
  for (const button of row.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", button.dataset.value === String(selected));
    button.setAttribute("aria-disabled", isDisabled(button.dataset.value));
  }
}

function setScale(box, palette, ticks) {
  const canvas = document.createElement("canvas"), labels = document.createElement("div");
  [canvas.width, canvas.height] = [256, 1];
  const context = contextOf(canvas), strip = context.createImageData(256, 1);
  for (let i = 0; i < 256; i++) blend(palette, i / 255, 0.3, strip.data, 4 * i);
  context.putImageData(strip, 0, 0);
  labels.className = "ticks";
  labels.append(...ticks.map(([at, text]) => {
    const label = document.createElement("span");
    label.textContent = text;
    label.style.left = `${100 * at}%`;
    label.style.transform = `translateX(-${100 * at}%)`;
    return label;
  }));
  box.replaceChildren(canvas, labels);
}

function attentionOf(layer) { return attention(layer, ...tokenAt(layer, state.point), headOf(layer)); }

// Draw the large image; return the palette and the ticks of its scale, if it has one.
function paint(canvas, layer, mode) {
  const context = contextOf(canvas), [y, x] = tokenAt(layer, state.point), superToken = layer.labels && layer.labels[y * layer.tokens[1] + x];
  if (mode === "attention") {
    paintHeat(canvas, layer, timesUniform(attentionOf(layer)).map(attentionPosition), palettes.attention);
    return [palettes.attention, ATTENTION_TICKS];
  }
  if (mode === "one") {
    const values = column(layer, superToken), largest = Math.max(...values);
    paintHeat(canvas, layer, values.map(value => value / largest), palettes.heat);
    outline(canvas, layer, layer.labels.map(s => s === superToken));
    return [palettes.heat, [[0, "weight 0"], [1, `largest weight, ${formatNumber(largest)}`]]];
  }
  if (mode === "confidence") {
    const span = page.maxConfidence - 1 / 9;
    paintHeat(canvas, layer, confidence(layer).map(value => (value - 1 / 9) / span), palettes.heat, true);
    return [palettes.heat, [[0, "1/9: uniform"], [1, `${formatNumber(page.maxConfidence)} with the strongest`]]];
  }
  if (mode === "means") {
    paintMeans(canvas, layer);
    return null;
  }
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  fill(canvas, layer, superToken);
  outline(canvas, layer, layer.labels);
  outline(canvas, layer, layer.labels.map(s => s === superToken), 2.2);
  return null;
}

let scale = null;
function drawLarge() {
  const canvas = get("view"), layer = current();
  scale = paint(canvas, layer, modeOf(layer));
  ring(canvas, 7 * canvas.width / 720);
  get("scale").hidden = scale === null;
  if (scale) setScale(get("scale"), ...scale);
}

function describe() {
  const layer = current(), [y, x] = tokenAt(layer, state.point), [H, W] = layer.tokens, index = y * W + x;
  const lines = [`${capital(layerTitle(layer.name))}, pixel (${state.point.join(", ")}): token in row ${y + 1} of ${H}, column ${x + 1} of ${W}.`];
  if (layer.labels) {
    const superToken = layer.labels[index], size = layer.labels.filter(s => s === superToken).length;
    const [p, q] = layer.grid, row = Math.floor(superToken / q) + 1, column = superToken % q + 1;
    lines.push(`Its strongest super token is number ${superToken} of 0 to ${p * q - 1} (row ${row}, column ${column}), with an association weight of ${formatNumber(confidence(layer)[index])}.`);
    lines.push(`It is the strongest super token of ${size} tokens, ${formatNumber(100 * size / (H * W))} % of the image.`);
  } else {
    lines.push("This layer has global attention: every token is its own super token, so attention is all there is to see.");
  }
  const values = attentionOf(layer), lost = outside(values);
  lines.push(`Its attention is ${formatRange(timesUniform(values))}.`
    + (lost >= 0.005 ? ` ${formatNumber(100 * lost)} % of it goes to padding outside the image; the colours compare what stays inside.` : ""));
  get("description").replaceChildren(...lines.map(line => { const p = document.createElement("p"); p.textContent = line; return p; }));
}

function drawThumbs() {
  for (const layer of page.layers) {
    const button = document.querySelector(`[data-layer="${layer.name}"]`), canvas = button.querySelector("canvas");
    const values = timesUniform(attentionOf(layer));
    paintHeat(canvas, layer, values.map(attentionPosition), palettes.attention);
    ring(canvas, 4);
    button.querySelector(".number").textContent = formatRange(values);
  }
}

function update() {
  const layer = current(), mode = modeOf(layer), heads = get("heads");
  markButtons(get("modes"), mode, value => !layer.association && value !== "attention");
  if (heads.childElementCount !== layer.heads + 2)
    setButtons(heads, "Head", [[-1, "Mean"], ...Array.from({ length: layer.heads }, (_, h) => [h, String(h + 1)])], value => { state.head = value; });
  markButtons(heads, headOf(layer));
  heads.hidden = layer.heads < 2;
  get("sentence").textContent = MODES.find(([value]) => value === mode)[2];
  for (const button of document.querySelectorAll("[data-layer]")) button.setAttribute("aria-pressed", button.dataset.layer === state.layer);
  drawLarge();
  settle();
}

// What follows once the pointer rests: all layers, the text and the address.
function settle() {
  clearTimeout(resting);
  resting = 0;
  drawThumbs();
  describe();
  writeAddress();
}

let frame = 0, resting = 0;
function move(x, y) {
  state.point = [Math.min(Math.max(Math.floor(x), 0), page.width - 1), Math.min(Math.max(Math.floor(y), 0), page.height - 1)];
  frame ||= requestAnimationFrame(() => { frame = 0; drawLarge(); });
  clearTimeout(resting);
  resting = setTimeout(settle, 120);
}

// ---- the address: #layer=stage1.block2&point=3,4&view=attention&head=2

function writeAddress() {
  const head = state.head < 0 ? "" : `&head=${state.head + 1}`;
  const wanted = `#layer=${encodeURIComponent(state.layer)}&point=${state.point.join(",")}&view=${state.mode}${head}`;
  if (location.hash === wanted) return;
  try { history.replaceState(null, "", wanted); } catch { /* a page within another may not change its address */ }
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1)), unknown = [];
  Object.assign(state, initial);
  const take = (key, read) => { if (given.has(key) && !read(given.get(key))) unknown.push(`${key}=${given.get(key)}`); };
  take("layer", name => page.layers.some(layer => layer.name === name) && (state.layer = name));
  take("view", name => MODES.some(([value]) => value === name) && (state.mode = name));
  take("head", text => /^[0-9]+$/.test(text) && text >= 1 && text <= Math.max(...page.layers.map(layer => layer.heads)) && ((state.head = text - 1), true));
  take("point", text => {
    const [x, y] = text.split(",").map(Number), inside = /^[0-9]+,[0-9]+$/.test(text) && x < page.width && y < page.height;
    if (inside) state.point = [x, y];
    return inside;
  });
  get("notice").hidden = unknown.length === 0;
  get("notice").textContent = unknown.length ? `The address has ${unknown.join(", ")}, which this page has not; the default is shown instead.` : "";
}

// ---- saving what is shown, with what it is

function save() {
  const view = get("view"), layer = current(), mode = modeOf(layer), canvas = document.createElement("canvas"), context = contextOf(canvas);
  [canvas.width, canvas.height] = [view.width, view.height + (scale ? 92 : 56)];
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(view, 0, 0);
  context.fillStyle = "#1a1a1a";
  context.font = "bold 16px system-ui, sans-serif";
  const head = mode === "attention" && layer.heads > 1 ? (headOf(layer) < 0 ? ", mean of the heads" : `, head ${headOf(layer) + 1}`) : "";
  context.fillText(`${MODES.find(([value]) => value === mode)[1]}, ${layerTitle(layer.name)}${head}, pixel (${state.point.join(", ")})`, 10, view.height + 22, canvas.width - 20);
  context.font = "14px system-ui, sans-serif";
  context.fillText(`${page.name}. ${page.about}`, 10, view.height + 43, canvas.width - 20);
  if (scale) {
    context.drawImage(get("scale").querySelector("canvas"), 10, view.height + 56, canvas.width - 20, 10);
    scale[1].forEach(([at, text]) => {
      context.textAlign = at === 0 ? "left" : at === 1 ? "right" : "center";
      context.fillText(text, 10 + at * (canvas.width - 20), view.height + 84);
    });
  }
  canvas.toBlob(blob => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${page.name.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}_-]+/gu, "-")}-${layer.name}-${mode}-${state.point.join("-")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
}

// ---- start

function addThumb(layer, width, height) {
  const stage = layer.name.split(".")[0];
  let group = document.querySelector(`[data-stage="${stage}"]`);
  if (!group) {
    const section = document.createElement("div"), heading = document.createElement("h3");
    group = document.createElement("div");
    section.className = "stage";
    heading.textContent = capital(layerTitle(stage)) + (layer.association ? "" : ", global attention");
    group.className = "thumbs";
    group.dataset.stage = stage;
    section.append(heading, group);
    get("layers").append(section);
  }
  const button = document.createElement("button"), canvas = document.createElement("canvas"), label = document.createElement("span"), number = document.createElement("span");
  [canvas.width, canvas.height] = [width, height];
  const [first, block] = layerTitle(layer.name).split(", "), unseen = document.createElement("span");
  unseen.className = "unseen";
  unseen.textContent = block ? `${first}, ` : "";
  label.textContent = `${block ?? first} `;
  number.className = "number faint";
  button.type = "button";
  button.dataset.layer = layer.name;
  button.append(canvas, unseen, label, number);
  button.onclick = () => { state.layer = layer.name; update(); };
  group.append(button);
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const layer = current(), key = event.key.toLowerCase(), at = page.layers.indexOf(layer);
  if (key === "j" || key === "k") {
    state.layer = page.layers[Math.min(Math.max(at + (key === "j" ? 1 : -1), 0), page.layers.length - 1)].name;
  } else if (MODES[key - 1] && (layer.association || MODES[key - 1][0] === "attention")) {
    state.mode = MODES[key - 1][0];
  } else if (key === "h" && layer.heads > 1) {
    state.head = headOf(layer) + 1 < layer.heads ? headOf(layer) + 1 : -1;
  } else if (key === "s") {
    save();
    return;
  } else {
    return;
  }
  update();
}

function onArrow(event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const { stride } = current(), [x, y] = state.point;
  move(x + step[0] * Math.max(1, Math.round(stride * page.width / page.input[1])), y + step[1] * Math.max(1, Math.round(stride * page.height / page.input[0])));
}

function start() {
  document.title = `Super tokens of ${page.name}`;
  get("name").textContent = page.name;
  get("about").textContent = page.about + (page.perHead ? "" : " The image is large, so the page holds only the mean over the heads.");
  get("untrained").hidden = page.trained;
  const view = get("view"), shape = Math.min(Math.max(page.height / page.width, 0.4), 1.4);
  [view.width, view.height] = [720, Math.round(720 * shape)];
  page.layers.forEach(layer => addThumb(layer, 176, Math.round(176 * shape)));
  setButtons(get("modes"), "View", MODES, value => { state.mode = value; });
  setScale(get("scale-of-layers"), palettes.attention, ATTENTION_TICKS);
  const follow = event => {
    const box = view.getBoundingClientRect(), x = event.clientX - box.left - view.clientLeft, y = event.clientY - box.top - view.clientTop;
    move(x / view.clientWidth * page.width, y / view.clientHeight * page.height);
  };
  view.onpointerdown = event => {
    if (event.button !== 0 || !event.isPrimary) return;
    view.setPointerCapture(event.pointerId);
    follow(event);
  };
  view.onpointermove = event => { if (view.hasPointerCapture(event.pointerId)) follow(event); };
  view.onkeydown = onArrow;
  document.addEventListener("keydown", onKey);
  get("save").onclick = save;
  window.addEventListener("hashchange", () => { readAddress(); update(); });
  readAddress();
  update();
}
image.onload = start;
image.src = page.image;
