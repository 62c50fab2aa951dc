// A report: header, contents, the run, the chosen slide.

import { contents, follow, themeButton } from "./around.js";
import { el, fmt, shown } from "./dom.js";
import { drawRun } from "./run.js";
import { drawSlide } from "./slide.js";

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
  let open = () => host.scrollIntoView();
  if (data.run) drawRun(main, { ...data.run, opened: data.slides.map(({ slide }) => slide.step), open: (index) => open(index) });
  const host = el("div", { id: "slide" });
  const show = (index) => {
    host.replaceChildren();
    // The run's name is the page's first heading; without a run, the slide's headline is.
    drawSlide(host, data.slides[index], data.run ? "h2" : "h1");
    nav.replaceChildren(contents(main));
  };
  if (data.slides.length > 1) {
    let shown = 0;
    const pick = (index) => {
      shown = (index + data.slides.length) % data.slides.length;
      select.value = String(shown);
      show(shown);
    };
    open = (index) => {
      pick(index);
      host.scrollIntoView();
    };
    const select = el("select", { id: "which", onchange: (event) => pick(Number(event.target.value)) },
      data.slides.map(({ slide }, i) => el("option", { value: String(i) }, `Step ${fmt(slide.step)} · ${slide.opened_because}`)));
    main.append(el("div", { class: "chooser slides" }, el("label", { for: "which" }, "Slide"),
      el("button", { type: "button", class: "tool", "aria-label": "Previous slide", onclick: () => pick(shown - 1) }, "‹"), select,
      el("button", { type: "button", class: "tool", "aria-label": "Next slide", onclick: () => pick(shown + 1) }, "›")));
  }
  main.append(host);
  if (data.slides.length) show(0);
  else nav.replaceChildren(contents(main));
  follow(main, nav);
}
