// What `browser.py` asks a page: which elements can be used, and what shows that one has the focus.
window.checks ||= (() => {
  const NATIVE = "a[href], button, input:not([type=hidden]), select, textarea, summary";
  const FOCUSABLE = `${NATIVE}, [tabindex]`;
  const ROLES = ["grid", "radiogroup", "tablist", "toolbar", "listbox", "menu"].map(role => `[role=${role}]`);
  const COMPOSITE = [...ROLES, 'table:has(button[tabindex="-1"])'].join(", ");
  const LOOK = ["outline", "boxShadow", "backgroundColor", "borderColor", "textDecoration"];
  let interactive, reached, looks;

  const isShown = element => element.checkVisibility({ opacityProperty: true, visibilityProperty: true })
    && element.getClientRects().length > 0 && element.closest("[inert]") === null;
  const look = element => { const style = getComputedStyle(element); return LOOK.map(key => style[key]).join("|"); };
  const name = element => {
    const text = element.getAttribute("aria-label") || element.textContent || element.value || "";
    const id = element.id ? ` id=${element.id}` : "";
    return `<${element.tagName.toLowerCase()}${id}> ${text.trim().replace(/\s+/g, " ").slice(0, 60)}`;
  };

  // Start a walk; return what the pointer says can be clicked, but neither is nor is in something that takes the focus.
  function prepare() {
    // What has tabindex -1 and is no control takes the focus from a script or a link, such as the target of a skip link.
    interactive = [...document.querySelectorAll(`${NATIVE}, [tabindex]:not([tabindex="-1"])`)].filter(element => isShown(element) && !element.disabled);
    reached = new Set();
    // Tab starts at what was last clicked: begin at the top.
    const top = document.createElement("span");
    top.tabIndex = -1;
    document.body.prepend(top);
    top.focus();
    top.remove();
    looks = new Map(interactive.map(element => [element, look(element)]));
    return [...document.body.querySelectorAll("*")].filter(element => isShown(element)
      && ["pointer", "crosshair", "grab"].includes(getComputedStyle(element).cursor)
      && !element.closest(`${FOCUSABLE}, label`)).map(name);
  }

  function inSight(element) {
    const box = element.getBoundingClientRect();
    return [[.5, .5], [.1, .1], [.9, .1], [.1, .9], [.9, .9]].some(([x, y]) => {
      const found = document.elementFromPoint(box.left + x * box.width, box.top + y * box.height);
      return found && (element.contains(found) || found.contains(element));
    });
  }

  // Describe the element that has the focus; null if none has.
  function focused() {
    const element = document.activeElement, faults = [];
    if (!element || element === document.body || element === document.documentElement) return null;
    if (reached.has(element)) return { known: true };
    reached.add(element);
    if (looks.get(element) === look(element)) faults.push(`${name(element)} looks the same with the focus`);
    if (!inSight(element)) faults.push(`${name(element)} is out of sight with the focus`);
    // Tab stops once at a group of radio buttons; within a composite widget the arrow keys move the focus.
    if (element.type === "radio")
      interactive.filter(other => other.type === "radio" && other.name === element.name).forEach(other => reached.add(other));
    return { known: false, name: name(element), faults, composite: element.closest(COMPOSITE) !== null };
  }

  const missed = () => interactive.filter(element => !reached.has(element) && element.isConnected && isShown(element)).map(name);

  // What a finger can touch and is smaller than `side` pixels on a side; links within a text are exempt.
  function smallTargets(side) {
    return [...document.querySelectorAll("button, input:not([type=hidden]), select, summary, a[href]")]
      .filter(element => isShown(element) && !element.disabled && getComputedStyle(element).display !== "inline")
      .map(element => [element, (element.closest("label") || element).getBoundingClientRect()])
      .filter(([, box]) => box.width < side - .5 || box.height < side - .5)
      .map(([element, box]) => `${name(element)} ${box.width.toFixed(0)} x ${box.height.toFixed(0)}`);
  }

  return { prepare, focused, missed, smallTargets };
})();
