// What is around every page: the bar at the top, the theme that is remembered, keys, and what stands in the way.

import { themeButton } from "../draw/js/around.js";
import { el } from "../draw/js/dom.js";

const THEME = "surefoot-theme";

function remembered() {
  try {
    return localStorage.getItem(THEME) || "auto";
  } catch {
    return "auto";
  }
}

function remember(theme) {
  try {
    localStorage.setItem(THEME, theme);
  } catch {
    // a browser that keeps nothing: the theme is the system's at the next page
  }
}

const WORDS = { live: "Live", lost: "Trying to reach the server …", gone: "This run's folder is gone", locked: "Locked" };

/** The bar and the page's body: {main, nav, title, stands(word)}. Without `nav` the body has one column. */
export function frame(title, { nav = false, tools = [] } = {}) {
  const contents = nav && el("nav", { class: "contents", "aria-label": "Contents" });
  const main = el("main", { id: "main" });
  const stand = el("span", { class: "line", role: "status" });
  const heading = el("span", { class: "title" }, title);
  document.getElementById("page").replaceChildren(
    el("a", { class: "skip", href: "#main" }, "Skip to the content"),
    el("header", { class: "top" }, el("a", { class: "brand", href: "/" }, "surefoot"), heading, stand,
      el("div", { class: "tools" }, tools, themeButton(remembered(), remember), el("button", { type: "button", class: "tool", onclick: () => help() }, "Keys"))),
    el("div", { class: nav ? "columns" : "wide" }, contents, main));
  document.title = `${title} · surefoot`;
  return {
    main, nav: contents, heading,
    stands(word) {
      stand.textContent = WORDS[word] || "";
      stand.dataset.line = word;
      if (word === "locked") locked("The session has ended.");
    },
  };
}

/** In place of a page: why there is none. */
export function locked(why) {
  const { main } = frame("Locked");
  main.append(el("section", { class: "headline" }, el("h1", {}, "This page needs its key"),
    el("p", { class: "caption" }, `${why} Open the link that `, el("code", {}, "surefoot ui"), " prints in your terminal; it has the key."),
    el("p", { class: "remark" }, "The key lets nobody but you look at your runs, not even other programs' pages in this browser.")));
}

export function failed(title, why) {
  const { main } = frame(title);
  main.append(el("section", { class: "headline" }, el("h1", {}, title), el("p", { class: "caption" }, why), el("p", {}, el("a", { href: "/" }, "All runs"))));
}

const keys = new Map();

/** A key of the page, and what it does in words. */
export function key(name, does, act) {
  keys.set(name, { does, act });
}

function help() {
  const box = el("dialog", { class: "box", "aria-labelledby": "keys-title" },
    el("div", { class: "bar" }, el("h2", { id: "keys-title" }, "Keys"), el("button", { type: "button", class: "tool", onclick: () => box.close() }, "Close")),
    el("table", { class: "data" }, el("tbody", {}, [...keys].map(([name, { does }]) => el("tr", {}, el("td", {}, el("kbd", {}, name)), el("td", {}, does))))));
  opened(box);
}

/** Show a dialog, and take it away when it is closed. */
export function opened(box) {
  box.addEventListener("close", () => box.remove());
  box.addEventListener("click", (event) => event.target === box && box.close());
  document.body.append(box);
  box.showModal();
}

key("?", "These keys", help);
key("t", "Theme: light, dark, as the system", () => document.getElementById("theme").click());
key("h", "All runs", () => { location.href = "/"; });

addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, [role=textbox]");
  const found = keys.get(event.key);
  if (!found || document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey || (typing && event.key !== "Escape")) return;
  event.preventDefault();
  found.act();
});
