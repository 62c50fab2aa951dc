// The parts of a page: panels, tiles, notes.

import { capital, el } from "./dom.js";

/** A panel: a section with a title, one plain sentence of what it shows, and a body to fill. */
export function panel(host, id, title, caption) {
  const body = el("div", { class: "body" });
  host.append(el("section", { class: "panel", id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title),
    el("p", { class: "caption" }, caption),
    body));
  return body;
}

/** Numbers worth a large print: [[name, value, remark], ..]. */
export function tiles(host, list) {
  const kept = list.filter(Boolean);
  host.append(el("dl", { class: kept.length > 5 ? "tiles many" : "tiles" }, kept.map(([name, value, remark]) =>
    el("div", {}, el("dt", {}, capital(name)), el("dd", {}, printed(value)), remark && el("dd", { class: "remark" }, capital(remark))))));
}

/** "before → after" in one line where it can be: what was, small; what is, large. */
function printed(value) {
  const [was, is] = String(value).split(" → ");
  return is === undefined ? value : [el("span", { class: "was" }, `${was} →`), " ", el("span", { class: "is" }, is)];
}

export function note(host, ...text) {
  host.append(el("p", { class: "note" }, ...text));
}

export function arrow(before, after, text) {
  return after === null || after === undefined ? text(before) : `${text(before)} → ${text(after)}`;
}

/** A part whose panel comes when there is something to show, and is filled anew each time its key changes. */
export function whenever(host, key, fill) {
  let drawn = null;
  let update = null;
  const look = () => {
    const now = key();
    if (now === null) return;
    if (now === drawn) return update && update();
    host.replaceChildren();
    drawn = now;
    update = fill();
  };
  look();
  return look;
}
