// A table that sorts by a click on its head and shows a first part until asked for all.

import { capital, el, fmt, num } from "./dom.js";

/** A long name or path, which may break after its dots and slashes. */
export function breakable(value) {
  const parts = typeof value === "string" ? value.split(/(?<=[./])(?=.)/) : [value];
  return parts.length < 3 ? value : parts.flatMap((part, i) => (i ? [el("wbr"), part] : [part]));
}

/**
 * columns: [{key, label, text (value → text), number, title}]
 * options: caption, first, sort, find, stack (on a phone, cells below one another)
 * Returns update(rows).
 */
export function drawTable(host, columns, rows, options = {}) {
  let by = options.sort || null;
  let falling = options.falling !== false;
  let all = false;
  let word = "";
  const first = options.first || 12;
  const body = el("tbody");
  const more = el("button", { type: "button", class: "tool more" });
  const heads = columns.map((column) => {
    const button = el("button", { type: "button", title: column.title }, capital(column.label));
    const head = el("th", { scope: "col", class: column.number ? "number" : "" }, button);
    button.addEventListener("click", () => {
      falling = by === column.key ? !falling : Boolean(column.number);
      by = column.key;
      fill();
    });
    return head;
  });
  const compare = (a, b) => {
    if (typeof a === "string" || typeof b === "string") return String(a).localeCompare(String(b));
    return (Number.isFinite(num(a)) ? num(a) : -Infinity) - (Number.isFinite(num(b)) ? num(b) : -Infinity);
  };
  const fill = () => {
    columns.forEach((column, i) => {
      const sorted = column.key === by ? (falling ? "descending" : "ascending") : "none";
      heads[i].setAttribute("aria-sort", sorted);
    });
    let order = rows.filter((row) => !word || [...columns.map((c) => row[c.key]), row.text].some((value) => String(value).toLowerCase().includes(word)));
    if (by) order = [...order].sort((a, b) => (falling ? -1 : 1) * compare(a[by], b[by]));
    const seen = all ? order : order.slice(0, first);
    body.replaceChildren(...seen.map((row) => el("tr", { class: row.strong ? "strong" : "" },
      columns.map((column) => el("td", { class: column.number ? "number" : column.nowrap ? "nowrap" : "" },
        column.text ? column.text(row[column.key], row) : breakable(row[column.key]))))));
    more.textContent = all ? "Show fewer" : `Show all ${fmt(order.length)}`;
    more.hidden = order.length <= first;
    if (find) find.hidden = rows.length <= first;
  };
  more.addEventListener("click", () => {
    all = !all;
    fill();
  });
  const find = options.find && el("input", {
    type: "search", placeholder: options.find, "aria-label": options.find,
    oninput: (event) => { word = event.target.value.toLowerCase(); fill(); },
  });
  host.append(el("div", { class: "tablebox" },
    find,
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": options.caption || "Table" },
      el("table", { class: options.stack ? "data stack" : "data" },
        options.caption && el("caption", { class: "unseen" }, options.caption),
        el("thead", {}, el("tr", {}, heads)), body)),
    more));
  fill();
  return (next) => {
    rows = next;
    fill();
  };
}
