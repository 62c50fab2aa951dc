// A grid of numbers as colours (viridis): layer × step, or a map of altitudes with contour lines.

import { extent, fmt, num, ticks } from "./dom.js";
import { FONT, clipped, colour, mountCanvas, toggle, viridis } from "./figure.js";

/**
 * data: {x: [..], y: [labels or numbers], z: [[..] for each y]}
 * options: label, axis, unit, log, contours, path: [[x, y], ..], top (true: the first row is drawn at the top),
 * pick(row of y): a cell was chosen. The figure's update(data) takes a grid that has grown.
 */
export function drawHeatmap(host, data, options) {
  let { x, y, z } = data;
  const unit = options.unit || ((x) => fmt(x, 3));
  const box = { left: 60, right: 74, top: 6, bottom: 38 };
  let log = Boolean(options.log);
  let [from, to] = [0, x.length];
  let inner = 1;
  let tall = 1;
  let canLog = false;
  const judge = () => {
    const flat = z.flat().map(num);
    canLog = flat.some((v) => v > 0) && !flat.some((v) => v < 0);
  };
  judge();
  const value = (v) => (log && canLog ? (v > 0 ? Math.log10(v) : NaN) : v);
  const row = (r) => (options.top ? r : y.length - 1 - r);

  const paint = (g, width, height) => {
    const [soft, ink] = ["soft", "ink"].map(colour);
    g.font = FONT;
    const words = y.map((text) => (typeof text === "number" ? fmt(text, 3) : text));
    box.left = Math.ceil(12 + Math.min(width * 0.3, Math.max(...words.map((text) => g.measureText(text).width))));
    const shownCells = z.map((line) => line.slice(from, to)).flat().map((v) => value(num(v)));
    let [low, high] = extent(shownCells);
    if (!(high > low)) [low, high] = [Number.isFinite(low) ? low - 0.5 : 0, Number.isFinite(low) ? low + 0.5 : 1];
    const back = (t) => unit(log && canLog ? 10 ** t : t);
    box.right = 42 + Math.ceil(Math.max(...marks(low, high).map((t) => g.measureText(back(t)).width)));
    inner = Math.max(20, Math.floor(width - box.left - box.right));
    tall = height - box.top - box.bottom;
    const count = to - from;
    for (let r = 0; r < y.length; r++) {
      const a = box.top + Math.round((r * tall) / y.length);
      const b = box.top + Math.round(((r + 1) * tall) / y.length);
      for (let c = 0; c < count; c++) {
        const v = value(num(z[row(r)][from + c]));
        const l = box.left + Math.round((c * inner) / count);
        const e = box.left + Math.round(((c + 1) * inner) / count);
        g.fillStyle = Number.isFinite(v) ? viridis((v - low) / (high - low)) : colour("fill");
        g.fillRect(l, a, e - l, b - a);
      }
    }
    g.textAlign = "right";
    g.fillStyle = soft;
    const every = Math.max(1, Math.ceil((y.length * 15) / tall));
    for (let r = 0; r < y.length; r += every) {
      g.fillText(clipped(g, words[row(r)], box.left - 10), box.left - 8, box.top + ((r + 0.5) * tall) / y.length);
    }
    g.textAlign = "center";
    const wide = Math.max(1, Math.ceil((count * 62) / inner));
    for (let c = 0; c < count; c += wide) {
      g.fillText(fmt(x[from + c], 3), box.left + ((c + 0.5) * inner) / count, height - box.bottom + 13);
    }
    g.fillText(options.axis || "", box.left + inner / 2, height - 8);
    for (let i = 0; i < tall; i++) {
      g.fillStyle = viridis(1 - i / tall);
      g.fillRect(width - box.right + 12, box.top + i, 12, 1.5);
    }
    g.textAlign = "left";
    g.fillStyle = soft;
    for (const mark of marks(low, high)) {
      const at = box.top + tall * (1 - (mark - low) / (high - low));
      g.fillRect(width - box.right + 24, Math.round(at), 4, 1);
      g.fillText(back(mark), width - box.right + 32, Math.max(box.top + 6, Math.min(at, box.top + tall - 6)));
    }
    if (options.contours) contours(g, low, high);
    if (options.path) path(g, ink);
  };
  /** Marks of the colour scale: powers of ten where there are enough of them, else round steps. */
  const marks = (low, high) => {
    const tens = ticks(low, high, 5).filter(Number.isInteger);
    if (!(log && canLog)) return ticks(low, high, 4);
    return tens.length > 1 ? tens : ticks(10 ** low, 10 ** high, 4).filter((v) => v > 0).map(Math.log10);
  };
  const px = (c) => box.left + ((c + 0.5 - from) * inner) / (to - from);
  const py = (r) => box.top + ((r + 0.5) * tall) / y.length;
  const contours = (g, low, high) => {
    g.strokeStyle = "rgba(255,255,255,0.75)";
    g.lineWidth = 1;
    for (let k = 1; k < 10; k++) {
      const level = low + ((high - low) * k) / 10;
      g.beginPath();
      for (let r = 0; r + 1 < y.length; r++) {
        for (let c = 0; c + 1 < x.length; c++) {
          const corner = [[c, r], [c + 1, r], [c + 1, r + 1], [c, r + 1]];
          const cuts = [];
          for (let i = 0; i < 4; i++) {
            const [a, b] = [corner[i], corner[(i + 1) % 4]];
            const [va, vb] = [a, b].map(([cc, rr]) => value(num(z[row(rr)][cc])));
            if (va < level === vb < level) continue;
            const t = (level - va) / (vb - va);
            cuts.push([px(a[0] + (b[0] - a[0]) * t), py(a[1] + (b[1] - a[1]) * t)]);
          }
          for (let i = 0; i + 1 < cuts.length; i += 2) {
            g.moveTo(...cuts[i]);
            g.lineTo(...cuts[i + 1]);
          }
        }
      }
      g.stroke();
    }
  };
  /** Where a number lies among the numbers of an axis, as a fractional index. */
  const place = (axis, v) => {
    for (let i = 0; i + 1 < axis.length; i++) {
      if (v >= axis[i] && v <= axis[i + 1]) return i + (v - axis[i]) / (axis[i + 1] - axis[i] || 1);
    }
    return v < axis[0] ? 0 : axis.length - 1;
  };
  const path = (g) => {
    const points = options.path.map(([a, b]) => [px(place(x, a)), py(row(place(y, b)))]);
    g.strokeStyle = "#fff";
    g.lineWidth = 2;
    g.beginPath();
    points.forEach((point, i) => (i ? g.lineTo(...point) : g.moveTo(...point)));
    g.stroke();
    points.forEach((point, i) => {
      g.beginPath();
      g.arc(...point, 5, 0, 7);
      g.fillStyle = colour(i ? "after" : "before");
      g.fill();
      g.stroke();
    });
  };
  const spec = {
    label: options.label,
    legend: options.legend || [],
    tools: [],
    height: (width) => options.height ? options.height(width) : Math.max(150, y.length * (y.length > 48 ? 10 : width < 520 ? 11 : 15)) + 44,
    paint,
    count: () => (to - from) * y.length,
    at: (i) => [px(from + (i % (to - from))), py(Math.floor(i / (to - from)))],
    hit(mx, my) {
      const c = from + Math.floor(((mx - box.left) / inner) * (to - from));
      const r = Math.floor(((my - box.top) / tall) * y.length);
      if (c < from || c >= to || r < 0 || r >= y.length) return null;
      const at = typeof y[row(r)] === "number" ? fmt(y[row(r)], 3) : y[row(r)];
      return { lines: [`${options.axis || "x"} ${fmt(x[c])}, ${at}`, unit(num(z[row(r)][c]))], x: mx, y: my, index: c, row: row(r) };
    },
    zoom(a, b) {
      const at = (p) => from + ((Math.max(box.left, Math.min(box.left + inner, p)) - box.left) / inner) * (to - from);
      const next = [Math.floor(at(a)), Math.ceil(at(b))];
      if (next[1] - next[0] >= 2) [from, to] = next;
    },
    reset() {
      [from, to] = [0, x.length];
    },
    table: () => ({
      caption: options.label,
      head: ["", ...x.map(String)],
      rows: y.map((text, r) => [String(text), ...z[r].map((v) => String(num(v)))]),
    }),
  };
  if (options.contours) delete spec.zoom;
  if (options.pick) {
    spec.pick = (found) => options.pick(found.row);
    spec.help = "Arrow keys read the values, Enter chooses a row; the button Numbers shows them as a table.";
  }
  let figure = null;
  if (canLog && !options.contours) spec.tools.push(toggle("Log scale", log, (on) => { log = on; figure.draw(); }));
  figure = mountCanvas(host, spec);
  figure.update = (next) => {
    const whole = from === 0 && to === x.length;
    ({ x, y, z } = next);
    if (whole || to > x.length) [from, to] = [0, x.length];
    judge();
    figure.refresh();
  };
  return figure;
}
