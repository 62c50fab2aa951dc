// Histograms over shared edges, laid over each other; counts may be negative (a difference).

import { extent, fmt, ticks } from "./dom.js";
import { clipped, colour, mixed, mountCanvas, toggle } from "./figure.js";

/**
 * data: {edges: [..], series: [{name, colour, counts}]}
 * options: label, axis (what x is), tick (number → text of the x axis), log, stepped
 */
export function drawHistogram(host, data, options) {
  const { edges, series } = data;
  const bins = edges.length - 1;
  const tick = options.tick || fmt;
  const box = { left: 64, right: 14, top: 8, bottom: 38 };
  const whole = [edges[0], edges[bins]];
  const below = series.some((s) => s.counts.some((c) => c < 0));
  let [from, to] = whole;
  let log = Boolean(options.log) && !below;
  let inner = 1;
  const high = (value) => (log ? Math.log10(1 + value) : value);
  const x = (value) => box.left + ((value - from) / (to - from)) * inner;
  const seen = () => [...Array(bins).keys()].filter((i) => edges[i + 1] > from && edges[i] < to);

  const paint = (g, width, height) => {
    inner = Math.max(10, width - box.left - box.right);
    const tall = height - box.top - box.bottom;
    const [soft, line, ink] = ["soft", "line", "ink"].map(colour);
    const counts = seen().flatMap((i) => series.map((s) => s.counts[i]));
    let [low, top] = extent([0, ...counts]);
    if (top === low) top = low + 1;
    const y = (value) => box.top + tall * (1 - (high(value) - high(low)) / (high(top) - high(low)));
    const marks = log
      ? [...Array(16).keys()].map((k) => 10 ** k).filter((v) => v <= top * 1.01)
      : ticks(low, top, 4);
    g.textAlign = "right";
    for (const mark of marks.filter((_, i) => marks.length < 7 || i % 2 === 0)) {
      g.fillStyle = line;
      g.fillRect(box.left, Math.round(y(mark)), inner, 1);
      g.fillStyle = soft;
      g.fillText(short(mark), box.left - 8, y(mark));
    }
    g.textAlign = "center";
    for (const mark of ticks(from, to, Math.max(2, inner / 90))) {
      g.fillStyle = soft;
      g.fillText(tick(mark), x(mark), height - box.bottom + 14);
    }
    g.fillText(clipped(g, options.axis || "", inner), box.left + inner / 2, height - 8);
    g.save();
    g.beginPath();
    g.rect(box.left, box.top - 4, inner, tall + 8);
    g.clip();
    for (const [k, s] of series.entries()) {
      const hue = colour(s.colour);
      const outline = new Path2D();
      const area = new Path2D();
      seen().forEach((i, n) => {
        const [a, b] = [x(edges[i]), x(edges[i + 1])];
        const at = y(s.counts[i]);
        area.rect(a, Math.min(at, y(0)), b - a, Math.abs(at - y(0)));
        if (n === 0) outline.moveTo(a, y(0));
        outline.lineTo(a, at);
        outline.lineTo(b, at);
      });
      g.fillStyle = mixed(hue, 0.28);
      g.fill(area);
      g.strokeStyle = hue;
      g.lineWidth = k === 0 && series.length > 1 ? 2.5 : 1.5;
      g.setLineDash(k > 0 ? [5, 3] : []);
      g.stroke(outline);
    }
    g.restore();
    g.fillStyle = ink;
    g.fillRect(box.left, Math.round(y(0)), inner, 1);
  };
  const between = (i) => `${tick(edges[i])} … ${tick(edges[i + 1])}`;
  const spec = {
    label: options.label,
    legend: series.length > 1 ? series.map((s, k) => [s.colour, s.name, k ? "dashed" : ""]) : [],
    tools: [],
    height: (width) => (width < 480 ? 210 : 250),
    paint,
    count: () => seen().length,
    at: (k) => [(x(edges[seen()[k]]) + x(edges[seen()[k] + 1])) / 2, 60],
    hit(px, py) {
      const value = from + ((px - box.left) / inner) * (to - from);
      const i = edges.findIndex((edge, n) => n < bins && edge <= value && value < edges[n + 1]);
      if (i < 0) return null;
      return { lines: [between(i), ...series.map((s) => `${s.name} ${fmt(s.counts[i])}`)], x: px, y: py, index: i };
    },
    zoom(a, b) {
      const at = (px) => from + ((Math.max(box.left, Math.min(box.left + inner, px)) - box.left) / inner) * (to - from);
      const next = [at(a), at(b)];
      if (next[1] - next[0] > (whole[1] - whole[0]) / bins / 2) [from, to] = next;
    },
    reset() {
      [from, to] = whole;
    },
    table: () => ({
      caption: options.label,
      head: ["from", "to", ...series.map((s) => s.name)],
      rows: [...Array(bins).keys()].map((i) => [String(edges[i]), String(edges[i + 1]), ...series.map((s) => String(s.counts[i]))]),
    }),
  };
  let figure = null;
  if (!below) spec.tools.push(toggle("Log counts", log, (on) => { log = on; figure.draw(); }));
  figure = mountCanvas(host, spec);
  return figure;
}

/** A count for an axis: 12 k, 3.4 M. */
function short(value) {
  const size = Math.abs(value);
  const [unit, name] = size >= 1e9 ? [1e9, " G"] : size >= 1e6 ? [1e6, " M"] : size >= 1e3 ? [1e3, " k"] : [1, ""];
  return fmt(value / unit, 3) + name;
}
