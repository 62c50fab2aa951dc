// A run's page: drawn whole once, then brought up to date by what the stream tells.

import { contents, follow } from "../draw/js/around.js";
import { el } from "../draw/js/dom.js";
import { note, panel } from "../draw/js/parts.js";
import { drawRun, duration } from "../draw/js/run.js";
import { drawSlides } from "../draw/js/slides.js";
import { frame, key } from "./frame.js";
import { readRow } from "./row.js";
import { ask, listen } from "./session.js";

/** Between two drawings of a run that steps fast, in ms. */
const PAUSE = 400;
/** Steps that came one by one, from which on the thinned columns are asked for anew. */
const MOST_TAIL = 2000;

export async function run(id) {
  const api = `/api/runs/${id}`;
  let found = await ask(api);
  const page = frame(found.name, { nav: true, tools: [el("a", { class: "tool", href: `${api}/report`, download: `${found.name.replaceAll("/", "-")}.html` }, "Save as a file")] });
  const state = { ...found, worst: [] };
  let tail = 0;
  let slides = null;
  let draw = () => {};
  state.open = (step) => slides.open(step);
  const listed = () => state.slides.map((step) => ({ step, because: because(state, step) }));
  const asked = {
    window: (names, low, high) => ask(`${api}/curves?names=${names.join(",")}&low=${low}&high=${high}`),
    layer: (layer) => ask(`${api}/layers/${layer}`),
    row: (where) => readRow(api, where),
    worst: (host, fill) => worstRows(host, fill, api, state),
  };
  const drawAll = () => {
    page.main.replaceChildren();
      const shown = Object.create(state, { slides: { get: listed } });
    draw = drawRun(page.main, shown, asked, (host) => {
      slides = opened(host, state, listed, api, () => page.nav.replaceChildren(contents(page.main)));
      return slides.again;
    });
    page.nav.replaceChildren(contents(page.main));
  };
  drawAll();
  follow(page.main, page.nav);
  titled(page, state);

  let due = null;
  let last = 0;
  const soon = () => {
    if (due !== null) return;
    due = setTimeout(() => {
      [due, last] = [null, performance.now()];
      draw();
      titled(page, state);
      if (page.nav.querySelectorAll("a").length !== page.main.querySelectorAll("section[id]").length) page.nav.replaceChildren(contents(page.main));
    }, Math.max(0, PAUSE - (performance.now() - last)));
  };
  const anew = async () => {
    found = await ask(api);
    Object.assign(state, found);
    tail = 0;
    soon();
  };
  const line = listen(() => `${api}/stream?file=${encodeURIComponent(state.file)}&from=${state.offset}`, {
    async more(told) {
      if (told.offset <= state.offset) return; // a browser that lost the line may be told twice
      merge(state, told);
      tail += told.rows.step ? told.rows.step.length : 0;
      soon();
      if (tail > MOST_TAIL) await anew();
      else if (told.heat && state.heat && told.heat.every !== state.heat.every) {
        state.heat = await ask(`${api}/heat`);
        soon();
      }
    },
    state(told) {
      state.state = told;
      soon();
    },
    async anew() {
      line.close();
      await anew();
      line.open();
    },
  }, (word) => page.stands(word === "live" && !state.state.live ? "" : word));
  key("o", "Open the next step under the microscope", () => document.getElementById("open-next") && document.getElementById("open-next").click());
  key("[", "The part above", () => move(page.main, -1));
  key("]", "The part below", () => move(page.main, 1));
}

function move(main, by) {
  const sections = [...main.querySelectorAll("section[id]")];
  const now = sections.filter((section) => section.getBoundingClientRect().top < 100).length - 1;
  const next = sections[Math.max(0, Math.min(sections.length - 1, now + by))];
  if (next) next.scrollIntoView();
}

function because(state, step) {
  const told = state.events.find((event) => event.type === "slide" && event.step === step);
  return told ? (told.text.split("\nOpened because: ")[1] || "") : "";
}

function titled(page, { name, state }) {
  const share = state.live && state.total_steps ? `${Math.floor((100 * state.step) / state.total_steps)} % · ` : "";
  document.title = `${share}${name} · surefoot`;
  page.heading.textContent = state.live && state.seconds_left ? `${name} · ${duration(state.seconds_left)} left` : name;
}

/** Add to a run what has come since. */
function merge(run, told) {
  run.offset = told.offset;
  run.steps = told.steps;
  const steps = told.rows.step || [];
  if (steps.length) {
    for (const [name, values] of Object.entries(told.rows)) {
      if (["step", "time", "epoch"].includes(name)) continue;
      const curve = (run.curves[name] ||= { x: [], y: [] });
      curve.x.push(...steps);
      curve.y.push(...values);
    }
    if (told.rows.loss) {
      const mean = (run.means.loss ||= { x: [], y: [], n: [] });
      mean.x.push(...steps);
      mean.y.push(...told.rows.loss);
      mean.n.push(...steps.map(() => 1));
    }
    const row = (i) => Object.fromEntries(Object.entries(told.rows).map(([name, values]) => [name, values[i]]));
    run.last = row(steps.length - 1);
    if (run.first.step === undefined) run.first = row(0);
  }
  series(run.evals, told.evals, "name", "metrics");
  series(run.watches, told.watches, "prompt", "p");
  run.samples.push(...told.samples);
  run.events.push(...told.events);
  if (told.slides) run.slides = told.slides;
  if (!told.heat) return;
  if (!run.heat) run.heat = told.heat;
  else if (told.heat.every === run.heat.every) {
    run.heat.step.push(...told.heat.step);
    for (const name of ["grad_norm", "update_ratio", "lost_share"]) run.heat[name].forEach((line, layer) => line.push(...told.heat[name][layer]));
  }
}

/** Series that have grown: new values after the old ones, absent ones null. */
function series(old, grown, key, part) {
  for (const one of grown) {
    const known = old.find((other) => other[key] === one[key]);
    if (!known) {
      old.push(one);
      continue;
    }
    for (const name of new Set([...Object.keys(known[part]), ...Object.keys(one[part])])) {
      const before = (known[part][name] ||= known.step.map(() => null));
      before.push(...(one[part][name] || one.step.map(() => null)));
    }
    known.step.push(...one.step);
  }
}

/** The slides, and the one thing that can be done from here: to open the next step. */
function opened(host, state, listed, api, shown) {
  const body = panel(host, "slides", "Opened steps", "Any update can be opened: the prediction, the error, backprop, the optimizer's arithmetic, the weights, the loss around them, and the prediction after.");
  const says = el("span", { class: "remark", role: "status" });
  const button = el("button", { type: "button", class: "tool", id: "open-next" }, "Open the next step");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      says.textContent = (await ask(`${api}/open-next-step`, "POST")).done;
    } catch (error) {
      says.textContent = error.message;
    }
    button.disabled = false;
  });
  const row = el("div", { class: "bar" }, button, says);
  const how = el("p", { class: "note" });
  body.append(row, how);
  const place = el("div");
  host.append(place);
  let slides = null;
  let told = "";
  const again = () => {
    row.hidden = !(state.state.live && state.may_open);
    const allowed = state.may_open || !state.state.live;
    how.textContent = state.slides.length ? "" : "No step has been opened yet.";
    if (!allowed) how.textContent += " A run that is started with --slides_from_ui can be asked for its next step here; by hand: make the file open-next-step in its folder.";
    how.hidden = !how.textContent;
    if (!state.slides.length) return;
    const now = JSON.stringify(listed());
    if (now === told) return;
    told = now;
    if (slides) slides.update(listed());
    else slides = drawSlides(place, listed(), (step) => ask(`${api}/slides/${step}`), { tag: "h2", shown, quiet: true });
    says.textContent = "";
  };
  again();
  return { again, open: (step) => slides && slides.open(step) };
}

/** The worst rows are found by reading all events: when somebody comes to them, and again when asked. */
function worstRows(host, fill, api, state) {
  let read = null;
  const again = el("button", { type: "button", class: "tool", hidden: true, onclick: () => look() }, "Read again: the run has gone on");
  const wait = (text) => {
    host.replaceChildren();
    note(panel(host, "worst", "Worst rows", "The rows that cost most: wrong labels, odd formats and hard questions gather here."), text);
  };
  const look = async () => {
    try {
      const found = await ask(`${api}/worst`);
      Object.assign(state, { worst: found.worst, worst_note: found.worst_note });
      read = found.read;
      host.replaceChildren();
      if (found.worst.length) fill();
      else wait(found.problems[0] || "No step has told of its rows yet.");
    } catch (error) {
      wait(error.message);
    }
    host.querySelector(".body").prepend(again);
    again.hidden = true;
  };
  wait("Reading every step …");
  const seen = new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting) return;
    seen.disconnect();
    look();
  }, { rootMargin: "600px" });
  seen.observe(host);
  return () => { again.hidden = read === null || state.offset <= read; };
}
