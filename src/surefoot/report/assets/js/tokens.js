// The tokens of an example as a strip of text: prompt grey, learned tokens coloured by −log p.

import { el, fmt, num, pct, shown } from "./dom.js";

/** tokens: [{text, id, loss, loss_after}]; options: after (which loss colours), chosen, pick(k), has(k) for the kth target */
export function drawTokens(host, tokens, options) {
  let k = -1;
  const boxes = tokens.map((token) => {
    const learned = token.loss !== null && token.loss !== undefined;
    if (learned) k += 1;
    const target = k;
    const loss = num(options.after ? token.loss_after : token.loss);
    const words = learned
      ? `${shown(token.text)} · id ${token.id} · −log p ${fmt(token.loss)} (p ${pct(Math.exp(-num(token.loss)))})` +
        (token.loss_after === null ? "" : ` → ${fmt(token.loss_after)} (p ${pct(Math.exp(-num(token.loss_after)))})`)
      : `${shown(token.text)} · id ${token.id} · prompt: not learned`;
    const can = learned && options.has(target);
    const box = el(can ? "button" : "span", {
      type: can ? "button" : undefined,
      class: `token ${learned ? "learned" : "prompt"} ${learned && options.chosen === target ? "chosen" : ""}`,
      "data-words": words,
      "aria-label": can ? words : undefined,
      "aria-pressed": can ? String(options.chosen === target) : undefined,
      onclick: can ? () => options.pick(target) : undefined,
    }, visible(token.text));
    if (learned) box.style.setProperty("--heat", String(Math.min(1, (Number.isFinite(loss) ? loss : 8) / 8) ** 0.6));
    return [box, token.text.includes("\n") && el("br")];
  });
  const strip = el("div", { class: "tokens" }, boxes);
  const tip = el("div", { class: "tip", hidden: true });
  const say = (event) => {
    const box = event.target.closest("[data-words]");
    tip.hidden = !box;
    if (!box) return;
    tip.textContent = box.dataset.words;
    const [at, around] = [box.getBoundingClientRect(), strip.getBoundingClientRect()];
    tip.style.left = `${Math.max(0, Math.min(at.left - around.left, around.width - tip.offsetWidth))}px`;
    tip.style.top = `${at.top - around.top - tip.offsetHeight - 6}px`;
  };
  for (const name of ["pointerover", "pointerdown", "focusin"]) strip.addEventListener(name, say);
  for (const name of ["pointerleave", "focusout"]) strip.addEventListener(name, () => { tip.hidden = true; });
  host.append(el("div", { class: "plot" }, strip, tip));
}

/** A token's text as it stands in the strip: spaces stay, line ends and unseen characters are spelled. */
function visible(text) {
  const spelled = shown(text);
  return spelled.replace(/␣/g, "\u00a0");
}
