// A run: curves, watched prompts, layer × step, worst rows, ledger, events.

import { capital, el, fmt, num, pct, shown } from "./dom.js";
import { drawHeatmap } from "./heatmap.js";
import { aligned, drawLines } from "./lines.js";
import { arrow, note, panel, tiles } from "./parts.js";
import { breakable, drawTable } from "./table.js";

export function drawRun(host, run) {
  const { steps } = run;
  const ends = run.events.filter((e) => e.type === "end");
  const last = steps.step[steps.step.length - 1];
  const top = el("section", { class: "headline", id: "run", "aria-label": "Run" });
  host.append(top);
  const name = (run.config.model || {}).name;
  top.append(el("p", { class: "eyebrow" }, `Run${name ? ` · ${name}` : ""}`), el("h1", {}, run.name));
  const losses = (steps.loss || []).map(num);
  const alerts = run.events.filter((e) => e.type === "alert");
  tiles(top, [
    ["steps", `${fmt(last ?? 0)}${run.config.total_steps ? ` of ${fmt(run.config.total_steps)}` : ""}`, ends.length ? ends[ends.length - 1].text : "no end recorded: still training, or stopped"],
    losses.length > 0 && ["training loss", arrow(losses[0], losses[losses.length - 1], (x) => fmt(x)), "first and last step"],
    run.evals.length > 0 && evalTile(run.evals[0]),
    ["slides", fmt(run.opened.length)],
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
  if (losses.length) drawCurves(host, run);
  drawWatches(host, run);
  if (steps.step.length) drawStep(host, run);
  drawLayers(host, run);
  drawWorst(host, run);
  drawLedger(host, run);
  drawSettings(host, run);
  drawEvents(host, run);
}

function evalTile(series) {
  const [key, values] = Object.entries(series.metrics).find(([k]) => k.endsWith("_loss")) || Object.entries(series.metrics)[0] || [];
  return values && [key.replaceAll("_", " "), arrow(values[0], values[values.length - 1], (x) => fmt(x)), "first and last evaluation"];
}

function drawCurves(host, run) {
  const { steps } = run;
  const heldOut = run.evals.length ? ", and on held-out rows it never learns from" : "";
  const body = panel(host, "curves", "Loss", `Mean −log p of the tokens the model should have said: on the rows of each step just before it learned from them${heldOut}.`);
  const curves = [{ name: "training", colour: "before", x: steps.step, values: steps.loss, wide: steps.loss_mean ? 1 : 1.5, pale: Boolean(steps.loss_mean) }];
  if (steps.loss_mean) curves.push({ name: `mean of ${fmt(steps.mean_of)} steps`, colour: "before", x: steps.step, values: steps.loss_mean, wide: 2.25 });
  const hues = ["after", "target", "purple"];
  let held = 0;
  for (const series of run.evals) {
    for (const [key, values] of Object.entries(series.metrics)) {
      if (key.endsWith("_loss")) curves.push({ name: key.slice(0, -"_loss".length).replaceAll("_", " "), colour: hues[(held++) % 3], x: series.step, values, points: true, wide: 2.25 });
    }
  }
  const lossAt = new Map(steps.step.map((step, i) => [step, steps.loss[i]]));
  for (const [type, hue, name] of [["slide", "target", "opened: a slide"], ["alert", "other", "alert"]]) {
    const marked = [...new Set(run.events.filter((e) => e.type === type).map((e) => e.step))].filter((step) => lossAt.has(step));
    if (marked.length) curves.push({ name, colour: hue, x: marked, values: marked.map((step) => lossAt.get(step)), points: "only" });
  }
  const loss = drawLines(body, aligned(curves), { label: "Loss by step, nats a token", axis: "step", height: 300 });
  if (run.opened.length) {
    note(body, "A click on the dot of an opened step shows its slide below.");
    loss.box.addEventListener("click", () => {
      const { plot } = loss;
      const away = (step) => Math.abs(plot.valToPos(step, "x") - plot.cursor.left);
      const near = run.opened.reduce((best, step, i) => (away(step) < away(run.opened[best]) ? i : best), 0);
      if (away(run.opened[near]) < 8) run.open(near);
    });
  }
  if (steps.of > steps.step.length) note(body, `${fmt(steps.step.length)} of ${fmt(steps.of)} steps are drawn: of every stretch those of the lowest and the highest loss, and those with a slide or an alert.`);
  const others = run.evals.flatMap((s) => Object.entries(s.metrics).filter(([key]) => !key.endsWith("_loss")).map(([key, values]) => ({ name: key.replaceAll("_", " "), x: s.step, values, points: true })));
  const shares = others.filter((c) => c.values.every((v) => !(num(v) > 1.0001)));
  if (steps.token_accuracy) shares.unshift({ name: "training token accuracy", x: steps.step, values: steps.token_accuracy });
  if (shares.length) {
    const tokens = shares.every((c) => c.name.endsWith("token accuracy"));
    const label = tokens ? "Token accuracy: how often the likeliest token was the right one" : shares.length === 1 ? capital(shares[0].name) : "Accuracy and other shares";
    const names = tokens ? shares.map((c) => ({ ...c, name: c.name.replace(" token accuracy", "") })) : shares;
    drawLines(body, aligned(hued(names)), { label, axis: "step", unit: pct, logarithmic: false });
  }
}

function drawStep(host, run) {
  const { steps } = run;
  const inner = panel(host, "training", "The step", "How large each gradient was, how much of it was kept, how far the optimizer was told to go, and how fast it went.");
  const grid = el("div", { class: "pair" });
  inner.append(grid);
  const one = (key, label, colourName, options = {}) => steps[key] &&
    drawLines(grid, { x: steps.step, series: [{ name: label, colour: colourName, values: steps[key] }] }, { label, axis: "step", height: 190, ...options });
  one("grad_norm", "Gradient norm, before clipping", "before", { log: true });
  one("clip_factor", "Clip factor: 1 is not clipped", "after", { logarithmic: false });
  one("learning_rate", "Learning rate", "target", { logarithmic: false });
  one("entropy", "Entropy of predictions, nats", "sky");
  one("tokens_per_second", "Tokens per second", "purple", { logarithmic: false });
  one("supervised", "Supervised tokens of each step", "other", { logarithmic: false });
}

function hued(curves) {
  const hues = ["before", "after", "target", "purple", "sky", "other"];
  return curves.map((curve, i) => ({ ...curve, colour: hues[i % hues.length] }));
}

function drawWatches(host, run) {
  if (!run.watches.length) return;
  const body = panel(host, "watched", "Watched prompts", "How likely the model finds each answer, as training goes on: the right one should rise, the others fall.");
  for (const watch of run.watches) {
    drawLines(body, { x: watch.step, series: hued(Object.entries(watch.p).map(([name, values]) => ({ name, values, points: true }))) },
      { label: watch.prompt, axis: "step", unit: pct, height: 280 });
  }
}

function drawLayers(host, run) {
  if (!run.heat) return;
  const { step, layers } = run.heat;
  const body = panel(host, "layers", "Layers over time", "Where in the model the gradient was large, and how far each layer moved in proportion to its weights. Layers stand in the order of the model's tensors.");
  const map = (key, label, unit) => {
    const z = run.heat[key];
    if (!z.flat().some((v) => Number.isFinite(num(v)))) return;
    const keep = key === "lost_share" ? {} : { log: true };
    drawHeatmap(body, { x: step, y: layers, z }, { label, axis: "step", unit, top: true, ...keep });
  };
  map("grad_norm", "Gradient norm, layer × step");
  map("update_ratio", "‖Δ‖ / ‖θ‖, layer × step");
  map("lost_share", "Share of updates lost to bf16 rounding, layer × step", pct);
  if (run.heat.every > 1) note(body, `One record in ${run.heat.every} is drawn.`);
}

function drawWorst(host, run) {
  if (!run.worst.length) return;
  const names = { where: "row", cost: "cost, nats", share: "share of all", first: "first visit", last: "last visit", mean: "mean" };
  const body = panel(host, "worst", "Worst rows", "The rows that cost most: wrong labels, odd formats and hard questions gather here. Read them. First visit, last visit and mean are losses, in nats a token.");
  if (run.worst_note) note(body, `${capital(run.worst_note)}.`);
  for (const { title, remark, rows } of run.worst) {
    body.append(el("h3", {}, title));
    note(body, remark);
    const words = (where, row) => [breakable(where), row.text ? el("div", { class: "words" }, row.text) : ""];
    drawTable(body, Object.keys(rows[0]).filter((key) => key !== "text").map((key) => {
      if (key === "where") return { key, label: names.where, text: words };
      const number = rows.every((row) => row[key] === null || typeof row[key] === "number");
      return { key, label: names[key] || key.replaceAll("_", " "), number, text: (v) => (number ? (key === "share" ? pct : fmt)(v) : v !== null && typeof v === "object" ? JSON.stringify(v) : v) };
    }), rows, { caption: title, first: 10, find: "Find a row" });
  }
}

const SETS = { train: "Training data", eval: "Held-out data" };

function drawLedger(host, run) {
  const sets = Object.entries(run.config.data || {}).filter(([, set]) => set && set.ledger);
  if (!sets.length) return;
  const body = panel(host, "ledger", "Data ledger", "What became of every row: kept, cut or dropped, and why. Nothing is lost without a word.");
  for (const [name, { ledger }] of sets) {
    body.append(el("h3", {}, `${SETS[name] || capital(name)}: ${ledger.source || ""}`), ledger.shape && el("p", { class: "remark" }, `Read as ${ledger.shape}`) || "");
    tiles(body, ["rows", "examples", "prompt_tokens", "supervised_tokens", "longest", "duplicates"]
      .filter((key) => ledger[key] !== undefined).map((key) => [key.replaceAll("_", " "), fmt(ledger[key])]));
    const rows = [];
    for (const [kind, label] of [["dropped", "dropped"], ["noted", "kept, but"]]) {
      for (const [reason, places] of Object.entries(ledger[kind] || {})) {
        rows.push({ kind: label, reason, count: (ledger.counts || {})[reason] ?? places.length, where: places.slice(0, 5).join(", ") });
      }
    }
    for (const [token, count] of Object.entries(ledger.turn_ends || {})) rows.push({ kind: "turns end with", reason: shown(token), count, where: "" });
    if (rows.length) {
      drawTable(body, [{ key: "kind", label: "became", text: capital }, { key: "reason", label: "what" }, { key: "count", label: "rows", number: true, text: (x) => fmt(x) }, { key: "where", label: "such as" }], rows, { caption: `Ledger of ${name}`, stack: true });
    }
  }
}

/** What the run was told and what it ran on; settings that were left alone say nothing and are left out. */
function drawSettings(host, run) {
  const plain = (value) => (typeof value === "string" ? value : typeof value === "number" ? fmt(value) : JSON.stringify(value));
  const first = ["learning_rate", "optim", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "max_grad_norm", "seed"];
  const order = ({ part, key }) => (part === "config" && first.includes(key) ? first.indexOf(key) : first.length);
  const idle = (key) => key.startsWith("lora_") && !(run.config.config || {}).use_peft;
  const empty = (value) => value === null || value === false || (typeof value === "object" && !Object.keys(value).length);
  const rows = ["config", "model", "machine", "versions"].flatMap((part) => Object.entries(run.config[part] || {})
    .filter(([key, value]) => !empty(value) && !idle(key)).map(([key, value]) => ({ part, key, value: plain(value) })))
    .sort((a, b) => order(a) - order(b));
  if (!rows.length) return;
  const body = panel(host, "settings", "Settings", "What the run was told, and what it ran on. Options that are empty or off are left out.");
  drawTable(body, [{ key: "key", label: "setting" }, { key: "value", label: "value" }, { key: "part", label: "part of", text: capital }], rows,
    { caption: "Settings", first: 12, find: "Find a setting", stack: true });
}

function drawEvents(host, run) {
  if (!run.events.length) return;
  const body = panel(host, "events", "Events", "Everything the run recorded besides its steps.");
  drawTable(body, [
    { key: "step", label: "step", number: true, text: (x) => fmt(x) },
    { key: "type", label: "what" },
    { key: "time", label: "when (UTC)", text: (t) => (t === null ? "" : new Date(t * 1000).toISOString().slice(0, 19).replace("T", "\u00a0")) },
    { key: "text", label: "details", text: capital },
  ], run.events.map((e) => ({ ...e, strong: e.type === "alert" })), { caption: "Events", first: 15, find: "Find an event", stack: true });
}
