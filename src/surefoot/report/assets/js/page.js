// A report: header, contents, the run, the chosen slide.

import { contents, follow, themeButton } from "./around.js";
import { el } from "./dom.js";
import { drawRun } from "./run.js";
import { drawSlides } from "./slides.js";

export function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const nav = el("nav", { class: "contents", "aria-label": "Contents" });
  const main = el("main", { id: "main" });
  document.getElementById("page").append(
    el("a", { class: "skip", href: "#main" }, "Skip to the report"),
    el("header", { class: "top" }, el("span", { class: "brand" }, "surefoot"), el("span", { class: "title" }, data.title),
      el("div", { class: "tools" }, themeButton(), el("button", { type: "button", class: "tool", onclick: () => print() }, "Print"))),
    el("div", { class: "columns" }, nav, main),
    el("footer", {}, "One file, nothing from the network: every number shown is inside. Hover or use the arrow keys to read a plot, drag to zoom, double click to see all."));
  const list = data.slides.map(({ slide }) => ({ step: slide.step, because: slide.opened_because }));
  const load = (step) => data.slides.find(({ slide }) => slide.step === step);
  let slides = null;
  // The run's name is the page's first heading; without a run, the slide's headline is.
  const drawn = (host) => {
    if (list.length) slides = drawSlides(host, list, load, { tag: data.run ? "h2" : "h1", shown: () => nav.replaceChildren(contents(main)) });
  };
  if (data.run) drawRun(main, { ...data.run, slides: list, open: (step) => slides.open(step) }, {}, drawn);
  else drawn(main);
  nav.replaceChildren(contents(main));
  follow(main, nav);
}
