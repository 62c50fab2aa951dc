// Points over an option: numbers along a scale (by powers of ten where they span them), anything else side by side.

import { extent, fmt, ticks } from "../draw/js/dom.js";
import { FONT, clipped, colour, mountCanvas } from "../draw/js/figure.js";

/** points: [{name, x: text, y, colour}]; options: label, axis */
export function drawScatter(host, points, options) {
  const numeric = points.every((point) => point.x !== "" && Number.isFinite(Number(point.x)));
  const values = numeric ? points.map((point) => Number(point.x)) : [];
  const [least, most] = extent(values);
  const log = numeric && least > 0 && most >= 10 * least;
  const kinds = [...new Set(points.map((point) => point.x))].sort();
  const along = (point) => (numeric ? (log ? Math.log10(Number(point.x)) : Number(point.x)) : kinds.indexOf(point.x));
  const [low, high] = extent(points.map(along));
  const [bottom, top] = extent(points.map((point) => point.y));
  const box = { left: 60, right: 20, top: 12, bottom: 40 };
  let placed = [];
  const paint = (g, width, height) => {
    const span = high - low || 1;
    const rise = top - bottom || Math.abs(top) || 1;
    const x = (v) => box.left + 24 + ((v - low) / span) * (width - box.left - box.right - 48);
    const y = (v) => height - box.bottom - 10 - ((v - bottom) / rise) * (height - box.top - box.bottom - 20);
    g.font = FONT;
    g.textAlign = "right";
    for (const mark of ticks(bottom, top, 4)) {
      g.fillStyle = colour("line");
      g.fillRect(box.left, Math.round(y(mark)), width - box.left - box.right, 1);
      g.fillStyle = colour("soft");
      g.fillText(fmt(mark, 3), box.left - 8, y(mark));
    }
    g.textAlign = "center";
    g.fillStyle = colour("soft");
    const room = (width - box.left - box.right) / Math.max(1, numeric ? 4 : kinds.length);
    const marks = numeric ? [...new Set(points.map(along))].sort((a, b) => a - b) : kinds.map((_, i) => i);
    let free = -Infinity;
    for (const mark of marks) {
      const text = clipped(g, numeric ? fmt(log ? 10 ** mark : mark, 3) : kinds[mark], Math.max(40, room - 8));
      const half = g.measureText(text).width / 2 + 4;
      if (x(mark) - half < free) continue;
      g.fillText(text, x(mark), height - box.bottom + 12);
      free = x(mark) + half;
    }
    g.fillText(clipped(g, options.axis, width - 80), width / 2, height - 8);
    placed = points.map((point) => ({ point, px: x(along(point)), py: y(point.y) }));
    for (const { point, px, py } of placed) {
      g.beginPath();
      g.arc(px, py, 5.5, 0, 7);
      g.fillStyle = colour(point.colour);
      g.fill();
      g.strokeStyle = colour("panel");
      g.stroke();
    }
  };
  return mountCanvas(host, {
    label: options.label,
    height: () => 220,
    paint,
    count: () => placed.length,
    at: (i) => [placed[i].px, placed[i].py],
    hit(mx, my) {
      const near = placed.map((one) => ({ ...one, away: Math.hypot(one.px - mx, one.py - my) })).sort((a, b) => a.away - b.away)[0];
      if (!near || near.away > 18) return null;
      return { lines: [near.point.name, `${options.axis} ${near.point.x}`, `loss ${fmt(near.point.y)}`], x: near.px, y: near.py };
    },
    table: () => ({ caption: options.label, head: ["run", options.axis, "loss"], rows: points.map((point) => [point.name, point.x, String(point.y)]) }),
  });
}
