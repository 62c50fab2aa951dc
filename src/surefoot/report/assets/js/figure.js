// A figure: a drawing, its read-out, its tools, and the same numbers as a table for those who cannot see it.

import { el, fmt } from "./dom.js";

const figures = new Set();
const colours = new Map();

/** Colours of the theme in force, by name: "before" is --before. */
export function colour(name) {
  if (!colours.has(name)) {
    // expensive: the browser brings all styles up to date
    colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim() || name);
  }
  return colours.get(name);
}

/** Draw every figure again: the theme or the print has changed. */
export function redraw() {
  colours.clear();
  for (const figure of figures) {
    if (figure.root.isConnected) figure.draw();
    else figures.delete(figure);
  }
}

const MOST_ROWS = 1000;

function numbersTable(content) {
  const every = Math.ceil(content.rows.length / MOST_ROWS);
  const rows = every > 1 ? content.rows.filter((_, i) => i % every === 0) : content.rows;
  const note = every > 1 ? ` (one row in ${every} of ${fmt(content.rows.length)})` : "";
  return el("table", {},
    el("caption", {}, content.caption + note),
    el("thead", {}, el("tr", {}, content.head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell))))));
}

/** A toggle of a figure's tools: pressed or not. */
export function toggle(text, pressed, change) {
  const button = el("button", { type: "button", class: "tool", "aria-pressed": String(pressed) }, text);
  button.addEventListener("click", () => {
    pressed = !pressed;
    button.setAttribute("aria-pressed", String(pressed));
    change(pressed);
  });
  return button;
}

/**
 * The frame of a figure. `table()` gives {caption, head, rows}: the very numbers that are drawn, made when asked for.
 * `refresh()` draws what has changed, once somebody looks at it.
 */
export function frame(host, { label, table, tools = [], legend = [] }) {
  const numbers = el("div", { class: "numbers", tabindex: "0", role: "region", "aria-label": `Numbers of: ${label}` });
  const box = el("div", { class: "plot" });
  const tip = el("div", { class: "tip", hidden: true });
  const live = el("div", { class: "unseen", "aria-live": "polite" });
  const reveal = toggle("Numbers", false, (on) => {
    numbers.replaceChildren(...(on ? [numbersTable(table())] : []));
    numbers.classList.toggle("open", on);
  });
  reveal.classList.add("quiet");
  reveal.setAttribute("aria-label", `Numbers of: ${label}`);
  const root = el("figure", { class: "figure" },
    el("div", { class: "bar" },
      el("figcaption", {}, label),
      el("div", { class: "tools" }, tools, reveal)),
    legend.length > 0 && el("div", { class: "legend" }, legend.map(([name, text, mark]) => {
      const swatch = el("i", { class: `swatch ${mark || ""}`, "aria-hidden": "true" });
      swatch.style.setProperty("--swatch", `var(--${name})`);
      return el("span", {}, swatch, text);
    })),
    box, live, numbers);
  box.append(tip);
  host.append(root);
  const figure = { root, box, tip, live, drawn: 0, seen: true, stale: false, draw() {} };
  figure.refresh = () => {
    figure.stale = !figure.seen;
    if (figure.seen) figure.draw();
    if (numbers.classList.contains("open")) numbers.replaceChildren(numbersTable(table()));
  };
  figures.add(figure);
  new ResizeObserver(() => root.isConnected && figure.drawn !== box.clientWidth && figure.draw()).observe(box);
  new IntersectionObserver(([entry]) => {
    figure.seen = entry.isIntersecting;
    if (figure.seen && figure.stale) figure.refresh();
  }, { rootMargin: "200px" }).observe(root);
  return figure;
}

/** Show lines of text beside a point of the figure. */
export function tell(figure, lines, x, y) {
  const { tip, box } = figure;
  if (!lines) {
    tip.hidden = true;
    return;
  }
  tip.replaceChildren(...lines.map((line, i) => el("div", { class: i ? "" : "first" }, line)));
  tip.hidden = false;
  const left = x + 14 + tip.offsetWidth > box.clientWidth ? x - tip.offsetWidth - 14 : x + 14;
  tip.style.left = `${Math.max(0, Math.min(left, box.clientWidth - tip.offsetWidth))}px`;
  tip.style.top = `${Math.max(0, y - tip.offsetHeight / 2)}px`;
}

/**
 * A figure on canvas. `spec`: label, table, tools, legend; height(width) in px; paint(g, width, height);
 * hit(x, y) → {lines, x, y} or null; count and at(i) → point, to walk through it with the arrow keys;
 * zoom(x0, x1) and reset() for dragging and the double click; keys(event) → handled; pick(found) for a click or Enter.
 */
export function mountCanvas(host, spec) {
  const canvas = el("canvas", { tabindex: "0", role: "img", "aria-label": `${spec.label}. ${spec.help || "Arrow keys read the values; the button Numbers shows them as a table."}` });
  const figure = frame(host, spec);
  const { box } = figure;
  box.prepend(canvas);
  let size = [0, 0];
  figure.draw = () => {
    const width = box.clientWidth;
    if (!width) return;
    figure.drawn = width;
    const height = spec.height(width);
    const ratio = window.devicePixelRatio || 1;
    size = [width, height];
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.font = FONT;
    g.textBaseline = "middle";
    spec.paint(g, width, height);
  };
  const point = (event) => {
    const at = canvas.getBoundingClientRect();
    return [event.clientX - at.left, event.clientY - at.top];
  };
  const read = (x, y) => {
    const found = spec.hit(x, y);
    tell(figure, found && found.lines, found ? found.x : 0, found ? found.y : 0);
    return found;
  };
  const band = el("div", { class: "band", hidden: true });
  box.append(band);
  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    from = point(event);
    if (spec.drag || spec.zoom) canvas.setPointerCapture(event.pointerId);
    read(...from);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = point(event);
    if (from && spec.drag) {
      spec.drag(x - from[0], y - from[1]);
      from = [x, y];
      figure.draw();
    } else if (from && spec.zoom && Math.abs(x - from[0]) > 4) {
      band.hidden = false;
      band.style.left = `${Math.min(x, from[0])}px`;
      band.style.width = `${Math.abs(x - from[0])}px`;
    }
    read(x, y);
  });
  const release = (event) => {
    const [x] = point(event);
    if (from && spec.zoom && event.type === "pointerup" && Math.abs(x - from[0]) > 4) {
      spec.zoom(Math.min(x, from[0]), Math.max(x, from[0]), size[0]);
      figure.draw();
    } else if (from && spec.pick && event.type === "pointerup") {
      const found = spec.hit(...from);
      if (found) spec.pick(found);
    }
    from = null;
    band.hidden = true;
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => tell(figure, null));
  canvas.addEventListener("blur", () => tell(figure, null));
  canvas.addEventListener("dblclick", () => {
    if (spec.reset) {
      spec.reset();
      figure.draw();
    }
  });
  let index = -1;
  canvas.addEventListener("keydown", (event) => {
    if (spec.keys && spec.keys(event)) {
      event.preventDefault();
      figure.draw();
      return;
    }
    if (event.key === "Enter" && spec.pick && spec.count && index >= 0) {
      const found = spec.hit(...spec.at(index));
      if (found) spec.pick(found);
    }
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -1e9, End: 1e9 }[event.key];
    if (event.key === "Escape" && spec.reset) {
      spec.reset();
      figure.draw();
    }
    if (!move || !spec.count) return;
    event.preventDefault();
    index = Math.max(0, Math.min(spec.count() - 1, index + move));
    const found = read(...spec.at(index));
    if (found) figure.live.textContent = found.lines.join(", ");
  });
  figure.draw();
  return figure;
}

export const FONT = '12px ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
export const STRONG = `600 ${FONT}`;

/** Text cut to a width, with an ellipsis. */
export function clipped(g, text, width) {
  if (g.measureText(text).width <= width) return text;
  let short = text;
  while (short && g.measureText(`${short}…`).width > width) short = short.slice(0, -1);
  return `${short}…`;
}

export function mixed(hex, alpha) {
  const [r, g, b] = rgb(hex);
  return `rgba(${r},${g},${b},${alpha})`;
}

export function rgb(hex) {
  const value = parseInt(hex.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"].map(rgb);

/** viridis at 0..1: equally far apart to the eye, also for colour-blind people. */
export function viridis(t) {
  const x = Math.max(0, Math.min(1, t)) * (VIRIDIS.length - 1);
  const i = Math.min(VIRIDIS.length - 2, Math.floor(x));
  const mix = VIRIDIS[i].map((from, k) => Math.round(from + (VIRIDIS[i + 1][k] - from) * (x - i)));
  return `rgb(${mix.join(",")})`;
}

/** Blue for below zero, orange for above, the page's own colour at zero; t in −1..1. */
export function diverging(t, ends) {
  const [low, zero, high] = ends;
  const to = t < 0 ? low : high;
  const share = Math.min(1, Math.abs(t)) ** 0.5;
  return `rgb(${zero.map((from, k) => Math.round(from + (to[k] - from) * share)).join(",")})`;
}
