// One row to read: its text, what it cost at each visit, and its tokens where an opened step knows them.

import { el, fmt } from "../draw/js/dom.js";
import { drawLines } from "../draw/js/lines.js";
import { note } from "../draw/js/parts.js";
import { drawTokens } from "../draw/js/tokens.js";
import { opened } from "./frame.js";
import { ask } from "./session.js";

export async function readRow(api, where) {
  const body = el("div");
  const box = el("dialog", { class: "box", "aria-labelledby": "row-title" },
    el("div", { class: "bar" }, el("h2", { id: "row-title" }, where), el("button", { type: "button", class: "tool", onclick: () => box.close() }, "Close")), body);
  opened(box);
  note(body, "Reading …");
  let row;
  try {
    row = await ask(`${api}/row?where=${encodeURIComponent(where)}`);
  } catch (error) {
    body.replaceChildren();
    note(body, error.message);
    return;
  }
  body.replaceChildren();
  if (row.text !== null) body.append(el("pre", { class: "text", tabindex: "0", role: "region", "aria-label": "The row's text" }, row.text));
  else note(body, row.note ? `${row.note}.` : "Its text was not found.");
  const { visits } = row;
  if (visits.length > 1) {
    drawLines(body, { x: visits.map((v) => v.step), series: [{ name: "loss", colour: "before", values: visits.map((v) => v.loss), points: true }] },
      { label: "Loss of this row at each visit, nats a token", axis: "step", height: 190 });
  } else if (visits.length) note(body, `Visited once, at step ${fmt(visits[0].step)}: ${fmt(visits[0].loss)} nats a token.`);
  for (const { step, example } of row.examples) {
    body.append(el("h3", {}, `Its tokens at step ${fmt(step)}, which was opened: the warmer, the more surprised the model was`));
    drawTokens(body, example.tokens, { after: false, chosen: -1, has: () => false, pick() {} });
  }
  if (!row.examples.length) note(body, "The losses of its tokens are known for steps that were opened; this row was in none of them.");
}
