// Vectors as strips of colour: blue below zero, orange above, deeper by the square root of the size. A pixel that holds several entries shows the largest.

import { extent, fmt } from "./dom.js";
import { FONT, STRONG, clipped, colour, diverging, mountCanvas, rgb, toggle } from "./figure.js";

/** Below this part of the largest entry of all rows, a row on the shared scale has no colour to speak of. */
const FAINT = 1e-3;

/**
 * data: {rows: [{label, strong, values: Float32Array, note}]}
 * options: label, shared (one scale for all rows; else each its own)
 */
export function drawStrips(host, data, options) {
  const { rows } = data;
  const tall = options.tall || 26;
  const gap = 8;
  const length = Math.max(...rows.map((row) => row.values.length));
  const size = rows.map((row) => Math.max(...extent(row.values).map(Math.abs)) || 1);
  const largest = Math.max(...size);
  let left = 80;
  let right = 0;
  let cells = 1;
  let whole = [0, length];
  let { shared } = options;
  let figure = null;

  /** The entry of the largest size among those that cell c shows. */
  const entry = (values, c) => {
    const [from, to] = whole;
    const a = from + Math.floor((c * (to - from)) / cells);
    const b = Math.max(a + 1, from + Math.floor(((c + 1) * (to - from)) / cells));
    let best = a;
    for (let i = a; i < b && i < values.length; i++) if (Math.abs(values[i]) > Math.abs(values[best])) best = i;
    return best;
  };
  const paint = (g, width, height) => {
    const ends = ["low", "zero", "high"].map((name) => rgb(colour(name)));
    g.font = STRONG;
    left = Math.ceil(10 + Math.min(width * 0.34, Math.max(...rows.map((row) => g.measureText(row.label).width))));
    right = width < 520 ? 2 : 104;
    const inner = Math.max(20, Math.floor(width - left - right));
    cells = Math.min(whole[1] - whole[0], inner);
    rows.forEach((row, r) => {
      const y = r * (tall + gap);
      g.font = row.strong ? STRONG : FONT;
      g.textAlign = "right";
      g.fillStyle = colour("ink");
      g.fillText(clipped(g, row.label, left - 8), left - 8, y + tall / 2);
      g.font = FONT;
      const unit = shared ? largest : size[r];
      for (let c = 0; c < cells; c++) {
        const a = left + Math.floor((c * inner) / cells);
        const b = left + Math.floor(((c + 1) * inner) / cells);
        g.fillStyle = diverging(row.values[entry(row.values, c)] / unit, ends);
        g.fillRect(a, y, b - a, tall);
      }
      if (shared && size[r] < largest * FAINT) {
        g.fillStyle = colour("soft");
        g.textAlign = "center";
        g.fillText(clipped(g, "Too faint on the shared scale", inner - 8), left + inner / 2, y + tall / 2);
      }
      g.strokeStyle = colour("line");
      g.strokeRect(left + 0.5, y + 0.5, inner - 1, tall - 1);
      if (right > 10 && row.note) {
        g.fillStyle = colour("soft");
        g.textAlign = "left";
        g.fillText(row.note, left + inner + 8, y + tall / 2);
      }
    });
    g.fillStyle = colour("soft");
    g.textAlign = "left";
    g.fillText(String(whole[0]), left, height - 7);
    g.textAlign = "right";
    g.fillText(`entry ${whole[1] - 1}`, left + inner, height - 7);
    spec.inner = inner;
  };
  const spec = {
    label: options.label,
    legend: [["low", "below zero"], ["high", "above zero"]],
    tools: options.shared ? [toggle("Each on its own scale", false, (on) => { shared = !on; figure.draw(); })] : [],
    inner: 1,
    height: () => rows.length * (tall + gap) + 18,
    paint,
    count: () => cells * rows.length,
    at: (i) => [left + ((i % cells) + 0.5) * (spec.inner / cells), Math.floor(i / cells) * (tall + gap) + tall / 2],
    hit(x, y) {
      const r = Math.floor(y / (tall + gap));
      const c = Math.floor(((x - left) / spec.inner) * cells);
      if (r < 0 || r >= rows.length || c < 0 || c >= cells) return null;
      const i = entry(rows[r].values, c);
      return { lines: [rows[r].label, `entry ${i}: ${fmt(rows[r].values[i])}`], x, y: r * (tall + gap) + tall / 2, index: i };
    },
    zoom(a, b) {
      const at = (x) => whole[0] + Math.round((Math.max(0, Math.min(spec.inner, x - left)) / spec.inner) * (whole[1] - whole[0]));
      if (at(b) - at(a) >= 4) whole = [at(a), at(b)];
    },
    reset() {
      whole = [0, length];
    },
    table: () => ({
      caption: options.label,
      head: ["entry", ...rows.map((row) => row.label)],
      rows: [...Array(length).keys()].map((i) => [String(i), ...rows.map((row) => String(row.values[i]))]),
    }),
  };
  figure = mountCanvas(host, spec);
  return figure;
}
