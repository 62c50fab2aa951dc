// The list of runs: state, losses, sparkline, options that differ; filtered, sorted, chosen to be compared.

import { capital, el, fmt, num } from "../draw/js/dom.js";
import { duration, standing } from "../draw/js/run.js";
import { frame, key } from "./frame.js";
import { listen } from "./session.js";

const SVG = "http://www.w3.org/2000/svg";
const STATES = ["training", "starting", "finished", "stopped early", "interrupted", "stopped"];
const SORTS = {
  newest: ["Newest first", (run) => -(run.state.since ?? 0)],
  name: ["Name", (run) => run.name],
  state: ["State", (run) => STATES.indexOf(run.state.name)],
  best: ["Best loss", (run) => (run.best ? run.best.loss : Infinity)],
  loss: ["Last loss", (run) => run.loss ?? Infinity],
  left: ["Time left", (run) => run.state.seconds_left ?? Infinity],
};

export async function list() {
  const compare = el("a", { class: "tool strong", id: "compare", hidden: true }, "Compare");
  const page = frame("Runs", { tools: [compare] });
  const runs = new Map();
  const chosen = new Set();
  const cards = new Map();
  let differs = {};
  let count = null;
  let by = "newest";
  const states = new Set();

  const find = el("input", { type: "search", id: "find", placeholder: "Find by name, tag, model or option", "aria-label": "Find a run", oninput: () => show() });
  const sort = el("select", { id: "sort", "aria-label": "Sort by", onchange: () => { by = sort.value; show(); } });
  const filter = el("div", { class: "tools", role: "group", "aria-label": "Show only runs that are" });
  const body = el("div", { class: "runs", role: "list" });
  const empty = el("p", { class: "caption", role: "status" });
  page.main.append(el("section", { class: "headline" }, el("h1", {}, "Runs"), el("div", { class: "finder" }, find, sort, filter)), empty, body);

  const options = (run) => Object.entries(differs).filter(([, values]) => values[run.id] !== undefined).map(([name, values]) => [name, values[run.id]]);
  const words = (run) => [run.name, run.model, run.state.name, ...run.tags, ...options(run).map(([name, value]) => `${name} ${value}`)].join(" ").toLowerCase();
  const rank = (run) => {
    if (SORTS[by]) return SORTS[by][1](run);
    const value = (differs[by] || {})[run.id];
    return value !== undefined && Number.isFinite(Number(value)) ? Number(value) : String(value ?? "");
  };
  const before = (a, b) => {
    const [x, y] = [rank(a), rank(b)];
    return (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true })) || a.name.localeCompare(b.name);
  };

  function show() {
    const word = find.value.trim().toLowerCase();
    const seen = [...runs.values()].filter((run) => (!states.size || states.has(run.state.name)) && words(run).includes(word)).sort(before);
    const nodes = seen.map((run) => cards.get(run.id).node);
    if (nodes.length !== body.children.length || nodes.some((node, i) => node !== body.children[i])) {
      const focus = document.activeElement;
      body.replaceChildren(...nodes);
      if (focus !== document.activeElement && body.contains(focus)) focus.focus({ preventScroll: true });
    }
    empty.textContent = seen.length ? "" : count === null ? "Looking for runs …" : runs.size ? "No run is like that." : count ? `Reading ${fmt(count)} runs …` : "There is no run here yet. Start one with surefoot train; it will appear by itself.";
    empty.hidden = !empty.textContent;
    compare.hidden = chosen.size < 2;
    compare.textContent = `Compare ${fmt(chosen.size)} runs`;
    compare.href = `/compare?runs=${[...chosen].join(",")}`;
  }
  function offer() {
    const now = [...new Set([...runs.values()].map((run) => run.state.name))].sort((a, b) => STATES.indexOf(a) - STATES.indexOf(b));
    filter.replaceChildren(...(now.length > 1 ? now : []).map((name) => {
      const button = el("button", { type: "button", class: "tool", "aria-pressed": String(states.has(name)) }, capital(name));
      button.addEventListener("click", () => {
        if (!states.delete(name)) states.add(name);
        button.setAttribute("aria-pressed", String(states.has(name)));
        show();
      });
      return button;
    }));
    for (const name of [...states]) if (!now.includes(name)) states.delete(name);
    sort.replaceChildren(...Object.entries(SORTS).map(([value, [text]]) => el("option", { value }, text)),
      ...Object.keys(differs).map((name) => el("option", { value: name }, `Option ${name}`)));
    if (![...sort.options].some((option) => option.value === by)) by = "newest";
    sort.value = by;
  }
  function put(run) {
    const known = cards.get(run.id) || card(run.id, (on) => {
      if (on) chosen.add(run.id);
      else chosen.delete(run.id);
      show();
    });
    cards.set(run.id, known);
    known.fill(run, options(run));
  }
  let due = false;
  const soon = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      offer();
      show();
    });
  };
  soon();
  listen(() => "/api/stream", {
    found(number) {
      count = number;
      soon();
    },
    runs(changed) {
      for (const run of changed) {
        runs.set(run.id, run);
        put(run);
      }
      soon();
    },
    gone(ids) {
      for (const id of ids) [runs, cards, chosen].forEach((kept) => kept.delete(id));
      soon();
    },
    differs(found) {
      differs = found;
      runs.forEach(put);
      soon();
    },
  }, page.stands);
  key("/", "Find a run", () => find.focus());
  key("j", "The next run", () => walk(body, 1));
  key("k", "The run before", () => walk(body, -1));
  key("x", "Choose the run, to compare it", () => document.activeElement.closest(".run") && document.activeElement.closest(".run").querySelector("input").click());
  key("c", "Compare the chosen runs", () => !compare.hidden && compare.click());
  key("Escape", "Find all again", () => { find.value = ""; find.blur(); show(); });
}

function walk(body, by) {
  const links = [...body.querySelectorAll(".run h2 a")];
  const now = links.findIndex((link) => link.closest(".run").contains(document.activeElement));
  const next = links[Math.max(0, Math.min(links.length - 1, now + by))];
  if (next) next.focus();
}

/** A run as a card, which is filled anew when it has changed. */
function card(id, choose) {
  const box = el("input", { type: "checkbox", onchange: (event) => choose(event.target.checked) });
  const link = el("a", { href: `/run/${id}` });
  const chips = el("div", { class: "chips" });
  const stand = el("div");
  const facts = el("dl", { class: "facts" });
  const spark = document.createElementNS(SVG, "svg");
  spark.setAttribute("class", "spark");
  spark.setAttribute("role", "img");
  const node = el("article", { class: "run", role: "listitem", id: `run-${id}` }, box,
    el("div", { class: "who" }, el("h2", {}, link), chips), stand, facts, spark);
  const fill = (run, options) => {
    link.textContent = run.name;
    box.setAttribute("aria-label", `Choose ${run.name}, to compare it`);
    chips.replaceChildren(...[...run.tags.map((tag) => el("span", { class: "chip tag" }, tag)), run.model && el("span", { class: "chip" }, run.model),
      ...options.map(([name, value]) => el("span", { class: "chip differs", title: "This option is not the same in all runs" }, `${name} `, el("b", {}, short(value)))),
      run.alerts > 0 && el("span", { class: "chip alert" }, `${fmt(run.alerts)} alert${run.alerts === 1 ? "" : "s"}`)].filter(Boolean));
    stand.replaceChildren(standing(run.state));
    const { state } = run;
    const fact = (name, value, remark) => el("div", {}, el("dt", {}, name), el("dd", {}, value, remark && el("span", { class: "remark" }, ` ${remark}`)));
    facts.replaceChildren(
      fact("Steps", `${fmt(state.step)}${state.total_steps ? ` of ${fmt(state.total_steps)}` : ""}`),
      fact("Last loss", fmt(run.loss)),
      fact("Best loss", run.best ? fmt(run.best.loss) : "–", run.best && `${run.best.of === "eval" ? "held out, " : ""}step ${fmt(run.best.step)}`),
      fact(state.live ? "Time left" : "Ended", state.live ? (state.seconds_left ? duration(state.seconds_left) : "–") : state.since ? ago(state.since) : "–"));
    sketch(spark, run.spark, run.name);
  };
  return { node, fill };
}

function short(value) {
  const text = Number.isFinite(Number(value)) && value !== "" ? fmt(Number(value)) : String(value);
  return text.length > 32 ? `${text.slice(0, 31)}…` : text;
}

function ago(time) {
  const seconds = Date.now() / 1000 - time;
  return seconds < 60 ? "just now" : `${duration(seconds)} ago`;
}

/** The loss so far, as a line without axes: on a log scale where it fell far. */
function sketch(svg, { x, y }, name) {
  const points = x.map((at, i) => [num(at), num(y[i])]).filter(([, v]) => Number.isFinite(v));
  const positive = points.every(([, v]) => v > 0);
  const high = Math.max(...points.map(([, v]) => v));
  const low = Math.min(...points.map(([, v]) => v));
  const log = positive && high > 20 * low;
  const scale = (v) => (log ? Math.log(v) : v);
  const [from, to] = [scale(low), scale(high)];
  const width = points.length > 1 ? points[points.length - 1][0] - points[0][0] : 1;
  const place = ([at, v]) => `${(((at - points[0][0]) / width) * 158 + 1).toFixed(1)},${(43 - ((scale(v) - from) / (to - from || 1)) * 42).toFixed(1)}`;
  svg.setAttribute("viewBox", "0 0 160 44");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-label", points.length ? `Training loss of ${name}, from ${fmt(points[0][1])} to ${fmt(points[points.length - 1][1])}` : `${name} has no step yet`);
  const line = svg.firstChild || svg.appendChild(document.createElementNS(SVG, "polyline"));
  line.setAttribute("points", points.length > 1 ? points.map(place).join(" ") : "");
}
