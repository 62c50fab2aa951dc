// Panels 5 to 8 and 10: from the gradient to the weights, and the ground the step was taken on.

function drawBackward(body, slide) {
  const { backward, layers } = slide;
  tiles(body, [
    ["norm of the whole gradient", fmt(backward.grad_norm)],
    num(backward.max_grad_norm) > 0
      ? ["clip factor", fmt(backward.clip_factor), `min(1, ${fmt(backward.max_grad_norm)} / ${fmt(backward.grad_norm)})`]
      : ["clip factor", "1", "clipping is off"],
  ]);
  const grid = el("div", { class: "pair" });
  body.append(grid);
  drawBars(grid, {
    items: layers.filter((l) => num(l.weight_norm) || num(l.grad_norm)).map((l) => ({ label: l.name, values: [l.grad_norm], note: `${pct(l.share)} of the squared norm` })),
    series: [{ name: "‖g‖", colour: "before" }],
  }, { label: "‖g‖ of each layer's weights, last layer first", logarithmic: true, head: "layer" });
  const passed = layers.filter((l) => l.hidden_grad_rms !== null);
  if (passed.length) {
    drawBars(grid, {
      items: passed.map((l) => ({ label: l.name, values: [l.hidden_grad_rms] })),
      series: [{ name: "RMS", colour: "purple" }],
    }, { label: "RMS of d loss / d (layer's output): the signal on its way back", logarithmic: true, head: "layer" });
  }
  body.append(el("h3", {}, "Every weight tensor"));
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
  ], slide.tensors.map((t) => ({ ...t, size: `${t.shape.join("×")} ${t.dtype.replace("float", "f")}` })),
  { caption: "Weight tensors", first: 12, find: "Find a tensor" });
}

function drawOptimizer(body, slide) {
  const { optimizer, chosen } = slide;
  const settings = Object.entries(optimizer.settings).filter(([, value]) => value !== null && value !== false).map(([key, value]) => `${key} ${typeof value === "number" ? fmt(value) : JSON.stringify(value)}`);
  tiles(body, [
    ["optimizer", optimizer.name, settings.join(" · ")],
    ["learning rate η", fmt(optimizer.learning_rate)],
    ["updates before this", fmt(optimizer.updates_before), optimizer.updates_before ? "its state remembers them" : "its state was empty"],
  ]);
  if (optimizer.refused) note(body, `Not recorded: ${optimizer.refused}`);
  for (const weight of chosen) {
    const lines = [["θ before", "as stored", weight.before], ...weight.stages.map((s) => [s.name, s.formula, s.value]), ["θ after", "as stored", weight.after]];
    const card = el("article", { class: "weight" },
      el("header", {}, el("code", {}, `${weight.tensor}[${weight.index.join(", ")}]`), el("span", {}, weight.why)),
      el("div", { class: "scroll" }, el("table", { class: "derivation" }, el("tbody", {}, lines.map(([name, formula, value], i) =>
        el("tr", { class: name === "Δ" || i === lines.length - 1 ? "result" : "" },
          el("th", { scope: "row" }, name), el("td", { class: "formula" }, formula && (formula === "as stored" ? formula : `= ${formula}`)), el("td", { class: "number" }, fmt(value, 5))))))),
      weight.replay_error !== null && el("p", { class: "remark" }, `Computed here, minus what the optimizer stored: ${fmt(weight.replay_error)}.`));
    body.append(card);
    const would = Object.entries(weight.would);
    if (would.length) {
      drawBars(card, { items: would.map(([name, value]) => ({ label: name, values: [value], strong: name === optimizer.name.toLowerCase() })), series: [{ name: "Δ", colour: "before" }] },
        { label: `What each optimizer would have done with the same gradient (state: ${weight.would_state})`, head: "optimizer" });
    }
  }
  const stages = [...new Set(slide.tensors.flatMap((t) => Object.keys(t.rms)))];
  if (stages.length) {
    body.append(el("h3", {}, "The same arithmetic for every tensor: root mean square at each stage"));
    drawTable(body, [{ key: "name", label: "tensor" }, ...stages.map((stage) => ({ key: stage, label: stage, number: true, text: (x) => fmt(x) }))],
      slide.tensors.map((t) => ({ ...t.rms, name: t.name })), { caption: "Root mean squares by stage", first: 6 });
  }
}

function drawWeights(body, weights) {
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
  ] }, { label: "All weights, before and after", axis: "weight" });
  const grid = el("div", { class: "pair" });
  body.append(grid);
  drawHistogram(grid, { edges, series: [{ name: "after − before", colour: "purple", counts: weights.after.counts.map((c, i) => c - weights.before.counts[i]) }] },
    { label: "Difference of the counts, after − before", axis: "weight" });
  drawHistogram(grid, { edges: weights.change.edges, series: [{ name: "weights", colour: "after", counts: weights.change.counts }] },
    { label: "How far weights moved: |Δ|", axis: "|Δ|", tick: tenTo, log: true });
  const outside = weights.before.outside + weights.after.outside;
  if (outside) note(body, `${fmt(weights.before.outside)} weights before and ${fmt(weights.after.outside)} after lie outside the picture.`);
  if (weights.change.zeros) note(body, `${fmt(weights.change.zeros)} weights have Δ = 0 and are not in the last picture.`);
}

function drawMountain(body, data) {
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
  curves.push({ name: "stood", colour: "target", x: [0], values: [here], points: "only" });
  const [bottom, top] = extent(mountain.losses.map(num));
  const margin = (top - bottom || 1) * 0.25;
  drawLines(body, aligned(curves), { label: "Altitude (loss) along this update: 0 where the weights stood, 1 where they landed", axis: "along", height: 280, logarithmic: false, low: bottom - margin, high: top + margin });
  note(body, `${mountain.caption}. Probe: ${mountain.probe}. Slope ${signed(slope)} a whole update, curvature ${fmt(curvature)}. `,
    mountain.lowest_at === null ? "The parabola has no lowest point."
      : `On the parabola the lowest point is at ${fmt(mountain.lowest_at)}: this step ${num(mountain.lowest_at) > 1 ? "stopped short of it" : "went beyond it"}.`);
  const packed = mountain.surface && unpacked(data.arrays[mountain.surface]);
  if (!packed) return;
  const [, columns] = packed.shape;
  const z = mountain.across.map((_, r) => [...packed.values.slice(r * columns, (r + 1) * columns)]);
  // The surface may have its own, finer axis along: spread evenly over the cut's.
  const along = columns === mountain.along.length ? mountain.along : Array.from({ length: columns }, (_, i) => low + ((high - low) * i) / (columns - 1));
  const near = (axis, v) => axis.reduce((best, x, i) => (Math.abs(x - v) < Math.abs(axis[best] - v) ? i : best), 0);
  const legend = [["before", "stood"], ["after", "landed"]];
  const label = `Altitude over this update (along) and across it: ${mountain.across_is || "another direction"}`;
  drawHeatmap(body, { x: along, y: mountain.across, z }, { label, axis: "along", contours: true, path: [[0, 0], [1, 0]], legend, height: (w) => Math.min(420, w * 0.66) });
  const row = near(mountain.across, 0);
  const [from, to] = [near(along, 0), near(along, 1)];
  const path = Array.from({ length: to - from + 1 }, (_, i) => [from + i, row]);
  drawSurface(body, { x: along, y: mountain.across, z }, { label: "The same as a landscape: drag to turn it", path, legend });
}

function drawNoise(body, slide) {
  for (const noise of slide.noise) {
    tiles(body, [
      ["gradient noise scale", noise.noise_scale === null ? "too few targets to tell" : fmt(noise.noise_scale), "targets; batches much smaller are mostly noise"],
      ["|G|²", fmt(noise.grad_norm_squared), "the gradient's own size, estimated"],
      ["S", fmt(noise.trace), "variance of one target's gradient"],
      ["batch / part", `${fmt(noise.batch)} / ${fmt(noise.part)}`],
    ]);
  }
  for (const influence of slide.influence) {
    const position = slide.positions[influence.position];
    drawBars(body, {
      items: influence.examples.map(([where, value]) => ({ label: where, values: [value], colours: [num(value) < 0 ? "target" : "other"] })),
      series: [{ name: "push", colour: "other" }],
    }, {
      label: `Which examples pushed “${position ? shown(position.target) : influence.position}” which way (through the head alone)`, unit: signed, head: "row",
      legend: [["target", "helped: its loss falls"], ["other", "hurt"]],
    });
  }
}
