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
