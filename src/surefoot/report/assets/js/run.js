// A run: its state, curves, watched prompts, layers, worst rows, ledger, settings, events. What it draws can be drawn
// again when the run has gone on: every part returns what brings it up to date, or nothing.

import { capital, el, fmt, num, pct } from "./dom.js";
import { drawHeatmap } from "./heatmap.js";
import { aligned, drawLines, smoothed } from "./lines.js";
import { arrow, note, panel, tiles, whenever } from "./parts.js";
import { drawEvents, drawLedger, drawSettings, drawWorst } from "./record.js";

const HUES = ["before", "after", "target", "purple", "sky", "other"];
const SMOOTHED = 200;

/**
 * run: {name, steps, first, last, curves, means, evals, watches, samples, heat, events, config, problems, worst, slides}
 * ask: what more there is to a run that is served: {window, layer, row}
 * slides(host): draws the slides in their place.
 * Returns update(): draw what has changed in `run`.
 */
export function drawRun(host, run, ask = {}, slides = () => {}) {
  const parts = [drawTop, drawCurves, drawWatches, drawGradient, drawLayers, drawPace, drawWorst, drawLedger,
    (place) => slides(place), drawSettings, drawEvents];
  const updates = parts.map((draw) => {
    const place = el("div", { class: "part" });
    host.append(place);
    return draw(place, run, ask);
  });
  return () => updates.forEach((update) => update && update());
}

function drawTop(host, run) {
  const top = el("section", { class: "headline", id: "run", "aria-label": "Run" });
  host.append(top);
  const fill = () => {
    const name = (run.config.model || {}).name;
    const alerts = run.events.filter((e) => e.type === "alert");
    top.replaceChildren(el("p", { class: "eyebrow" }, `Run${name ? ` · ${name}` : ""}`), el("h1", {}, run.name));
    if (run.state) top.append(standing(run.state));
    const ends = run.events.filter((e) => e.type === "end");
    const total = run.config.total_steps;
    tiles(top, [
      ["steps", `${fmt(run.last.step ?? 0)}${total ? ` of ${fmt(total)}` : ""}`, run.state ? pace(run.state) : ends.length ? ends[ends.length - 1].text : "no end recorded: still training, or stopped"],
      run.last.loss !== undefined && ["training loss", arrow(run.first.loss, run.last.loss, (x) => fmt(x)), "first and last step"],
      run.evals.length > 0 && evalTile(run.evals[0]),
      ["slides", fmt(run.slides.length)],
      ["alerts", fmt(alerts.length)],
    ]);
    if (alerts.length) {
      top.append(el("div", { class: "callout alert" }, el("strong", {}, "Alerts"),
        el("ul", {}, alerts.slice(-8).map((e) => el("li", {}, `Step ${fmt(e.step)}: ${capital(e.text)}`)))));
    }
    if (run.problems.length) {
      top.append(el("div", { class: "callout" }, el("strong", {}, "What could not be read"),
        el("ul", {}, run.problems.map((text) => el("li", {}, text)))));
    }
  };
  fill();
  return fill;
}

/** Where a run stands, with a bar. */
export function standing(state) {
  const share = state.total_steps ? Math.min(1, state.step / state.total_steps) : state.live ? 0 : 1;
  const bar = el("div", { class: "progress", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.round(share * 100)), "aria-label": "Steps done" }, el("i"));
  bar.style.setProperty("--share", String(share));
  return el("div", { class: "standing", "data-state": state.name },
    el("span", { class: "badge", "data-state": state.name }, capital(state.name)), bar,
    el("span", { class: "remark" }, state.seconds_left ? `${duration(state.seconds_left)} left` : state.live || `${capital(state.name)}.` === state.says ? "" : state.says));
}

function pace(state) {
  if (!state.live) return state.name;
  return state.seconds_per_step ? `${fmt(state.seconds_per_step, 3)} s a step` : "no step yet";
}

/** Seconds in words: 3 d 4 h, 2 h 5 min, 4 min, 12 s. */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const [days, hours, minutes] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes >= 2 ? `${minutes} min` : `${s} s`;
}

function evalTile(series) {
  const [key, values] = Object.entries(series.metrics).find(([k]) => k.endsWith("_loss")) || Object.entries(series.metrics)[0] || [];
  return values && [key.replaceAll("_", " "), arrow(values[0], values[values.length - 1], (x) => fmt(x)), "first and last evaluation"];
}

/** Lines that follow columns of the run; a stretch that is zoomed into is asked for in full where it was thinned. */
function plotted(host, run, ask, names, make, options) {
  let near = null;
  const curves = () => make(near || run);
  const zoomed = async (low, high) => {
    near = null;
    if (low !== undefined && ask.window && run.steps > run.curves[names[0]].x.length) {
      const found = await ask.window(names, low, high);
      near = { ...run, curves: { ...run.curves }, means: { ...run.means } };
      for (const name of names) if (found.curves[name]) near.curves[name] = spliced(run.curves[name], found.curves[name]);
      for (const name of Object.keys(found.means)) near.means[name] = spliced(run.means[name], found.means[name]);
    }
    figure.update(aligned(curves()));
  };
  const figure = drawLines(host, aligned(curves()), { axis: "step", ...options, zoomed });
  return Object.assign(figure, { again: () => { near = null; figure.update(aligned(curves())); } });
}

/** A column with a stretch of it replaced by a finer one. */
function spliced(whole, fine) {
  const [from, to] = [fine.x[0], fine.x[fine.x.length - 1]];
  const keep = (test) => whole.x.map((x, i) => i).filter((i) => test(whole.x[i]));
  const [before, after] = [keep((x) => x < from), keep((x) => x > to)];
  return Object.fromEntries(Object.keys(whole).map((key) => [key, [...before.map((i) => whole[key][i]), ...fine[key], ...after.map((i) => whole[key][i])]]));
}

/** A choice of how many steps a mean is taken over; `spans()` gives those that this run is long enough for. */
export function smoothing(steps, changed) {
  const usual = () => (steps() >= SMOOTHED ? 2 * Math.max(2, Math.floor(steps() / 200)) + 1 : 0);
  let chosen = "auto";
  const select = el("select", { class: "smoothing", "aria-label": "Smoothing: the mean over how many steps", onchange: () => { chosen = select.value; changed(); } },
    [["auto", "Smoothing: auto"], ["0", "Not smoothed"], ...[5, 20, 100, 500, 2000].map((n) => [String(n), `Mean of ${fmt(n)} steps`])].map(([value, text]) => el("option", { value }, text)));
  return { select, span: () => (chosen === "auto" ? usual() : Number(chosen)) };
}

function drawCurves(host, run, ask) {
  const key = () => (run.curves.loss ? String(run.evals.length) : null);
  return whenever(host, key, () => {
    const heldOut = run.evals.length ? ", and on held-out rows it never learns from" : "";
    const body = panel(host, "curves", "Loss", `Mean −log p of the tokens the model should have said: on the rows of each step just before it learned from them${heldOut}.`);
    const smooth = smoothing(() => run.steps, () => loss.again());
    const loss = plotted(body, run, ask, ["loss"], (from) => lossCurves(run, from, smooth.span()), { label: "Loss by step, nats a token", height: 300, tools: [smooth.select] });
    if (run.open) {
      loss.box.addEventListener("click", () => {
        const { plot } = loss;
        if (!run.slides.length || !plot) return;
        const away = (step) => Math.abs(plot.valToPos(step, "x") - plot.cursor.left);
        const near = run.slides.reduce((best, one) => (away(one.step) < away(best.step) ? one : best));
        if (away(near.step) < 8) run.open(near.step);
      });
    }
    const remarks = el("div");
    body.append(remarks);
    const remark = () => {
      remarks.replaceChildren();
      if (run.open && run.slides.length) note(remarks, "A click on the dot of an opened step shows its slide below.");
      if (run.steps > run.curves.loss.x.length) note(remarks, `${fmt(run.curves.loss.x.length)} of ${fmt(run.steps)} steps are drawn: of every stretch those of the lowest and the highest loss${ask.window ? "; zoom in to see all" : ""}.`);
    };
    remark();
    const shares = shareCurves(run);
    const second = shares.length > 0 && drawLines(body, aligned(shares), { label: shareLabel(run), axis: "step", unit: pct, logarithmic: false });
    return () => {
      loss.again();
      if (second) second.update(aligned(shareCurves(run)));
      remark();
    };
  });
}

function lossCurves(run, from, span) {
  const { loss } = from.curves;
  const curves = [{ name: "training", colour: "before", x: loss.x, values: loss.y, wide: span ? 1 : 1.5, pale: span > 0 }];
  if (span) curves.push({ name: `mean of ${fmt(span)} steps`, colour: "before", x: from.means.loss.x, values: smoothed(from.means.loss, span), wide: 2.25 });
  let held = 0;
  for (const series of run.evals) {
    for (const [key, values] of Object.entries(series.metrics)) {
      if (key.endsWith("_loss")) curves.push({ name: key.slice(0, -"_loss".length).replaceAll("_", " "), colour: HUES[1 + (held++ % 3)], x: series.step, values, points: true, wide: 2.25 });
    }
  }
  for (const [type, hue, name] of [["slide", "target", "opened: a slide"], ["alert", "other", "alert"]]) {
    const marked = new Map(run.events.filter((e) => e.type === type && Number.isFinite(num(e.loss))).map((e) => [e.step, e.loss]));
    if (marked.size) curves.push({ name, colour: hue, x: [...marked.keys()], values: [...marked.values()], points: "only" });
  }
  return curves;
}

function shareCurves(run) {
  const others = run.evals.flatMap((s) => Object.entries(s.metrics).filter(([key]) => !key.endsWith("_loss")).map(([key, values]) => ({ name: key.replaceAll("_", " "), x: s.step, values, points: true })));
  const shares = others.filter((c) => c.values.every((v) => !(num(v) > 1.0001)));
  const own = run.curves.token_accuracy;
  if (own) shares.unshift({ name: "training token accuracy", x: own.x, values: own.y });
  const tokens = shares.every((c) => c.name.endsWith("token accuracy"));
  return hued(tokens ? shares.map((c) => ({ ...c, name: c.name.replace(" token accuracy", "") })) : shares);
}

function shareLabel(run) {
  const names = [...(run.curves.token_accuracy ? ["token_accuracy"] : []), ...run.evals.flatMap((s) => Object.keys(s.metrics).filter((key) => !key.endsWith("_loss")))];
  if (names.every((name) => name.endsWith("token_accuracy") || name.endsWith("perplexity"))) return "Token accuracy: how often the likeliest token was the right one";
  return names.length === 1 ? capital(names[0].replaceAll("_", " ")) : "Accuracy and other shares";
}

function hued(curves) {
  return curves.map((curve, i) => ({ ...curve, colour: HUES[i % HUES.length] }));
}

function drawWatches(host, run) {
  const key = () => (run.watches.length + run.samples.length ? run.watches.map((w) => w.prompt).join("\n") + Boolean(run.samples.length) : null);
  return whenever(host, key, () => {
    const body = panel(host, "watched", "Watched prompts", "How likely the model finds each answer, as training goes on: the right one should rise, the others fall. Beside it, what it answered to held-out prompts.");
    const grid = el("div", { class: run.watches.length && run.samples.length ? "beside" : "" });
    const [left, right] = [el("div"), el("div", { class: "samples" })];
    grid.append(...(run.watches.length ? [left] : []), ...(run.samples.length ? [right] : []));
    body.append(grid);
    const curves = (watch) => ({ x: watch.step, series: hued(Object.entries(watch.p).map(([name, values]) => ({ name, values, points: true }))) });
    const figures = run.watches.map((watch) => drawLines(left, curves(watch), { label: watch.prompt, axis: "step", unit: pct, height: 280 }));
    const fill = run.samples.length ? answers(right, run) : () => {};
    return () => {
      run.watches.forEach((watch, i) => figures[i] && figures[i].update(curves(watch)));
      fill();
    };
  });
}

/** What was answered, at a step that can be chosen; the last one at first. */
function answers(host, run) {
  let chosen = null;
  const select = el("select", { "aria-label": "Answers at which step", onchange: () => { chosen = select.value === "last" ? null : Number(select.value); fill(); } });
  const list = el("div", { class: "answers" });
  host.append(el("div", { class: "bar" }, el("h3", {}, "Generated samples"), select), list);
  const fill = () => {
    const steps = [...new Set(run.samples.map((s) => s.step))];
    const step = chosen ?? steps[steps.length - 1];
    select.replaceChildren(el("option", { value: "last" }, `Latest: step ${fmt(steps[steps.length - 1])}`), ...steps.slice(0, -1).reverse().map((s) => el("option", { value: String(s) }, `Step ${fmt(s)}`)));
    select.value = chosen === null ? "last" : String(chosen);
    list.replaceChildren(...run.samples.filter((s) => s.step === step).map((s) => el("article", { class: "answer", "data-right": String(s.answer === s.want) },
      el("p", { class: "asked" }, s.prompt || s.where),
      el("p", { class: "said" }, el("span", { class: "mark", "aria-label": s.answer === s.want ? "right:" : "not as wanted:" }, s.answer === s.want ? "✓" : "✗"), s.answer || "(nothing)"),
      s.answer !== s.want && el("p", { class: "wanted" }, `Wanted: ${s.want}`))));
  };
  fill();
  return fill;
}

/** Figures in a grid, one a column of the run. */
function small(host, run, ask, columns) {
  const known = columns.filter(([name]) => run.curves[name]);
  const grid = el("div", { class: "pair" });
  host.append(grid);
  const figures = known.map(([name, label, hue, options]) => plotted(grid, run, ask, [name],
    (from) => [{ name: label, colour: hue, x: from.curves[name].x, values: from.curves[name].y }], { label, height: 190, ...options }));
  return () => figures.forEach((figure) => figure.again());
}

function known(run, names) {
  const found = names.filter((name) => run.curves[name]);
  return found.length ? found.join() : null;
}

function drawGradient(host, run, ask) {
  const columns = [
    ["grad_norm", "Gradient norm, before clipping", "before", { log: true }],
    ["clip_factor", "Clip factor: 1 is not clipped", "after", { logarithmic: false }],
  ];
  return whenever(host, () => known(run, columns.map(([name]) => name)), () =>
    small(panel(host, "gradient", "Gradient", "How large each gradient was, and how much of it was kept."), run, ask, columns));
}

const bytes = (x) => (num(x) >= 1e9 ? `${fmt(x / 1e9, 3)} GB` : `${fmt(x / 1e6, 3)} MB`);

function drawPace(host, run, ask) {
  const columns = [
    ["learning_rate", "Learning rate", "target", { logarithmic: false }],
    ["tokens_per_second", "Tokens per second", "purple", { logarithmic: false }],
    ["memory_bytes", "Memory held at most so far", "after", { logarithmic: false, unit: bytes }],
    ["mfu", "Share of the GPUs' peak that is used", "before", { logarithmic: false, unit: pct }],
    ["entropy", "Entropy of predictions, nats", "sky"],
    ["supervised", "Supervised tokens of each step", "other", { logarithmic: false }],
  ];
  return whenever(host, () => known(run, columns.map(([name]) => name)), () =>
    small(panel(host, "training", "The step", "How far the optimizer was told to go, how fast it went, and what it took."), run, ask, columns));
}

function drawLayers(host, run, ask) {
  const maps = [["grad_norm", "Gradient norm, layer × step"], ["update_ratio", "‖Δ‖ / ‖θ‖, layer × step"], ["lost_share", "Share of updates lost to bf16 rounding, layer × step", pct]];
  return whenever(host, () => (run.heat ? run.heat.layers.join("\n") : null), () => {
    const body = panel(host, "layers", "Layers over time", `Where in the model the gradient was large, and how far each layer moved in proportion to its weights. Layers stand in the order of the model's tensors.${ask.layer ? " Choose a layer to see its tensors." : ""}`);
    const one = el("div", { id: "layer" });
    const pick = ask.layer && ((layer) => drawTensors(one, run, ask, layer));
    const grid = (key) => ({ x: run.heat.step, y: run.heat.layers, z: run.heat[key] });
    const figures = maps.filter(([key]) => run.heat[key].flat().some((v) => Number.isFinite(num(v)))).map(([key, label, unit]) =>
      [key, drawHeatmap(body, grid(key), { label, axis: "step", unit, top: true, pick, log: key !== "lost_share" })]);
    body.append(one);
    const remarks = el("div");
    body.append(remarks);
    const remark = () => {
      remarks.replaceChildren();
      if (run.heat.every > 1) note(remarks, `One record in ${run.heat.every} is drawn.`);
    };
    remark();
    return () => {
      figures.forEach(([key, figure]) => figure.update(grid(key)));
      remark();
    };
  });
}

/** One layer's tensors over time, one at a time. */
async function drawTensors(host, run, ask, layer) {
  host.setAttribute("aria-busy", "true");
  const found = await ask.layer(layer);
  host.removeAttribute("aria-busy");
  host.replaceChildren();
  const names = Object.keys(found.tensors);
  const select = el("select", { id: "tensor", onchange: () => fill() }, names.map((name) => el("option", { value: name }, name)));
  const place = el("div", { class: "pair" });
  const fill = () => {
    place.replaceChildren();
    const columns = found.tensors[select.value];
    for (const [key, label, unit] of [["grad_norm", "‖g‖"], ["update_ratio", "‖Δ‖ / ‖θ‖"], ["weight_norm", "‖θ‖"], ["lost_share", "Lost to bf16 rounding", pct]]) {
      if (!columns[key].some((v) => Number.isFinite(num(v)))) continue;
      drawLines(place, { x: found.step, series: [{ name: label, colour: "before", values: columns[key] }] }, { label: `${label} of ${select.value}`, axis: "step", unit, height: 190, log: key === "grad_norm", logarithmic: key !== "lost_share" });
    }
  };
  host.append(el("div", { class: "chooser" }, el("label", { for: "tensor" }, `Tensors of ${found.layer}`), select), place);
  fill();
  host.scrollIntoView({ block: "nearest" });
}
