// Panels 5 to 8 and 10: from the gradient to the weights, and the ground the step was taken on.

import { drawBars } from "./bars.js";
import { capital, el, extent, fmt, num, pct, shown, signed, unpacked } from "./dom.js";
import { tenTo } from "./forward.js";
import { drawHeatmap } from "./heatmap.js";
import { drawHistogram } from "./histogram.js";
import { aligned, drawLines } from "./lines.js";
import { note, tiles } from "./parts.js";
import { drawSurface } from "./surface.js";
import { drawTable } from "./table.js";

export function drawBackward(body, slide) {
  const { backward, layers } = slide;
  tiles(body, [
    ["norm of the whole gradient", fmt(backward.grad_norm)],
    num(backward.max_grad_norm) > 0
      ? ["clip factor", fmt(backward.clip_factor), `what the gradient is multiplied by: min(1, ${fmt(backward.max_grad_norm)} / ${fmt(backward.grad_norm)})`]
      : ["clip factor", "1", "clipping is off"],
  ]);
  const grid = el("div", { class: "pair" });
  body.append(grid);
  // Where one layer dwarfs the others, a linear scale would show it alone.
  const wide = (values) => {
    const sorted = values.map(num).filter((x) => x > 0).sort((a, b) => a - b);
    return sorted.length > 2 && sorted[sorted.length - 1] > 25 * sorted[sorted.length >> 1];
  };
  drawBars(grid, {
    items: layers.filter((l) => num(l.weight_norm) || num(l.grad_norm)).map((l) => ({ label: l.name, values: [l.grad_norm], note: `${pct(l.share)} of the squared norm` })),
    series: [{ name: "‖g‖", colour: "before" }],
  }, { label: "‖g‖ of each layer's weights, last layer first", log: wide(layers.map((l) => l.grad_norm)), logarithmic: true, head: "layer" });
  const passed = layers.filter((l) => l.hidden_grad_rms !== null);
  if (passed.length) {
    drawBars(grid, {
      items: passed.map((l) => ({ label: l.name, values: [l.hidden_grad_rms] })),
      series: [{ name: "RMS", colour: "purple" }],
    }, { label: "Signal on its way back: RMS of d loss / d output", log: wide(passed.map((l) => l.hidden_grad_rms)), logarithmic: true, head: "layer" });
  }
  const types = [...new Set(slide.tensors.map((t) => t.dtype))];
  body.append(el("h3", {}, `Every weight tensor${types.length === 1 ? `, ${types[0]}` : ""}`));
  const number = (key, label, text, title) => ({ key, label, number: true, text: text || ((x) => fmt(x)), title });
  drawTable(body, [
    { key: "name", label: "tensor" },
    { key: "size", label: "shape", nowrap: true },
    number("grad_norm", "‖g‖"),
    number("share", "share", pct, "of the squared norm of the whole gradient"),
    number("zero_share", "zero", pct, "share of gradient entries that are exactly 0"),
    number("weight_norm", "‖θ‖"),
    number("update_norm", "‖Δ‖"),
    number("update_ratio", "‖Δ‖/‖θ‖"),
    number("lost_share", "lost in bf16", pct, "share of moved entries that rounding to bf16 leaves where they were"),
  ], slide.tensors.map((t) => ({ ...t, size: t.shape.join("×") + (types.length > 1 ? ` ${t.dtype.replace("float", "f")}` : "") })),
  { caption: "Weight tensors", first: 12, find: "Find a tensor" });
}

export function drawOptimizer(body, slide) {
  const { optimizer, chosen } = slide;
  if (slide.loss_after === null) note(body, "Here it was not asked: the update was refused.");
  const states = new Set();
  const settings = Object.entries(optimizer.settings).filter(([, value]) => value !== null && value !== false).map(([key, value]) => `${key} ${typeof value === "number" ? fmt(value) : JSON.stringify(value)}`);
  tiles(body, [
    ["optimizer", optimizer.name, settings.join(" · ")],
    ["learning rate η", fmt(optimizer.learning_rate)],
    ["updates before this", fmt(optimizer.updates_before), optimizer.updates_before ? "its state remembers them" : "its state was empty"],
  ]);
  if (optimizer.refused) note(body, `Not recorded: ${optimizer.refused}`);
  if (chosen.length) body.append(el("h3", {}, chosen.length > 1 ? `The arithmetic of ${chosen.length} weights, line by line` : "The arithmetic of a weight, line by line"));
  for (const weight of chosen) {
    const lines = [["θ before", "as stored", weight.before], ...weight.stages.map((s) => [s.name, s.formula, s.value]), ["θ after", "as stored", weight.after]];
    const card = el("article", { class: "weight" },
      el("header", {}, el("code", {}, `${weight.tensor}[${weight.index.join(", ")}]`), el("span", {}, capital(weight.why))));
    const sums = el("div", {},
      el("div", { class: "scroll" }, el("table", { class: "derivation" }, el("tbody", {}, lines.map(([name, formula, value], i) =>
        el("tr", { class: name === "Δ" || i === lines.length - 1 ? "result" : "" },
          el("th", { scope: "row" }, name), el("td", { class: "formula" }, formula && (formula === "as stored" ? formula : `= ${formula}`)), el("td", { class: "number" }, fmt(value, 5))))))),
      weight.replay_error !== null && el("p", { class: "remark" }, `Computed here, minus what the optimizer stored: ${fmt(weight.replay_error)}.`));
    card.append(sums);
    body.append(card);
    const would = Object.entries(weight.would);
    if (would.length) {
      drawBars(card, { items: would.map(([name, value]) => ({ label: name, values: [value], strong: name === optimizer.name.toLowerCase() })), series: [{ name: "Δ", colour: "before" }] },
        { label: "Δ that each optimizer would have made of the same gradient", head: "optimizer" });
      states.add(weight.would_state);
    }
  }
  if (states.size) note(body, `State of the optimizers compared: ${[...states].join("; ")}.`);
  const stages = [...new Set(slide.tensors.flatMap((t) => Object.keys(t.rms)))];
  if (stages.length) {
    body.append(el("h3", {}, "The same arithmetic for every tensor: root mean square at each stage"));
    drawTable(body, [{ key: "name", label: "tensor" }, ...stages.map((stage) => ({ key: stage, label: stage, number: true, text: (x) => fmt(x) }))],
      slide.tensors.map((t) => ({ ...t.rms, name: t.name })), { caption: "Root mean squares by stage", first: 6 });
  }
}

export function drawWeights(body, weights) {
  tiles(body, [
    ["weights", fmt(weights.count), weights.dtype],
    ["were to move", fmt(weights.asked), "Δ is not 0"],
    ["lost to rounding", pct(weights.lost_share), weights.lost_means],
    ["stored value unchanged", fmt(weights.stored_lost)],
    ["‖Δ‖ / ‖θ‖", fmt(weights.update_ratio), `${fmt(weights.update_norm)} / ${fmt(weights.weight_norm)}`],
  ]);
  const share = num(weights.lost_share);
  const meter = el("div", { class: "meter", role: "img", "aria-label": `${pct(share)} of the updates lost to rounding in bf16` }, el("i"));
  meter.style.setProperty("--share", String(Number.isFinite(share) ? share : 0));
  body.append(meter);
  const { edges } = weights.before;
  drawHistogram(body, { edges, series: [
    { name: "before", colour: "before", counts: weights.before.counts },
    { name: "after", colour: "after", counts: weights.after.counts },
  ] }, { label: "All weights, before and after: how many have which value", axis: "value of a weight" });
  const grid = el("div", { class: "pair" });
  body.append(grid);
  drawHistogram(grid, { edges, series: [{ name: "after − before", colour: "purple", counts: weights.after.counts.map((c, i) => c - weights.before.counts[i]) }] },
    { label: "Difference of the counts, after − before", axis: "value of a weight" });
  drawHistogram(grid, { edges: weights.change.edges, series: [{ name: "weights", colour: "after", counts: weights.change.counts }] },
    { label: "How far weights moved: |Δ|", axis: "|Δ|, on a scale of powers of ten", tick: tenTo, log: true });
  const outside = weights.before.outside + weights.after.outside;
  if (outside) note(body, `${fmt(weights.before.outside)} weights before and ${fmt(weights.after.outside)} after lie outside the picture.`);
  if (weights.change.zeros) note(body, `${fmt(weights.change.zeros)} weights have Δ = 0 and are not in the last picture.`);
}

export function drawMountain(body, data) {
  const { mountain, loss_before: start } = data.slide;
  const at = (a) => mountain.losses[mountain.along.findIndex((x) => Math.abs(x - a) < 1e-9)];
  const here = at(0) ?? start;
  const [low, high] = extent(mountain.along);
  const fine = Array.from({ length: 81 }, (_, i) => low + ((high - low) * i) / 80);
  const slope = num(mountain.slope);
  const curvature = num(mountain.curvature);
  const curves = [
    { name: "loss", colour: "before", x: mountain.along, values: mountain.losses, points: true, wide: 2 },
    { name: "slope at the start", colour: "soft", x: fine, values: fine.map((a) => num(here) + slope * a), dash: [6, 4] },
    { name: "parabola", colour: "purple", x: fine, values: fine.map((a) => num(here) + slope * a + (curvature / 2) * a * a), dash: [2, 3] },
  ];
  if (at(1) !== undefined) curves.push({ name: "landed", colour: "after", x: [1], values: [at(1)], points: "only" });
  curves.push({ name: "stood", colour: "before", x: [0], values: [here], points: "only" });
  const [bottom, top] = extent(mountain.losses.map(num));
  const margin = (top - bottom || 1) * 0.25;
  drawLines(body, aligned(curves), { label: "Altitude (loss, nats a token) along this update", axis: "part of the update: 0 stood, 1 landed", height: 280, logarithmic: false, low: bottom - margin, high: top + margin });
  note(body, `The slope promised ${signed(slope)} for the whole update; the ground's curvature is ${fmt(curvature)}. `,
    mountain.lowest_at === null ? "The parabola through both has no lowest point. "
      : `The parabola through both is lowest at ${fmt(mountain.lowest_at)} of the update: this step ${num(mountain.lowest_at) > 1 ? "stopped short of it" : "went beyond it"}. `,
    `${capital(mountain.caption)}. Measured on: ${mountain.probe}.`);
  const packed = mountain.surface && unpacked(data.arrays[mountain.surface]);
  if (!packed) return;
  const [, columns] = packed.shape;
  const z = mountain.across.map((_, r) => [...packed.values.slice(r * columns, (r + 1) * columns)]);
  // The surface may have its own, finer axis along: spread evenly over the cut's.
  const along = columns === mountain.along.length ? mountain.along : Array.from({ length: columns }, (_, i) => low + ((high - low) * i) / (columns - 1));
  const near = (axis, v) => axis.reduce((best, x, i) => (Math.abs(x - v) < Math.abs(axis[best] - v) ? i : best), 0);
  const legend = [["before", "stood"], ["after", "landed"]];
  const label = "Altitude from above: along this update to the right, across it up and down";
  drawHeatmap(body, { x: along, y: mountain.across, z }, { label, axis: "along", contours: true, path: [[0, 0], [1, 0]], legend, height: (w) => Math.min(420, w * 0.66) });
  const row = near(mountain.across, 0);
  const [from, to] = [near(along, 0), near(along, 1)];
  const path = Array.from({ length: to - from + 1 }, (_, i) => [from + i, row]);
  if (mountain.across_is) note(body, `Across is ${mountain.across_is}.`);
  const landscape = el("div", { id: "landscape" });
  body.append(landscape);
  drawSurface(landscape, { x: along, y: mountain.across, z }, { label: "The same as a landscape: drag it, or use the arrow keys, to turn it", path, legend });
}

export function drawNoise(body, slide, state) {
  for (const noise of slide.noise) {
    tiles(body, [
      ["gradient noise scale", noise.noise_scale === null ? "too few targets to tell" : fmt(noise.noise_scale), "targets; batches much smaller are mostly noise"],
      ["|G|²", fmt(noise.grad_norm_squared), "the gradient's own size, estimated"],
      ["S", fmt(noise.trace), "variance of one target's gradient"],
      ["targets of a step / a part", `${fmt(noise.batch)} / ${fmt(noise.part)}`, "gradients of both sizes are compared"],
    ]);
  }
  if (!slide.noise.length) note(body, "The gradient noise scale compares micro-batches: it needs a step of two or more.");
  if (!slide.influence.length) return;
  const name = (influence) => (slide.positions[influence.position] ? `“${shown(slide.positions[influence.position].target)}”` : `prediction ${influence.position + 1}`);
  const where = (influence) => (slide.positions[influence.position] ? ` · ${slide.positions[influence.position].where}` : "");
  const place = el("div");
  const select = el("select", { id: "influenced", onchange: () => draw(Number(select.value)) },
    slide.influence.map((influence, i) => el("option", { value: String(i) }, name(influence) + where(influence))));
  const draw = (i) => {
    const influence = slide.influence[i];
    place.replaceChildren();
    drawBars(place, {
      items: influence.examples.map(([row, value]) => ({ label: row, values: [value], colours: [num(value) < 0 ? "target" : "other"] })),
      series: [{ name: "push", colour: "other" }],
    }, {
      label: `Which rows pushed the loss of ${name(influence)} which way`, unit: signed, head: "row",
      legend: [["target", "below 0: made it likelier"], ["other", "above 0: made it less likely"]],
    });
  };
  body.append(el("div", { class: "chooser" }, el("label", { for: "influenced" }, "Prediction"), select), place);
  note(body, "Change of that token's loss per unit of learning rate, were only the head trained, and by plain gradient descent.");
  state.marks.push(() => {
    const i = slide.influence.findIndex((influence) => influence.position === state.position);
    if (i < 0 || String(i) === select.value) return;
    select.value = String(i);
    draw(i);
  });
  draw(0);
}
