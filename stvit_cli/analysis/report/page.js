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
