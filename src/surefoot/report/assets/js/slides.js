// The slides of a run: choose one, see it opened.

import { el, fmt } from "./dom.js";
import { note } from "./parts.js";
import { drawSlide } from "./slide.js";

/**
 * list: [{step, because}]; load(step) → the slide's {slide, arrays}, or a promise of it
 * options: tag (of the headline), shown(): called when another slide is there, quiet: nothing is shown until one is chosen
 * Returns {open(step), update(list)}.
 */
export function drawSlides(host, list, load, options) {
  const place = el("div", { id: "slide" });
  const select = el("select", { id: "which", onchange: (event) => show(Number(event.target.value)) });
  const button = (text, label, by) => el("button", { type: "button", class: "tool", "aria-label": label, onclick: () => step(by) }, text);
  const chooser = el("div", { class: "chooser slides" }, el("label", { for: "which" }, "Slide"),
    button("‹", "Previous slide", -1), select, button("›", "Next slide", 1));
  let now = null;
  const step = (by) => {
    const i = list.findIndex((one) => one.step === now);
    show(list[(i + by + list.length) % list.length].step);
  };
  const show = (wanted) => {
    now = wanted;
    select.value = String(wanted);
    const fill = (data) => {
      if (now !== wanted) return;
      place.replaceChildren();
      drawSlide(place, data, options.tag);
      options.shown();
    };
    const found = load(wanted);
    if (!(found instanceof Promise)) return fill(found);
    place.setAttribute("aria-busy", "true");
    return found.then(fill, (error) => { place.replaceChildren(); note(place, `This slide cannot be shown: ${error.message}`); })
      .finally(() => place.removeAttribute("aria-busy"));
  };
  const update = (next) => {
    list = next;
    chooser.hidden = list.length < 2 && !options.quiet;
    const first = options.quiet && now === null ? [el("option", { value: "" }, `Choose one of ${fmt(list.length)} opened steps`)] : [];
    select.replaceChildren(...first, ...list.map((one) => el("option", { value: String(one.step) }, `Step ${fmt(one.step)}${one.because ? ` · ${one.because}` : ""}`)));
    select.value = now === null ? "" : String(now);
  };
  host.append(chooser, place);
  update(list);
  if (!options.quiet && list.length) show(list[0].step);
  const open = (wanted) => {
    show(wanted);
    place.parentElement.scrollIntoView();
  };
  return { open, update };
}
