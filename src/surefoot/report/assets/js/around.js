// Around the panels: the theme, and the contents that follow the reader.

import { el } from "./dom.js";
import { redraw } from "./figure.js";

const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", theme);
  redraw();
}

export function themeButton(first = "auto", chosen = () => {}) {
  let theme = THEMES.includes(first) ? first : "auto";
  const button = el("button", { type: "button", class: "tool", id: "theme" }, `Theme: ${theme}`);
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % 3];
    button.textContent = `Theme: ${theme}`;
    setTheme(theme);
    chosen(theme);
  });
  if (theme !== "auto") setTheme(theme);
  // Canvases are pictures: on paper they are drawn in the light theme, whatever the screen shows.
  addEventListener("beforeprint", () => setTheme("light"));
  addEventListener("afterprint", () => setTheme(theme));
  const print = matchMedia("print");
  print.addEventListener("change", () => setTheme(print.matches ? "light" : theme));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  return button;
}

export function contents(main) {
  const links = [...main.querySelectorAll("section[id]")].map((section) => {
    const title = section.matches(".panel") && section.querySelector("h2");
    const text = title ? title.textContent : section.getAttribute("aria-label");
    return el("li", { class: title ? "" : "part" }, el("a", { href: `#${section.id}` }, text));
  });
  return el("ol", {}, links);
}

/** Marks in the contents which section is being read. */
export function follow(main, nav) {
  const mark = () => {
    const links = new Map([...nav.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
    const above = [...main.querySelectorAll("section[id]")].filter((section) => section.getBoundingClientRect().top < 160);
    const now = links.get((above[above.length - 1] || { id: "" }).id) || links.values().next().value;
    for (const link of links.values()) {
      if (link === now) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  addEventListener("scroll", () => requestAnimationFrame(mark), { passive: true });
  mark();
}
