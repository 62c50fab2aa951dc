// Curves, by uPlot: hover to read, drag to zoom, double click to see all, log scale.

import { el, fmt, num } from "./dom.js";
import { FONT, colour, frame, mixed, tell, toggle } from "./figure.js";

/**
 * data: {x: [..], series: [{name, colour, values, points, dash, wide, pale}]}
 * options: label, axis, unit, log, logarithmic, height, low, high
 */
export function drawLines(host, data, options) {
  const unit = options.unit || fmt;
  const { x, series } = data;
  let log = Boolean(options.log);
  let plot = null;
  const on = series.map(() => true);
  const values = () => series.map((s) => s.values.map((v) => {
    const value = num(v);
    return Number.isFinite(value) && !(log && value <= 0) ? value : null;
  }));
  const figure = frame(host, {
    label: options.label,
    tools: options.logarithmic === false ? [] : [toggle("Log scale", log, (pressed) => { log = pressed; build(); })],
    table: () => ({
      caption: options.label,
      head: [options.axis, ...series.map((s) => s.name)],
      rows: x.map((at, i) => [String(at), ...series.map((s) => String(num(s.values[i])))]),
    }),
  });
  const legend = el("div", { class: "legend" }, series.map((s, k) => {
    const swatch = el("i", { class: `swatch ${s.points === "only" ? "dot" : s.dash ? "dashed" : "line"}`, "aria-hidden": "true" });
    swatch.style.setProperty("--swatch", `var(--${s.colour})`);
    if (s.pale) swatch.style.opacity = "0.45";
    if (series.length === 1) return null;
    const button = el("button", { type: "button", "aria-pressed": "true" }, swatch, s.name);
    button.addEventListener("click", () => {
      on[k] = !on[k];
      button.setAttribute("aria-pressed", String(on[k]));
      plot.setSeries(k + 1, { show: on[k] });
    });
    return button;
  }));
  if (series.length > 1) figure.box.before(legend);

  const read = (u) => {
    const i = u.cursor.idx;
    if (i === null || i === undefined || u.cursor.left < 0) return tell(figure, null);
    const lines = series.map((s, k) => [s, num(s.values[i]), k]).filter(([, v, k]) => on[k] && Number.isFinite(v));
    if (!lines.length) return tell(figure, null);
    const text = [`${options.axis} ${fmt(x[i])}`, ...lines.map(([s, v]) => `${s.name} ${unit(v)}`)];
    figure.said = text.join(", ");
    return tell(figure, text, u.bbox.left / devicePixelRatio + u.cursor.left, Math.max(30, u.cursor.top));
  };
  const axis = (extra) => ({
    stroke: () => colour("soft"),
    font: FONT,
    grid: { stroke: () => colour("line"), width: 1 },
    ticks: { show: false },
    ...extra,
  });
  const decades = (u, marks) => marks.map((v) => (!log || marks.length < 8 || Number.isInteger(Math.round(Math.log10(v) * 1e6) / 1e6) ? v : null));
  const height = () => (figure.box.clientWidth < 480 ? 200 : options.height || 240);
  function build() {
    if (plot) plot.destroy();
    plot = new uPlot({
      width: Math.max(120, figure.box.clientWidth),
      height: height(),
      legend: { show: false },
      cursor: { points: { size: 8 }, drag: { x: true, y: false }, y: false },
      scales: {
        x: { time: false },
        y: { distr: log ? 3 : 1, range: log || options.low === undefined ? undefined : [options.low, options.high] },
      },
      axes: [
        axis({ values: (u, marks) => marks.map((v) => fmt(v)), label: options.axis, labelSize: 20, labelFont: FONT, size: 30 }),
        axis({ values: (u, marks) => marks.map((v) => (v === null ? "" : unit(v))), size: 66, grid: { stroke: () => colour("line"), width: 1, filter: decades } }),
      ],
      series: [{}, ...series.map((s, k) => ({
        label: s.name,
        show: on[k],
        stroke: () => (s.pale ? mixed(colour(s.colour), 0.35) : colour(s.colour)),
        fill: undefined,
        width: s.wide || 1.75,
        dash: s.dash,
        spanGaps: true,
        paths: s.points === "only" ? () => null : undefined,
        points: s.points ? { show: true, size: s.points === "only" ? 9 : 5, fill: () => colour(s.colour), stroke: () => colour(s.points === "only" ? "panel" : s.colour) } : { show: false },
      }))],
      hooks: { setCursor: [read] },
    }, [x, ...values()], figure.box);
    const canvas = plot.root.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${options.label}. The button Numbers shows the same as a table.`);
    plot.root.setAttribute("tabindex", "0");
    plot.root.setAttribute("role", "group");
    plot.root.setAttribute("aria-label", `${options.label}. Left and right arrow keys read the values.`);
    plot.root.addEventListener("mouseleave", () => tell(figure, null));
    plot.root.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
      if (!move) return;
      event.preventDefault();
      const now = plot.cursor.idx ?? -1;
      const i = Math.max(0, Math.min(x.length - 1, now + move));
      plot.setCursor({ left: plot.valToPos(x[i], "x"), top: 40 });
      figure.live.textContent = figure.said || "";
    });
    figure.plot = plot;
    figure.drawn = figure.box.clientWidth;
  }
  figure.draw = () => {
    if (!figure.box.clientWidth) return;
    if (!plot) build();
    if (figure.drawn !== figure.box.clientWidth) {
      plot.setSize({ width: figure.box.clientWidth, height: height() });
      figure.drawn = figure.box.clientWidth;
    } else plot.redraw(false);
  };
  figure.draw();
  return figure;
}

/** Several curves with their own x put on one x: {x, series}. */
export function aligned(curves) {
  const x = [...new Set(curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
  const place = new Map(x.map((value, i) => [value, i]));
  const series = curves.map((curve) => {
    const values = new Array(x.length).fill(null);
    curve.x.forEach((value, i) => { values[place.get(value)] = curve.values[i]; });
    return { ...curve, values };
  });
  return { x, series };
}
