// Horizontal bars, one row an item, one bar a series: predictions, errors, layers.

import { extent, fmt, num, power, ticks } from "./dom.js";
import { FONT, STRONG, clipped, colour, mountCanvas, toggle } from "./figure.js";

/**
 * data: {items: [{label, strong, values: [..], colours: [..]?, note?}], series: [{name, colour}]}
 * options: label, unit (number → text), log, logarithmic (whether it can be), head
 */
export function drawBars(host, data, options) {
  const { items, series } = data;
  const unit = options.unit || fmt;
  const thick = series.length > 1 ? 9 : 15;
  const row = thick * series.length + (series.length > 1 ? 9 : 8);
  const top = 4;
  const bottom = 22;
  let log = Boolean(options.log);
  let scale = (x) => x;
  let left = 80;
  const all = items.flatMap((item) => item.values.map(num)).filter(Number.isFinite);
  const positive = all.filter((x) => x > 0);
  const canLog = options.logarithmic && positive.length > 0 && all.every((x) => x >= 0);

  const paint = (g, width, height) => {
    const [ink, soft, line] = ["ink", "soft", "line"].map(colour);
    g.font = STRONG;
    left = 10 + Math.min(width * 0.38, Math.max(...items.map((item) => g.measureText(item.label).width), 30));
    g.font = FONT;
    const told = series.length === 1 || width > 460;
    const room = (told ? Math.max(...all.map((x) => g.measureText(unit(x)).width), 20) : 4) + 10;
    let [low, high] = log && canLog ? extent(positive.map(Math.log10)) : extent([0, ...all]);
    if (log && canLog) [low, high] = [Math.floor(low - 0.2), high];
    if (!(high > low)) high = low + 1;
    const start = left + (low < 0 && !log ? room : 0);
    const end = width - room;
    const to = (t) => start + ((t - low) / (high - low)) * Math.max(10, end - start);
    scale = (x) => (log && canLog ? (x > 0 ? to(Math.log10(x)) : start) : to(x));
    g.textAlign = "center";
    const marks = log && canLog
      ? ticks(low, high, Math.min(8, (end - start) / 60)).filter(Number.isInteger).map((t) => 10 ** t)
      : ticks(low, high, Math.max(2, (end - start) / 110));
    for (const mark of marks) {
      const x = Math.round(scale(mark)) + 0.5;
      g.fillStyle = line;
      g.fillRect(x - 0.5, top, 1, height - top - bottom + 4);
      g.fillStyle = soft;
      g.fillText(log && canLog ? `10${power(Math.round(Math.log10(mark)))}` : unit(mark), x, height - 9);
    }
    const zero = log && canLog ? start : to(0);
    items.forEach((item, i) => {
      const y = top + i * row;
      g.textAlign = "right";
      g.font = item.strong ? STRONG : FONT;
      g.fillStyle = ink;
      g.fillText(clipped(g, item.label, left - 8), left - 8, y + row / 2);
      g.font = FONT;
      item.values.forEach((value, k) => {
        const x = num(value);
        if (!Number.isFinite(x)) return;
        const at = scale(x);
        const mid = y + 4 + k * (thick + 1);
        g.fillStyle = colour((item.colours && item.colours[k]) || series[k].colour);
        const [a, b] = x === 0 ? [zero, zero] : [Math.min(zero, at), Math.max(zero, at)];
        g.beginPath();
        g.roundRect(a, mid, Math.max(1, b - a), thick, 2);
        g.fill();
        if (told) {
          g.fillStyle = soft;
          g.textAlign = x < 0 ? "right" : "left";
          g.font = series.length > 1 ? FONT.replace("12px", "10px") : FONT;
          g.fillText(unit(x), x < 0 ? a - 5 : b + 5, mid + thick / 2 + 0.5);
          g.font = FONT;
        }
      });
    });
    g.fillStyle = soft;
    g.fillRect(Math.round(zero), top, 1, height - top - bottom + 4);
  };
  const middle = (i) => top + i * row + row / 2;
  const spec = {
    label: options.label,
    legend: options.legend || (series.length > 1 ? series.map((s) => [s.colour, s.name]) : []),
    tools: [...(options.tools || [])],
    height: () => top + items.length * row + bottom,
    paint,
    count: () => items.length,
    at: (i) => [scale(0) + 4, middle(i)],
    hit(x, y) {
      const i = Math.floor((y - top) / row);
      if (i < 0 || i >= items.length) return null;
      const item = items[i];
      const lines = [item.label, ...item.values.map((value, k) => `${series[k].name} ${unit(num(value))}`)];
      if (item.note) lines.push(item.note);
      return { lines, x: Math.max(x, left), y: middle(i), index: i };
    },
    table: () => ({
      caption: options.label,
      head: [options.head || "", ...series.map((s) => s.name)],
      rows: items.map((item) => [item.label, ...item.values.map((x) => String(num(x)))]),
    }),
  };
  let figure = null;
  if (canLog) spec.tools.unshift(toggle("Log scale", log, (on) => { log = on; figure.draw(); }));
  figure = mountCanvas(host, spec);
  return figure;
}
