// Curves, by uPlot: hover to read, drag to zoom, double click to see all, log scale.

import { el, fmt, num } from "./dom.js";
import { FONT, colour, frame, mixed, tell, toggle } from "./figure.js";

/**
 * data: {x: [..], series: [{name, colour, values, points, dash, wide, pale}]}
 * options: label, axis, unit, mark (x → text), log, logarithmic, height, low, high, tools,
 * zoomed(from, to): what is to be seen has changed; without numbers: all
 * The figure's update(data) takes other numbers, and keeps what is zoomed to and switched off.
 */
export function drawLines(host, data, options) {
  const unit = options.unit || fmt;
  const mark = options.mark || ((v) => fmt(v));
  let { x, series } = data;
  let log = Boolean(options.log);
  let plot = null;
  let zoom = null;
  const off = new Set();
  const values = () => series.map((s) => s.values.map((v) => {
    const value = num(v);
    return Number.isFinite(value) && !(log && value <= 0) ? value : null;
  }));
  const figure = frame(host, {
    label: options.label,
    tools: [...(options.tools || []), ...(options.logarithmic === false ? [] : [toggle("Log scale", log, (pressed) => { log = pressed; build(); })])],
    table: () => ({
      caption: options.label,
      head: [options.axis, ...series.map((s) => s.name)],
      rows: x.map((at, i) => [String(at), ...series.map((s) => String(num(s.values[i])))]),
    }),
  });
  const legend = el("div", { class: "legend" });
  figure.box.before(legend);
  const explain = () => {
    legend.hidden = series.length < 2;
    legend.replaceChildren(...series.map((s, k) => {
      const swatch = el("i", { class: `swatch ${s.points === "only" ? "dot" : s.dash ? "dashed" : "line"}`, "aria-hidden": "true" });
      swatch.style.setProperty("--swatch", `var(--${s.colour})`);
      if (s.pale) swatch.style.opacity = "0.45";
      const button = el("button", { type: "button", "aria-pressed": String(!off.has(s.name)) }, swatch, s.name);
      button.addEventListener("click", () => {
        if (!off.delete(s.name)) off.add(s.name);
        button.setAttribute("aria-pressed", String(!off.has(s.name)));
        plot.setSeries(k + 1, { show: !off.has(s.name) });
      });
      return button;
    }));
  };
  explain();

  const read = (u) => {
    const i = u.cursor.idx;
    if (i === null || i === undefined || u.cursor.left < 0) return tell(figure, null);
    const lines = series.map((s) => [s, num(s.values[i])]).filter(([s, v]) => !off.has(s.name) && Number.isFinite(v));
    if (!lines.length) return tell(figure, null);
    const text = [`${options.axis} ${mark(x[i])}`, ...lines.map(([s, v]) => `${s.name} ${unit(v)}`)];
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
  /** Called for every change of a scale: only one of x, to less than there is, is a zoom. */
  const scaled = (u, key) => {
    if (key !== "x" || !x.length) return;
    const { min, max } = u.scales.x;
    const whole = min === null || (min <= x[0] && max >= x[x.length - 1]);
    const next = whole ? null : [min, max];
    if (String(next) === String(zoom)) return;
    zoom = next;
    if (options.zoomed) options.zoomed(...(zoom || []));
  };
  function build() {
    if (plot) plot.destroy();
    zoom = null;
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
        axis({ values: (u, marks) => marks.map(mark), label: options.axis, labelSize: 20, labelFont: FONT, size: 30 }),
        axis({ values: (u, marks) => marks.map((v) => (v === null ? "" : unit(v))), size: 66, grid: { stroke: () => colour("line"), width: 1, filter: decades } }),
      ],
      series: [{}, ...series.map((s) => ({
        label: s.name,
        show: !off.has(s.name),
        stroke: () => (s.pale ? mixed(colour(s.colour), 0.35) : colour(s.colour)),
        fill: undefined,
        width: s.wide || 1.75,
        dash: s.dash,
        spanGaps: true,
        paths: s.points === "only" ? () => null : undefined,
        points: s.points ? { show: true, size: s.points === "only" ? 9 : 5, fill: () => colour(s.colour), stroke: () => colour(s.points === "only" ? "panel" : s.colour) } : { show: false },
      }))],
      hooks: { setCursor: [read], setScale: [scaled] },
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
  let fresh = true;
  figure.draw = () => {
    if (!figure.box.clientWidth) return;
    if (!plot) build();
    else if (!fresh) {
      plot.setData([x, ...values()], !zoom);
      if (zoom) plot.setScale("x", { min: zoom[0], max: zoom[1] });
    }
    fresh = true;
    if (figure.drawn !== figure.box.clientWidth) {
      plot.setSize({ width: figure.box.clientWidth, height: height() });
      figure.drawn = figure.box.clientWidth;
    } else plot.redraw(false);
  };
  figure.update = (next) => {
    const same = next.series.length === series.length && next.series.every((s, k) => s.name === series[k].name);
    ({ x, series } = next);
    if (!same) {
      explain();
      if (plot) plot.destroy();
      [plot, zoom] = [null, null];
    }
    fresh = false;
    figure.refresh();
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

/** The mean over `span` units of x around each of {x, y, n}, each weighted by how many values it stands for. */
export function smoothed({ x, y, n }, span) {
  const weight = [0];
  const total = [0];
  y.forEach((value, i) => {
    const fine = Number.isFinite(num(value));
    weight.push(weight[i] + (fine ? n[i] : 0));
    total.push(total[i] + (fine ? n[i] * num(value) : 0));
  });
  let [a, b] = [0, 0];
  return x.map((at) => {
    while (x[a] < at - span / 2) a += 1;
    while (b < x.length && x[b] <= at + span / 2) b += 1;
    return weight[b] > weight[a] ? (total[b] - total[a]) / (weight[b] - weight[a]) : null;
  });
}
