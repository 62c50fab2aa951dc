// Panels 0 to 4 and 9: what the model was shown, what it predicted, what was off, and what it predicts now.

import { drawBars } from "./bars.js";
import { capital, el, fmt, num, pct, points, power, shown, signed, unpacked } from "./dom.js";
import { toggle } from "./figure.js";
import { drawHistogram } from "./histogram.js";
import { arrow, note, tiles } from "./parts.js";
import { drawStrips } from "./strips.js";
import { drawTable } from "./table.js";
import { drawTokens } from "./tokens.js";

export function drawHeadline(host, slide, tag) {
  const body = el("section", { class: "headline", id: "headline", "aria-label": `Step ${slide.step}, opened` });
  host.append(body);
  body.append(el("p", { class: "eyebrow" }, `One update, opened · step ${slide.step} · ${slide.model}`),
    el(tag, { class: "told" }, capital(slide.headline)),
    el("p", { class: "caption" }, "The loss says what was off; backprop turns it into a direction and a size for every weight, from the last layer to the first; the optimizer decides how far to go; and after one step the right answer should be a little likelier."),
    el("p", { class: "remark" }, `Opened because: ${slide.opened_because}. Weights ${slide.precision.weights}, matrix products ${slide.precision.products}.`));
  tiles(body, [
    ["loss of this batch", arrow(slide.loss_before, slide.loss_after, (x) => fmt(x)), "nats a token; lower is better"],
    slide.promised !== null && ["promised → obtained", arrow(slide.promised, slide.obtained, signed), "what the slope said, what the step gave"],
    ["gradient norm", fmt(slide.backward.grad_norm), num(slide.backward.clip_factor) < 1 ? `clipped × ${fmt(slide.backward.clip_factor)}` : "not clipped"],
    ["learning rate", fmt(slide.optimizer.learning_rate), slide.optimizer.name],
    slide.weights && ["lost to bf16 rounding", pct(slide.weights.lost_share), `of ${fmt(slide.weights.asked)} weights that were to move`],
  ]);
  if (slide.alerts.length) {
    body.append(el("div", { class: "callout alert", role: "alert" }, el("strong", {}, "Alerts"),
      el("ul", {}, slide.alerts.map((text) => el("li", {}, text)))));
  }
  if (slide.notes.length) {
    body.append(el("div", { class: "callout" }, el("strong", {}, "Notes"),
      el("ul", {}, slide.notes.map((text) => el("li", {}, text)))));
  }
}

/** Which of the slide's positions is target `k` of this example; −1 if it was not recorded. */
function positionOf(slide, example, k) {
  const token = example.tokens.filter((t) => t.loss !== null)[k];
  return slide.positions.findIndex((p) => p.where === example.where && p.index === k && token && p.target_id === token.id);
}

export function drawBatch(body, slide, state) {
  const { batch } = slide;
  const some = batch.examples.length;
  // The last token of an example is only ever a target: it need not go through the model.
  const shares = batch.tokens - batch.slots > some + batch.examples_left_out;
  tiles(body, [
    ["examples", fmt(some + batch.examples_left_out)],
    ["tokens", fmt(batch.tokens), `${fmt(batch.slots)} went through the model${shares ? ": shared prefixes only once" : ""}`],
    ["supervised", fmt(batch.supervised), "tokens the model should have said"],
    ["micro-batches", fmt(batch.micro_batches)],
    ["loss is divided by", fmt(batch.divisor), "once, the weights of all targets"],
  ]);
  const list = el("div", { class: "examples" });
  let after = false;
  let all = false;
  const has = (example) => (k) => positionOf(slide, example, k) >= 0;
  const fill = () => {
    const seen = all ? batch.examples : batch.examples.slice(0, 6);
    list.replaceChildren(...seen.map((example) => {
      const chosen = slide.positions[state.position];
      const card = el("article", { class: "example" }, el("header", {},
        el("code", {}, example.where),
        el("span", {}, `loss ${arrow(example.loss, example.loss_after, (x) => fmt(x))} over ${fmt(example.supervised)} tokens · ${pct(example.share)} of the step's loss`),
        num(example.weight) !== 1 && el("span", {}, `weight ${fmt(example.weight)}`)));
      if (example.left_out) card.append(el("p", { class: "remark" }, `… ${fmt(example.left_out)} tokens before`));
      drawTokens(card, example.tokens, {
        after,
        has: has(example),
        chosen: chosen && chosen.where === example.where && positionOf(slide, example, chosen.index) === state.position ? chosen.index : -1,
        pick: (k) => state.pick(positionOf(slide, example, k)),
      });
      return card;
    }));
  };
  state.marks.push(fill);
  const scale = el("div", { class: "heatscale", "aria-hidden": "true" }, el("span", {}, "−log p  0"), el("i"), el("span", {}, "8+"));
  body.append(el("div", { class: "bar" }, scale,
    slide.loss_after !== null && el("div", { class: "tools" }, toggle("After the update", after, (on) => { after = on; fill(); }))), list);
  if (some > 6) {
    body.append(toggle(`Show all ${fmt(some)} examples`, false, (on) => { all = on; fill(); }));
  }
  if (batch.examples_left_out) note(body, `${batch.examples_left_out} further examples of the step are not kept in the slide.`);
  fill();
}

export function choosePosition(body, slide, state) {
  const select = el("select", { id: "position", onchange: (event) => state.pick(Number(event.target.value)) },
    slide.positions.map((p, i) => el("option", { value: String(i) }, `${i + 1}. after “${shown(p.token)}” → “${shown(p.target)}” · p ${pct(Math.exp(-num(p.loss_before)))} · ${p.where}`)));
  const step = (by) => () => state.pick((state.position + by + slide.positions.length) % slide.positions.length);
  const mark = () => { select.value = String(state.position); };
  state.marks.push(mark);
  mark();
  body.append(el("div", { class: "chooser" }, el("label", { for: "position" }, "Position"),
    el("button", { type: "button", class: "tool", "aria-label": "Previous position", onclick: step(-1) }, "‹"), select,
    el("button", { type: "button", class: "tool", "aria-label": "Next position", onclick: step(1) }, "›")));
}

/** The candidates worth bars: the likeliest, the target, the watched. */
function leading(position, count) {
  return position.candidates.filter((c, i) => i < count || c.is_target || c.is_watched);
}

function named(candidate) {
  return `${shown(candidate.token)}${candidate.is_target ? " ●" : candidate.is_watched ? " ◦" : ""}`;
}

export function drawPrediction(body, position) {
  const after = position.loss_after !== null;
  tiles(body, [
    ["should have said", shown(position.target), `after “${shown(position.token)}”`],
    ["its probability", arrow(Math.exp(-num(position.loss_before)), after ? Math.exp(-num(position.loss_after)) : null, pct), `rank ${arrow(position.rank_before, position.rank_after, fmt)}`],
    ["loss = −log p", arrow(position.loss_before, position.loss_after, (x) => fmt(x)), "0 is certain and right"],
    ["entropy", arrow(position.entropy_before, position.entropy_after, (x) => fmt(x)), "nats; how undecided it is"],
  ]);
  drawBars(body, {
    items: leading(position, 12).map((c) => ({
      label: named(c), strong: c.is_target, values: after ? [c.p_before, c.p_after] : [c.p_before],
      note: `id ${c.id}, rank ${arrow(c.rank_before, c.rank_after, fmt)}`,
    })),
    series: [{ name: "p before", colour: "before" }, { name: "p after", colour: "after" }].slice(0, after ? 2 : 1),
  }, { label: "Probability of the next token (● the target, ◦ watched)", unit: pct, logarithmic: true, head: "token" });
  drawTable(body, [
    { key: "name", label: "token" },
    { key: "id", label: "ID", number: true },
    { key: "p_before", label: "p before", number: true, text: pct },
    { key: "rank_before", label: "rank", number: true, text: (x) => fmt(x) },
    { key: "logit_before", label: "logit", number: true, text: (x) => fmt(x) },
    ...(after ? [
      { key: "p_after", label: "p after", number: true, text: pct },
      { key: "rank_after", label: "rank after", number: true, text: (x) => fmt(x) },
    ] : []),
  ], position.candidates.map((c) => ({ ...c, name: named(c), strong: c.is_target })), { caption: "Prediction at this position", first: 8 });
  note(body, `All other ${fmt(position.rest.tokens)} tokens together: p ${arrow(position.rest.p_before, position.rest.p_after, pct)}.`);
}

export function drawErrors(body, position) {
  const lead = leading(position, 12);
  const others = position.candidates.filter((c) => !lead.includes(c)).reduce((sum, c) => sum + num(c.error), num(position.rest.error));
  const place = el("div");
  body.append(place);
  const draw = (raw) => {
    place.replaceChildren();
    const items = lead.map((c) => ({
      label: named(c), strong: c.is_target, values: [raw ? c.error_raw : c.error], colours: [num(c.error) < 0 ? "target" : "other"],
      note: raw ? `times w: ${signed(c.error)}` : `without w: ${signed(c.error_raw)}`,
    }));
    items.push({ label: `the other ${fmt(position.rest.tokens + position.candidates.length - lead.length)}`, values: [raw ? others / num(position.weight) : others], colours: ["other"] });
    drawBars(place, { items, series: [{ name: raw ? "p − y" : "d loss / d logit", colour: "other" }] }, {
      label: raw ? "Error column without w: p − y" : "Error column: w · (p − y)", unit: signed, head: "token",
      legend: [["target", "below 0: will be made likelier"], ["other", "above 0: will be made less likely"]],
      tools: [toggle("Without w", raw, draw)],
    });
  };
  draw(false);
  note(body, `The whole column sums to ${fmt(position.error_sum)}${Math.abs(num(position.error_sum)) < 1e-5 ? ", which is 0 but for rounding" : ""}: what the right token gains, the others lose. `,
    `w = ${fmt(position.weight)} is this token's weight in the step's mean.`);
}

export function drawHeadRows(body, position, data) {
  const { head } = data.slide;
  const array = (name) => name && unpacked(data.arrays[name]);
  if (head.unknown) note(body, `The head's formula is not known: ${head.unknown}.`);
  if (!head.trained) note(body, "The head is frozen: its rows get no update. What matters here is what flows back into the model.");
  if (head.tied && head.trained) note(body, "The head and the input embeddings are one weight: what the input side adds stands in the table of the whole step.");
  if (head.softcap) note(body, `Logits are soft-capped at ${fmt(head.softcap)}; the error below is that of W h, before the cap.`);
  const hidden = array(position.hidden);
  if (hidden) {
    drawStrips(body, { rows: [{ label: "h", strong: true, values: hidden.values, note: `‖h‖ ${fmt(position.hidden_norm)}` }] },
      { label: "The hidden state h that made the prediction", tall: 34 });
    const errors = new Map(position.candidates.map((c) => [c.id, num(c.error_product)]));
    const rows = position.head_rows.filter((row) => errors.has(row.id)).map((row) => ({
      label: `${shown(row.token)}  ${signed(errors.get(row.id))}`,
      strong: row.id === position.target_id,
      values: hidden.values.map((x) => x * errors.get(row.id)),
      note: `norm ${fmt(row.norm)}`,
    }));
    if (rows.length) drawStrips(body, { rows }, { label: "Gradient of the head's rows: error × h", shared: true });
  }
  const back = array(position.flows_back);
  if (back) {
    drawStrips(body, { rows: [{ label: "Wᵀe", strong: true, values: back.values, note: `norm ${fmt(position.flows_back_norm)}` }] },
      { label: "What flows back into the model from here", tall: 34 });
  }
  rowsTable(body, position.head_rows, "Rows of the head, for this position alone");
}

function rowsTable(body, rows, caption) {
  if (!rows.length) return;
  const tied = rows.some((row) => row.input_norm !== null);
  const whole = rows.some((row) => row.total_norm !== null);
  const compared = rows.some((row) => row.max_abs_difference_from_autograd !== null);
  body.append(el("h3", {}, caption));
  drawTable(body, [
    { key: "name", label: "row of" },
    { key: "norm", label: "norm of error × h", number: true, text: (x) => fmt(x) },
    { key: "largest", label: "largest entry", number: true, text: (x) => fmt(x) },
    ...(compared ? [{ key: "max_abs_difference_from_autograd", label: "formula − autograd", number: true, text: (x) => (x === null ? "not compared" : fmt(x)), title: "largest difference of an entry" }] : []),
    ...(tied ? [{ key: "input_norm", label: "norm of the input side", number: true, text: (x) => fmt(x) }] : []),
    ...(whole ? [{ key: "total_norm", label: "norm of the whole", number: true, text: (x) => fmt(x) }] : []),
  ], rows.map((row) => ({ ...row, name: shown(row.token) })), { caption, first: 10 });
}

export function drawHeadOfStep(body, head) {
  rowsTable(body, head.rows, "Rows of the step's tokens and of the watched ones, for the whole step");
  rowsTable(body, head.top_rows, "The ten rows of the largest gradient");
  if (head.norms) {
    drawHistogram(body, { edges: head.norms.edges, series: [{ name: "rows", colour: "before", counts: head.norms.counts }] },
      { label: "How many rows have a gradient of which norm", axis: "norm of a row's gradient", tick: tenTo, log: true });
    if (head.norms.zeros) note(body, `${fmt(head.norms.zeros)} rows have a gradient of exactly 0.`);
  }
}

export function tenTo(exponent) {
  return Number.isInteger(exponent) ? `10${power(exponent)}` : fmt(10 ** exponent, 2);
}

export function drawAfter(body, position) {
  if (position.loss_after === null) {
    note(body, "The prediction after the update was not recorded.");
    return;
  }
  const parts = position.candidates.some((c) => c.p_head !== null);
  tiles(body, [
    ["probability of the target", arrow(Math.exp(-num(position.loss_before)), Math.exp(-num(position.loss_after)), pct)],
    ["its rank", arrow(position.rank_before, position.rank_after, fmt)],
    ["moved by", `${fmt(position.kl)} nats`, "KL(before ‖ after) of the whole prediction"],
  ]);
  drawBars(body, {
    items: leading(position, 10).map((c) => ({
      label: named(c), strong: c.is_target, values: parts
        ? [num(c.p_head) - num(c.p_before), num(c.p_body) - num(c.p_before), num(c.p_after) - num(c.p_before)]
        : [num(c.p_after) - num(c.p_before)],
      note: `p ${pct(c.p_before)} → ${pct(c.p_after)}`,
    })),
    series: parts
      ? [{ name: "head alone", colour: "sky" }, { name: "body alone", colour: "purple" }, { name: "both: the update", colour: "after" }]
      : [{ name: "change", colour: "after" }],
  }, { label: "Change of the probability, in percentage points", unit: points, head: "token" });
  if (parts) note(body, "Head alone: the new head on the old hidden state. Body alone: the old head on the new hidden state.");
}

export function drawWatched(body, slide) {
  if (!slide.watched.length) return;
  const after = slide.watched.some((w) => w.p_after !== null);
  drawBars(body, {
    items: slide.watched.map((w) => ({ label: w.text, values: after ? [w.p_before, w.p_after] : [w.p_before], note: w.tokens.map(shown).join(" · ") })),
    series: [{ name: "p before", colour: "before" }, { name: "p after", colour: "after" }].slice(0, after ? 2 : 1),
  }, { label: "Probability of each watched answer: the product over its tokens", unit: pct, logarithmic: true, head: "answer" });
}
