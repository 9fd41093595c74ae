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
