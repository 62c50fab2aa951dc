// One update, opened: a slide from its headline to what the model predicts now.

import { drawBars } from "./bars.js";
import { el, fmt, shown, signed } from "./dom.js";
import { choosePosition, drawAfter, drawBatch, drawErrors, drawHeadOfStep, drawHeadRows, drawHeadline, drawPrediction, drawWatched } from "./forward.js";
import { note, panel } from "./parts.js";
import { drawBackward, drawMountain, drawNoise, drawOptimizer, drawWeights } from "./update.js";

/** Draw one slide: {slide, arrays}. */
export function drawSlide(host, data, tag) {
  const { slide } = data;
  const state = { position: slide.looked_at ?? 0, marks: [], panels: [], pick() {} };
  state.pick = (index) => {
    if (index < 0) return;
    state.position = index;
    state.marks.forEach((mark) => mark());
    state.panels.forEach((refill) => refill());
  };
  const each = (body, draw) => {
    const place = el("div");
    body.append(place);
    const refill = () => {
      place.replaceChildren();
      draw(place, slide.positions[state.position], data);
    };
    state.panels.push(refill);
    refill();
  };
  drawHeadline(host, slide, tag);
  drawBatch(panel(host, "batch", "1 · Batch", "What the model was shown. Grey tokens are the question and are not learned; the others are what it should have said, the warmer the more surprised it was."), slide, state);
  if (slide.positions.length) {
    const prediction = panel(host, "prediction", "2 · Prediction", "What the model thought comes next: before the update in blue, after it in orange. The loss says how far off it was: minus the logarithm of what it gave the right token.");
    choosePosition(prediction, slide, state);
    each(prediction, drawPrediction);
    each(panel(host, "error", "3 · Error", "Prediction minus truth, token by token: p − 1 for the right one, p for all the others, times the token's weight w in the step's mean. This column is where every gradient begins."), drawErrors);
    const head = panel(host, "head", "4 · Head rows", "Each token owns one row of the last weight matrix. Its gradient is its error times the hidden state h: the right token's row is pulled toward h, the others are pushed away.");
    each(head, drawHeadRows);
    drawHeadOfStep(head, slide.head);
  }
  drawBackward(panel(host, "backward", "5 · Backwards", "Backprop carries the error from the last layer to the first and tells every weight which way is down, and how steep. A long bar is a layer that could change the loss most."), slide);
  drawOptimizer(panel(host, "optimizer", "6 · Optimizer", "The gradient is only a direction. The optimizer decides how far each weight goes: from its gradient g, line by line, to its change Δ."), slide);
  if (slide.weights) drawWeights(panel(host, "weights", "7 · Weights", "All weights before and after the update. The two hills nearly always coincide: a step is a whisper to each weight. What is lost to rounding is too small a change for bf16 to write down."), slide.weights);
  if (slide.mountain) drawMountain(panel(host, "mountain", "8 · Mountain", "Loss is the altitude, the weights are where you stand. This is a cut through the landscape in the direction of the step: where the curve leaves the dashed slope, the step got less, or more, than the slope promised."), data);
  if (slide.positions.length) {
    const after = panel(host, "after", "9 · After", "The same question again: the right answer should be a little likelier. Part of that is the head's doing, part the body's.");
    each(after, drawAfter);
    drawWatched(after, slide);
    if (slide.promised !== null) {
      drawBars(after, { items: [{ label: "Promised", note: "by the slope", values: [slide.promised] }, { label: "Obtained", note: "by the step", values: [slide.obtained] }], series: [{ name: "change of the loss", colour: "before" }] },
        { label: "Change of the batch's loss: promised and obtained", unit: signed });
    }
  }
  if (slide.noise.length || slide.influence.length) drawNoise(panel(host, "noise", "10 · Noise and influence", "How much of the gradient is signal, and which rows of the batch pulled a prediction which way."), slide, state);
  const { plain, ...spent } = slide.seconds;
  const step = spent.step ?? spent.opening;
  if (step !== undefined) note(host, `Opening this step took ${fmt(step)} s${plain === undefined ? "" : `, of which the step alone ${fmt(plain)} s`}.`);
}
