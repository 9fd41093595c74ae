"use strict";
const data = JSON.parse(document.getElementById("page-data").textContent);
const byId = id => document.getElementById(id);

/** Make an element: attributes by name, text or children below it. All text goes in as text, never as HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter(child => child !== null));
  return element;
}

const thin = "\u202f";
const grouped = value => String(value).replace(/\B(?=(\d{3})+$)/g, thin);
const percent = value => (100 * value).toFixed(1) + thin + "%";

/** The unit in the singular for one: `1 image`. */
const unit = (count, what) => (count === 1 ? what.replace(/s$/, "") : what);

/** A number for people: up to five significant digits, none of them after the point that say nothing. */
function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return grouped(value);
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-3 ? value.toExponential(2).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(size >= 1000 ? 6 : 4)));
}

/* ---------------------------------------------------------------- theme */
const root = document.documentElement, themeButton = byId("page-theme"), prefersDark = matchMedia("(prefers-color-scheme: dark)");
const onTheme = [];
let chosenTheme = null;
try { chosenTheme = localStorage.getItem("stvit-theme"); } catch { /* a page of a file may have no storage */ }
function showTheme() {
  root.dataset.theme = chosenTheme ?? (prefersDark.matches ? "dark" : "light");
  themeButton.textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
  onTheme.forEach(draw => draw());
}
themeButton.addEventListener("click", () => {
  chosenTheme = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("stvit-theme", chosenTheme); } catch { /* as above */ }
  showTheme();
});
prefersDark.addEventListener("change", showTheme);
showTheme();

/* ---------------------------------------------------------------- navigation */
const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
// A browser is content with an edge of the link in sight.
for (const link of links.values()) link.addEventListener("focus", () => link.scrollIntoView({ block: "nearest", inline: "nearest" }));
function markSection() {
  let current = null;
  for (const section of document.querySelectorAll("main > section")) {
    if (section.getBoundingClientRect().top < innerHeight / 3 || current === null) current = section;
  }
  if (innerHeight + scrollY >= document.body.scrollHeight - 2) current = [...document.querySelectorAll("main > section")].pop();
  for (const [id, link] of links) {
    if (!current || id !== current.id) link.removeAttribute("aria-current");
    else if (!link.hasAttribute("aria-current")) {
      link.setAttribute("aria-current", "true");
      const list = document.querySelector("nav");
      // Not under a keyboard that is in it.
      if (list.scrollWidth > list.clientWidth && !list.querySelector(":focus-visible")) list.scrollLeft = link.offsetLeft - list.clientWidth / 2 + link.offsetWidth / 2;
    }
  }
}
addEventListener("scroll", () => requestAnimationFrame(markSection), { passive: true });

/* ---------------------------------------------------------------- tables */
const SHOWN_ROWS = 25;
function enliven(table) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const key = (row, index) => row.cells[index].dataset.v ?? row.cells[index].textContent;
  const order = new Intl.Collator("en", { numeric: true });
  let isWhole = rows.length <= SHOWN_ROWS + 5, wanted = "";
  const more = make("button", { type: "button" });
  const status = make("span", { class: "faint", role: "status" });

  function refresh() {
    const found = [...body.rows].filter(row => !wanted || row.textContent.toLowerCase().includes(wanted));
    const shown = new Set(isWhole ? found : found.slice(0, SHOWN_ROWS));
    for (const row of body.rows) row.hidden = !shown.has(row);
    more.hidden = rows.length <= SHOWN_ROWS + 5 || found.length <= SHOWN_ROWS;
    more.textContent = isWhole ? `Show ${SHOWN_ROWS} rows` : `Show all ${grouped(found.length)} rows`;
    status.textContent = `${grouped(shown.size)} of ${grouped(rows.length)} rows`;
  }
  heads.forEach((head, index) => head.querySelector("button")?.addEventListener("click", () => {
    const isNumber = head.classList.contains("num"), before = head.getAttribute("aria-sort");
    const isDown = before ? before === "ascending" : isNumber;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    const sorted = rows.map((row, position) => ({ row, position, value: key(row, index) }));
    sorted.sort((a, b) => {
      if ((a.value === "") !== (b.value === "")) return a.value === "" ? 1 : -1;
      const difference = isNumber ? a.value - b.value : order.compare(a.value, b.value);
      return (isDown ? -difference : difference) || a.position - b.position;
    });
    body.append(...sorted.map(item => item.row));
    refresh();
  }));
  if (!isWhole) {
    const search = make("input", { type: "search", placeholder: "name", oninput: () => { wanted = search.value.toLowerCase(); refresh(); } });
    more.addEventListener("click", () => { isWhole = !isWhole; refresh(); });
    table.parentElement.before(make("div", { class: "tools" }, make("label", {}, "Find", search), status));
    table.parentElement.after(make("div", { class: "tools" }, more));
    refresh();
  }
}
document.querySelectorAll("table.sortable").forEach(enliven);

/* ---------------------------------------------------------------- copying commands */
document.querySelectorAll(".code").forEach(block => {
  const button = make("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    const text = block.querySelector("pre").textContent;
    try { await navigator.clipboard.writeText(text); } catch {
      const selection = getSelection();
      selection.selectAllChildren(block.querySelector("pre"));
      document.execCommand("copy");
      selection.removeAllRanges();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  block.append(button);
});

/* ---------------------------------------------------------------- images */
function shot([image, label], name) {
  const { data: source, width, height } = data.images[image];
  const alt = label ? `${name}: ${label}` : name;
  const picture = make("img", { src: source, alt, width, height, decoding: "async" });
  if (Math.max(width, height) <= 64) picture.className = "pixels";
  return make("span", { class: "shot" }, picture, label ? make("span", {}, label) : null);
}
function captionOf(image) {
  const lines = image.caption.map(line => make("div", {}, line));
  if (image.wrong !== null) {
    lines.unshift(make("div", { class: "verdict " + (image.wrong ? "wrong" : "right") }, image.wrong ? "✗ wrong" : "✓ right"));
  }
  return make("div", { class: "caption" }, ...lines);
}
function card(images, index) {
  const image = images[index], wide = Math.min(image.thumbnails.length, 3);
  return make("button", { type: "button", class: "card" + (wide > 1 ? ` wide${wide}` : ""), onclick: () => enlarge(images, index) },
    make("span", { class: "shots" }, ...image.thumbnails.map(thumbnail => shot(thumbnail, image.name))),
    captionOf(image), make("span", { class: "name" }, image.name));
}
document.querySelectorAll("[data-gallery]").forEach(place => {
  const images = data.galleries[place.dataset.gallery];
  place.append(...images.map((_, index) => card(images, index)));
});

const viewer = byId("page-viewer");
let viewed = { images: [], index: 0 };
function enlarge(images, index) {
  viewed = { images, index };
  const image = images[index];
  byId("page-viewer-name").textContent = image.name;
  byId("page-viewer-count").textContent = `${index + 1} of ${images.length}`;
  byId("page-viewer-images").replaceChildren(...image.thumbnails.map(thumbnail => shot(thumbnail, image.name)));
  byId("page-viewer-caption").replaceChildren(captionOf(image));
  byId("page-viewer-previous").disabled = index === 0;
  byId("page-viewer-next").disabled = index === images.length - 1;
  if (!viewer.open) viewer.showModal();
}
function turn(step) {
  const index = viewed.index + step;
  if (index >= 0 && index < viewed.images.length) enlarge(viewed.images, index);
}
byId("page-viewer-close").addEventListener("click", () => viewer.close());
byId("page-viewer-previous").addEventListener("click", () => turn(-1));
byId("page-viewer-next").addEventListener("click", () => turn(1));
viewer.addEventListener("click", event => { if (event.target === viewer) viewer.close(); });
viewer.addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") turn(-1);
  else if (event.key === "ArrowRight") turn(1);
});

/* ---------------------------------------------------------------- charts */
const SVG = "http://www.w3.org/2000/svg";
function svg(tag, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
}
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= rough * 0.999) ?? 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
  return low > high ? null : [low, high];
}
const MANY_SERIES = 3;
const colourOf = index => `var(--s${index % 8})`;

class Chart {
  constructor(figure, chart) {
    this.chart = chart;
    this.hidden = new Set();
    this.cursor = null;
    this.plot = figure.querySelector(".plot");
    this.tip = make("div", { class: "tip", hidden: true, role: "status" });
    this.plot.addEventListener("pointermove", event => this.point(event));
    this.plot.addEventListener("pointerdown", event => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.leave());
    this.plot.addEventListener("blur", () => this.leave());
    this.plot.addEventListener("keydown", event => this.key(event));
    if (chart.series.length > 1) figure.append(this.legend());
    figure.append(this.values());
    this.draw();
    new ResizeObserver(() => { if (this.width !== this.plot.clientWidth) this.draw(); }).observe(this.plot);
  }

  legend() {
    const buttons = this.chart.series.map((series, index) => {
      const button = make("button", { type: "button", "aria-pressed": "true" },
        make("span", { class: "key" + (series.kind === "dashes" ? " dashed" : ""), style: `color:${colourOf(index)}` }), series.name);
      button.addEventListener("click", () => {
        if (!this.hidden.delete(index)) this.hidden.add(index);
        button.setAttribute("aria-pressed", String(!this.hidden.has(index)));
        this.draw();
      });
      return button;
    });
    return make("div", { class: "legend", role: "group", "aria-label": "Series", tabindex: this.chart.series.length > 20 ? "0" : null }, ...buttons);
  }

  values() {
    const details = make("details", {}, make("summary", {}, "Values"));
    details.addEventListener("toggle", () => {
      if (!details.open || details.children.length > 1) return;
      const { chart } = this, at = new Map();
      chart.series.forEach((series, s) => series.x.forEach((x, i) => { at.set(x, at.get(x) ?? []); at.get(x)[s] = series.y[i]; }));
      const rows = [...at.keys()].sort((a, b) => a - b).map(x => make("tr", {}, make("th", { scope: "row", class: "num" }, number(x)),
        ...chart.series.map((_, s) => make("td", { class: "num" }, at.get(x)[s] === undefined ? "" : number(at.get(x)[s])))));
      const head = make("tr", {}, ...[chart.x, ...chart.series.map(series => series.name)].map(name => make("th", { scope: "col", class: "num plain" }, name)));
      details.append(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Values: ${chart.title}` },
        make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))));
    });
    return details;
  }

  draw() {
    const { chart } = this, width = this.width = this.plot.clientWidth || 400, height = Math.round(Math.min(300, Math.max(190, width * 0.56)));
    const shown = this.shown = chart.series.map((series, index) => ({ ...series, index })).filter(series => !this.hidden.has(series.index));
    const bars = shown.filter(series => series.kind === "bars");
    let xs = chart.xRange ?? extent(shown.flatMap(series => series.x)) ?? [0, 1];
    let ys = chart.yRange ?? extent(shown.flatMap(series => series.y)) ?? [0, 1];
    const barWidth = this.barWidth = bars.length ? Math.min(...bars.map(b => b.x.length > 1 ? Math.min(...b.x.slice(1).map((x, i) => x - b.x[i])) : 1)) : 0;
    if (bars.length && !chart.xRange) xs = [xs[0] - barWidth / 2, xs[1] + barWidth / 2];
    if (bars.length && !chart.yRange) ys = [Math.min(0, ys[0]), Math.max(0, ys[1])];
    if (xs[0] === xs[1]) xs = [xs[0] - 1, xs[1] + 1];
    if (ys[0] === ys[1]) { const pad = Math.abs(ys[0]) * 0.1 || 1; ys = [ys[0] - pad, ys[1] + pad]; }
    if (!chart.yRange) { const pad = (ys[1] - ys[0]) * 0.07; ys = [ys[0] >= 0 && (ys[0] - pad < 0 || bars.length) ? Math.min(ys[0], Math.max(0, ys[0] - pad)) : ys[0] - pad, ys[1] + pad]; }
    const yTicks = ticks(ys[0], ys[1], height / 48), left = 14 + 7 * Math.max(...yTicks.map(t => number(t).length), 2);
    const box = this.box = { left: left + 14, right: width - 12, top: 12, bottom: height - 38 };
    const xTicks = ticks(xs[0], xs[1], (box.right - box.left) / 70);
    const px = this.px = x => box.left + (x - xs[0]) / (xs[1] - xs[0]) * (box.right - box.left);
    const py = this.py = y => box.bottom - (y - ys[0]) / (ys[1] - ys[0]) * (box.bottom - box.top);
    const canvas = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
    for (const tick of yTicks) {
      canvas.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: py(tick), y2: py(tick) }));
      canvas.append(svg("text", { x: box.left - 7, y: py(tick) + 4, "text-anchor": "end" }, number(tick)));
    }
    for (const tick of xTicks) {
      canvas.append(svg("line", { class: "axis", x1: px(tick), x2: px(tick), y1: box.bottom, y2: box.bottom + 4 }));
      canvas.append(svg("text", { x: px(tick), y: box.bottom + 17, "text-anchor": "middle" }, number(tick)));
    }
    canvas.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
    canvas.append(svg("text", { x: (box.left + box.right) / 2, y: height - 3, "text-anchor": "middle" }, chart.x));
    canvas.append(svg("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(11 ${(box.top + box.bottom) / 2}) rotate(-90)` }, chart.y));
    const labels = [];
    shown.forEach(series => this.drawSeries(canvas, series, bars, labels));
    canvas.append(...labels);
    this.overlay = svg("g");
    canvas.append(this.overlay);
    this.plot.replaceChildren(canvas, this.tip);
    this.positions = [...new Set(shown.flatMap(series => series.x.filter((_, i) => series.y[i] !== null)))].sort((a, b) => a - b);
    if (this.cursor !== null) this.show();
  }

  drawSeries(canvas, series, bars, labels) {
    const { px, py, box } = this, colour = colourOf(series.index), points = series.x.map((x, i) => [x, series.y[i]]);
    const known = points.filter(([, y]) => y !== null);
    if (series.kind === "bars") {
      const slot = bars.findIndex(bar => bar.index === series.index), wide = (px(this.barWidth) - px(0)) * 0.86 / bars.length;
      for (const [x, y] of known) {
        const left = px(x) - wide * bars.length / 2 + slot * wide, zero = Math.min(box.bottom, py(0));
        canvas.append(svg("rect", { x: left, y: Math.min(py(y), zero), width: Math.max(wide - 1, 1), height: Math.max(Math.abs(zero - py(y)), 0.5), rx: 1.5, style: `fill:${colour}`, opacity: 0.85 }));
      }
    } else if (series.kind !== "points") {
      let path = "", isDown = false;
      for (const [x, y] of points) {
        if (y !== null) path += `${isDown ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
        isDown = y !== null;
      }
      canvas.append(svg("path", { d: path, fill: "none", style: `stroke:${colour}`, "stroke-width": series.kind === "dashes" ? 1.5 : 2, "stroke-linejoin": "round", ...(series.kind === "dashes" ? { "stroke-dasharray": "5 4" } : {}) }));
    }
    const isDotted = series.kind === "points" || (series.kind === "line" && known.length <= 30);
    for (const [x, y] of isDotted ? known : []) canvas.append(svg("circle", { cx: px(x), cy: py(y), r: known.length === 1 ? 4.5 : 2.6, style: `fill:${colour}` }));
    const isNamed = this.shown.length <= MANY_SERIES;  // more labels would cover each other
    if (isNamed && known.length === 1 && series.best === null && series.kind !== "bars") labels.push(this.label(known[0], number(known[0][1])));
    if (series.best !== null && series.y[series.best] !== null) {
      const best = points[series.best];
      canvas.append(svg("circle", { class: "halo", cx: px(best[0]), cy: py(best[1]), r: 5.5, style: `stroke:${colour}` }));
      if (isNamed) labels.push(this.label(best, `★ ${number(best[1])}`));
    }
  }

  label([x, y], text) {
    const { box } = this, at = this.px(x), isRight = at > box.right - 60, isLeft = at < box.left + 40, above = this.py(y) - 11;
    return svg("text", { class: "best-label", x: at + (isRight ? 6 : isLeft ? -4 : 0), y: above < box.top + 6 ? this.py(y) + 20 : above, "text-anchor": isRight ? "end" : isLeft ? "start" : "middle" }, text);
  }

  point(event) {
    if (!this.positions.length) return;
    const x = event.clientX - this.plot.getBoundingClientRect().left;
    let nearest = 0;
    this.positions.forEach((position, i) => { if (Math.abs(this.px(position) - x) < Math.abs(this.px(this.positions[nearest]) - x)) nearest = i; });
    this.cursor = nearest;
    this.show();
  }

  key(event) {
    const last = this.positions.length - 1, at = this.cursor ?? -1;
    const next = { ArrowLeft: Math.max(at - 1, 0), ArrowRight: Math.min(at + 1, last), Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.leave();
    if (next === undefined || last < 0) return;
    event.preventDefault();
    this.cursor = next;
    this.show();
  }

  leave() {
    this.cursor = null;
    this.tip.hidden = true;
    this.overlay.replaceChildren();
  }

  show() {
    const { chart, px, py, box } = this;
    this.cursor = Math.min(this.cursor, this.positions.length - 1);
    const x = this.positions[this.cursor], found = [];
    for (const series of this.shown) {
      const i = series.x.indexOf(x);
      if (i >= 0 && series.y[i] !== null) found.push({ series, y: series.y[i], isBest: series.best === i });
    }
    this.overlay.replaceChildren(svg("line", { class: "cursor", x1: px(x), x2: px(x), y1: box.top, y2: box.bottom }),
      ...found.filter(item => item.series.kind !== "bars").map(item => svg("circle", { class: "halo", cx: px(x), cy: py(item.y), r: 4, style: `stroke:${colourOf(item.series.index)}` })));
    const listed = found.length > 12 ? [...found].sort((a, b) => b.y - a.y).slice(0, 12) : found;
    const lines = listed.map(item => make("div", {}, make("span", {}, make("span", { class: "key", style: `color:${colourOf(item.series.index)}` }), item.series.name), make("b", {}, (item.isBest ? "★ " : "") + number(item.y))));
    if (found.length > listed.length) lines.push(make("div", { class: "faint" }, `and ${found.length - listed.length} more`));
    this.tip.replaceChildren(make("div", { class: "faint" }, `${chart.x} ${number(x)}`), ...lines);
    this.tip.hidden = false;
    const width = this.tip.offsetWidth, left = px(x) + 12 + width > this.width ? px(x) - 12 - width : px(x) + 12;
    this.tip.style.left = `${Math.max(0, Math.min(left, this.width - width))}px`;
    this.tip.style.top = `${box.top}px`;
  }
}
document.querySelectorAll("[data-chart]").forEach(figure => new Chart(figure, data.charts[figure.dataset.chart]));

/* ---------------------------------------------------------------- matrices */
const MANY_CLASSES = 30, SUBSET = 20, SHOWN_PAIRS = 12;
const rgb = (light, dark) => (root.dataset.theme === "dark" ? dark : light);

class Matrix {
  constructor(place, matrix) {
    this.place = place;
    this.matrix = matrix;
    this.size = matrix.names.length;
    this.rows = new Array(this.size).fill(0);
    this.columns = new Array(this.size).fill(0);
    this.counts = new Map();
    this.confused = new Array(this.size).fill(0);
    for (let i = 0; i < matrix.entries.length; i += 3) {
      const [row, column, count] = matrix.entries.slice(i, i + 3);
      this.counts.set(row * this.size + column, count);
      this.rows[row] += count;
      this.columns[column] += count;
      if (row !== column) { this.confused[row] += count; this.confused[column] += count; }
    }
    this.mode = "counts";
    this.selected = null;
    this.active = [0, 0];
    this.classes = this.size <= MANY_CLASSES ? [...Array(this.size).keys()] : this.mostConfused();
    this.table = make("div", { class: "scroll" });
    this.shown = make("div", { class: "shown", hidden: true, "aria-live": "polite" });
    this.place.append(this.tools(), this.table, this.shown, ...this.pairs());
    this.draw();
    onTheme.push(() => this.draw());
  }

  count(row, column) { return this.counts.get(row * this.size + column) ?? 0; }

  /** The classes of the pairs that are confused most, and after them those with the most confusions. */
  mostConfused() {
    const order = [...Array(this.size).keys()].sort((a, b) => this.confused[b] - this.confused[a] || this.rows[b] - this.rows[a] || a - b);
    const chosen = new Set(this.confusions().flatMap(([row, column]) => [row, column]).slice(0, 4 * SUBSET));
    return [...new Set([...chosen, ...order])].slice(0, SUBSET).sort((a, b) => a - b);
  }

  /** Pairs of classes with their counts, the most frequent first. */
  confusions() {
    const found = [];
    for (const [at, count] of this.counts) {
      const row = Math.floor(at / this.size), column = at % this.size;
      if (row !== column && count) found.push([row, column, count]);
    }
    return found.sort((a, b) => b[2] - a[2] || a[0] - b[0] || a[1] - b[1]);
  }

  around(chosen) {
    const weight = other => this.count(chosen, other) + this.count(other, chosen);
    const others = [...Array(this.size).keys()].filter(other => other !== chosen).sort((a, b) => weight(b) - weight(a) || this.confused[b] - this.confused[a] || a - b);
    return [chosen, ...others.slice(0, SUBSET - 1)];
  }

  tools() {
    const modes = { counts: "Counts", row: "By true class, %", column: "By predicted class, %" };
    const buttons = Object.entries(modes).map(([mode, text]) => {
      const button = make("button", { type: "button", "aria-pressed": String(mode === this.mode) }, text);
      button.addEventListener("click", () => {
        this.mode = mode;
        buttons.forEach(other => other.setAttribute("aria-pressed", String(other === button)));
        this.draw();
      });
      return button;
    });
    const tools = make("div", { class: "tools" }, make("div", { class: "tools", role: "group", "aria-label": "Shown as" }, ...buttons));
    if (this.size <= MANY_CLASSES) return tools;
    const id = `classes-${this.place.dataset.matrix}`;
    const search = make("input", { type: "search", list: id, placeholder: "name of a class" });
    const list = make("datalist", { id }, ...this.matrix.names.map(name => make("option", { value: name })));
    const said = make("span", { class: "faint", role: "status" });
    const say = text => { said.textContent = `${this.classes.length} of ${grouped(this.size)} classes: ${text}`; };
    const find = () => {
      const wanted = search.value.trim().toLowerCase(), names = this.matrix.names.map(name => name.toLowerCase());
      let chosen = names.indexOf(wanted);
      if (chosen < 0 && wanted) chosen = names.findIndex(name => name.startsWith(wanted));
      if (chosen < 0 && wanted) chosen = names.findIndex(name => name.includes(wanted));
      if (chosen < 0 && wanted) { said.textContent = `No class is called ${search.value}.`; return; }
      this.classes = wanted ? this.around(chosen) : this.mostConfused();
      say(wanted ? `${this.matrix.names[chosen]} and those it is confused with most` : "those that are confused most");
      this.active = [0, 0];
      this.draw();
    };
    search.addEventListener("change", find);
    const all = make("button", { type: "button" }, "Most confused");
    all.addEventListener("click", () => { search.value = ""; find(); });
    say("those that are confused most");
    tools.append(make("label", {}, "Class", search), list, all, said);
    return tools;
  }

  value(row, column) {
    const count = this.count(row, column);
    const total = this.mode === "row" ? this.rows[row] : this.columns[column];
    return this.mode === "counts" ? count : total ? count / total : null;
  }

  text(value) {
    if (value === null) return "–";
    if (this.mode !== "counts") return value === 0 ? "0" : value < 0.0095 ? "<1" : (100 * value).toFixed(value < 0.0995 && this.classes.length <= 12 ? 1 : 0);
    if (value < 10000) return grouped(value);
    return value < 1e6 ? `${Math.round(value / 1000)}k` : value < 1e9 ? `${(value / 1e6).toFixed(value < 1e7 ? 1 : 0)}M` : `${(value / 1e9).toFixed(1)}G`;
  }

  draw() {
    const { classes, matrix } = this, names = matrix.names, few = classes.length <= 4;
    this.place.classList.toggle("few", few);
    this.place.style.setProperty("--cell", few ? "5.2rem" : classes.length <= 12 ? "3.1rem" : "2.35rem");
    const largest = Math.max(...classes.flatMap(row => classes.map(column => this.value(row, column) ?? 0)), 1e-12);
    this.cells = classes.map((row, r) => classes.map((column, c) => this.cell(row, column, r, c, largest)));
    const label = index => make("span", { title: names[index] }, names[index]);
    const head = make("tr", {}, make("td", { class: "axis-name" }, "true ↓ predicted →"), ...classes.map(column => make("th", { scope: "col" }, label(column))));
    const body = classes.map((row, r) => make("tr", {}, make("th", { scope: "row", title: names[row] }, names[row]), ...this.cells[r].map(cell => make("td", {}, cell))));
    const table = make("table", { "aria-label": `${matrix.title}. Arrow keys move between cells, Enter shows the images of one.` }, make("thead", {}, head), make("tbody", {}, ...body));
    const hadFocus = this.table.contains(document.activeElement);
    this.table.replaceChildren(table);
    this.focusable();
    if (hadFocus) this.cells[this.active[0]][this.active[1]].focus();
  }

  cell(row, column, r, c, largest) {
    const count = this.count(row, column), value = this.value(row, column), names = this.matrix.names;
    const strength = value ? 0.08 + 0.92 * Math.sqrt(value / largest) : 0;
    const tint = row === column ? rgb([11, 92, 173], [74, 155, 235]) : rgb([196, 78, 10], [240, 130, 50]);
    const ground = rgb([238, 241, 245], [34, 43, 53]).map((g, i) => Math.round(g + (tint[i] - g) * strength));
    const linear = ground.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    const share = this.rows[row] ? `, ${percent(count / this.rows[row])} of true ${names[row]}` : "";
    const about = `true ${names[row]}, predicted ${names[column]}: ${grouped(count)} ${unit(count, this.matrix.what)}${share}`;
    const isSelected = this.selected && this.selected[0] === row && this.selected[1] === column;
    const button = make("button", { type: "button", class: "cell", tabindex: "-1", title: about, "aria-label": about, "aria-pressed": isSelected ? "true" : null,
      style: `background:rgb(${ground});color:${luminance > 0.179 ? "#000" : "#fff"}` }, count ? this.text(value) : "");
    button.addEventListener("click", () => { this.active = [r, c]; this.select(row, column); });
    button.addEventListener("keydown", event => this.key(event));
    return button;
  }

  focusable() {
    this.active = this.active.map(at => Math.min(at, this.classes.length - 1));
    this.cells.flat().forEach(cell => cell.setAttribute("tabindex", "-1"));
    this.cells[this.active[0]][this.active[1]].setAttribute("tabindex", "0");
  }

  key(event) {
    const last = this.classes.length - 1, [r, c] = this.active;
    const next = { ArrowUp: [r - 1, c], ArrowDown: [r + 1, c], ArrowLeft: [r, c - 1], ArrowRight: [r, c + 1], Home: [r, 0], End: [r, last] }[event.key];
    if (!next) return;
    event.preventDefault();
    this.active = next.map(at => Math.max(0, Math.min(at, last)));
    this.focusable();
    this.cells[this.active[0]][this.active[1]].focus();
  }

  select(row, column) {
    const { names, images, what } = this.matrix, count = this.count(row, column), found = images[`${row},${column}`] ?? [];
    this.selected = [row, column];
    this.draw();
    const isRight = row === column;
    const share = this.rows[row] ? ` (${percent(count / this.rows[row])} of those that are ${names[row]})` : "";
    const said = isRight ? `${names[row]}, predicted as such: ` : `True ${names[row]}, predicted ${names[column]}: `;
    const kept = found.length ? `; ${found.length} shown` : count ? "; images of this cell are not in the page" : "";
    this.shown.replaceChildren(make("h3", {}, `${said}${grouped(count)} ${unit(count, what)}${share}${what === "images" && found.length === count ? "" : kept}`),
      make("div", { class: "gallery" }, ...found.map((_, index) => card(found, index))));
    this.shown.hidden = false;
  }

  pairs() {
    const found = this.confusions();
    if (!found.length || this.size <= MANY_CLASSES) return [];
    const names = this.matrix.names, kept = found.slice(0, 200);
    const rows = kept.map(([row, column, count], index) => {
      const button = make("button", { type: "button" }, `${names[row]} → ${names[column]}`);
      button.addEventListener("click", () => {
        if (!this.classes.includes(row) || !this.classes.includes(column)) this.classes = [...new Set([...this.around(row), column])];
        this.active = [this.classes.indexOf(row), this.classes.indexOf(column)];
        this.select(row, column);
        this.shown.scrollIntoView({ block: "nearest" });
      });
      return make("tr", { hidden: index >= SHOWN_PAIRS }, make("td", {}, button), make("td", { class: "num" }, grouped(count)), make("td", { class: "num" }, this.rows[row] ? percent(count / this.rows[row]) : ""));
    });
    const head = make("tr", {}, make("th", { scope: "col", class: "plain" }, "true → predicted"), make("th", { scope: "col", class: "num plain" }, this.matrix.what), make("th", { scope: "col", class: "num plain" }, "of true class"));
    const more = make("button", { type: "button", hidden: kept.length <= SHOWN_PAIRS }, `Show ${grouped(kept.length)} of ${grouped(found.length)} pairs`);
    more.addEventListener("click", () => { rows.forEach(row => { row.hidden = false; }); more.hidden = true; });
    const table = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Most confused pairs: ${this.matrix.title}` }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
    return [make("details", { class: "pairs", open: true }, make("summary", {}, "Most confused pairs"), table, make("div", { class: "tools" }, more))];
  }
}
document.querySelectorAll("[data-matrix]").forEach(place => new Matrix(place, data.matrices[place.dataset.matrix]));
markSection();
