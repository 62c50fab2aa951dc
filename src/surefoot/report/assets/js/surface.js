// The same altitudes as a landscape that can be turned.

import { extent, fmt, num } from "./dom.js";
import { colour, mountCanvas, viridis } from "./figure.js";

/** data: {x: [..], y: [..], z: [[..]]}; options: label, path: [[x index, y index], ..] */
export function drawSurface(host, data, options) {
  const { x, y, z } = data;
  const [low, high] = extent(z.flat().map(num));
  let yaw = 0.55;
  let pitch = 0.95;
  let dots = [];

  /** (a, b, h): along and across in −½..½, height 0..1 → [x, y, nearness] on the canvas. */
  const projection = (width, height) => {
    const size = Math.min(width * 0.64, height * 0.78);
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    return (a, b, h) => {
      const u = a * cy - b * sy;
      const v = a * sy + b * cy;
      const up = (h - 0.5) * 0.5;
      return [width / 2 + u * size, height / 2 + (v * cp - up * sp) * size, v * sp + up * cp];
    };
  };
  const rise = (c, r) => (num(z[r][c]) - low) / (high - low || 1);
  const paint = (g, width, height) => {
    const to = projection(width, height);
    const at = (c, r) => to(c / (x.length - 1) - 0.5, 0.5 - r / (y.length - 1), rise(c, r));
    ground(g, to);
    const grid = y.map((_, r) => x.map((_, c) => at(c, r)));
    const faces = [];
    for (let r = 0; r + 1 < y.length; r++) {
      for (let c = 0; c + 1 < x.length; c++) {
        const corners = [grid[r][c], grid[r][c + 1], grid[r + 1][c + 1], grid[r + 1][c]];
        const mean = (num(z[r][c]) + num(z[r][c + 1]) + num(z[r + 1][c + 1]) + num(z[r + 1][c])) / 4;
        faces.push([corners.reduce((sum, p) => sum + p[2], 0), corners, (mean - low) / (high - low || 1)]);
      }
    }
    faces.sort((a, b) => a[0] - b[0]);
    g.lineWidth = 0.6;
    g.lineJoin = "round";
    for (const [, corners, t] of faces) {
      if (!Number.isFinite(t)) continue;
      g.beginPath();
      corners.forEach(([px, py], i) => (i ? g.lineTo(px, py) : g.moveTo(px, py)));
      g.closePath();
      g.fillStyle = viridis(t);
      g.fill();
      g.strokeStyle = "rgba(255,255,255,0.3)";
      g.stroke();
    }
    const path = (options.path || []).map(([c, r]) => at(c, r));
    g.strokeStyle = colour("ink");
    g.lineWidth = 2;
    g.beginPath();
    path.forEach(([px, py], i) => (i ? g.lineTo(px, py) : g.moveTo(px, py)));
    g.stroke();
    [path[0], path[path.length - 1]].forEach((point, i) => {
      if (!point) return;
      g.beginPath();
      g.arc(point[0], point[1], 6, 0, 7);
      g.fillStyle = colour(i ? "after" : "before");
      g.fill();
      g.strokeStyle = "#fff";
      g.stroke();
    });
    dots = grid.flatMap((line, r) => line.map(([px, py, depth], c) => ({ px, py, depth, c, r })));
  };
  /** The frame below, with the names of its sides. */
  const ground = (g, to) => {
    const corners = [[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]].map(([a, b]) => to(a, b, -0.05));
    g.strokeStyle = colour("soft");
    g.lineWidth = 1;
    g.beginPath();
    corners.forEach(([px, py], i) => (i ? g.lineTo(px, py) : g.moveTo(px, py)));
    g.closePath();
    g.stroke();
    g.fillStyle = colour("soft");
    g.textAlign = "center";
    const side = Math.cos(yaw) > 0 ? 1 : -1;
    const other = Math.sin(yaw) < 0 ? -1 : 1;
    g.fillText(`along ${fmt(x[0], 3)} … ${fmt(x[x.length - 1], 3)}`, ...to(0, 0.64 * side, -0.05).slice(0, 2));
    g.fillText(`across ${fmt(y[0], 3)} … ${fmt(y[y.length - 1], 3)}`, ...to(0.68 * other, 0, -0.05).slice(0, 2));
  };
  return mountCanvas(host, {
    label: options.label,
    help: "Drag or use the arrow keys to turn it; the button Numbers shows the same as a table.",
    legend: options.legend || [],
    height: (width) => Math.round(Math.min(420, Math.max(260, width * 0.62))),
    paint,
    hit(mx, my) {
      const near = dots.filter((d) => Math.hypot(d.px - mx, d.py - my) < 14).sort((a, b) => b.depth - a.depth)[0];
      if (!near) return null;
      return { lines: [`along ${fmt(x[near.c], 3)}, across ${fmt(y[near.r], 3)}`, `loss ${fmt(z[near.r][near.c])}`], x: near.px, y: near.py };
    },
    drag(dx, dy) {
      yaw += dx * 0.01;
      pitch = Math.max(0.15, Math.min(1.5, pitch + dy * 0.006));
    },
    reset() {
      [yaw, pitch] = [0.55, 0.95];
    },
    keys(event) {
      const move = { ArrowLeft: [-0.12, 0], ArrowRight: [0.12, 0], ArrowUp: [0, 0.08], ArrowDown: [0, -0.08] }[event.key];
      if (!move) return false;
      yaw += move[0];
      pitch = Math.max(0.15, Math.min(1.5, pitch + move[1]));
      return true;
    },
    table: () => ({
      caption: options.label,
      head: ["across", ...x.map((v) => fmt(v, 3))],
      rows: y.map((v, r) => [fmt(v, 3), ...z[r].map((loss) => String(num(loss)))]),
    }),
  });
}
