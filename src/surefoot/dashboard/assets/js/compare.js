// Runs side by side: loss by step, tokens or time; options that differ; what each came to, over each option.

import { capital, el, fmt, num } from "../draw/js/dom.js";
import { aligned, drawLines, smoothed } from "../draw/js/lines.js";
import { note, panel } from "../draw/js/parts.js";
import { duration, smoothing } from "../draw/js/run.js";
import { contents, follow } from "../draw/js/around.js";
import { toggle } from "../draw/js/figure.js";
import { frame } from "./frame.js";
import { drawScatter } from "./scatter.js";
import { ask, listen } from "./session.js";

const HUES = ["before", "after", "target", "purple", "sky", "other"];
const DASHES = [undefined, [7, 4], [2, 3]];
const AXES = { step: ["Steps", "step"], tokens: ["Tokens", "tokens"], time: ["Time", "time"] };
/** Between two readings of runs that go on, in ms. */
const PAUSE = 2000;

export async function compare() {
  const ids = new URLSearchParams(location.search).get("runs") || "";
  let axis = "step";
  let held = false;
  let found = await ask(`/api/compare?runs=${ids}&axis=${axis}`);
  const page = frame(`${fmt(found.runs.length)} runs compared`, { nav: true });
  const [top, curves, options, finals] = Array.from({ length: 4 }, () => el("div", { class: "part" }));
  page.main.append(top, curves, options, finals);
  top.append(el("section", { class: "headline", id: "runs", "aria-label": "Runs" }, el("p", { class: "eyebrow" }, "Compared"), el("h1", {}, found.runs.map((run) => run.name).join(", ").slice(0, 300) || "No run")));
  if (found.runs.length < 2) note(top.firstChild, "Choose two runs or more in the list of runs.");
  const styled = (i) => ({ colour: HUES[i % HUES.length], dash: DASHES[Math.floor(i / HUES.length) % DASHES.length] });

  const body = panel(curves, "curves", "Loss", "Mean −log p of the tokens the model should have said.");
  const choose = el("div", { class: "tools", role: "group", "aria-label": "Horizontal axis" }, Object.entries(AXES).map(([name, [text]]) => {
    const button = el("button", { type: "button", class: "tool", "aria-pressed": String(name === axis), id: `axis-${name}` }, text);
    button.addEventListener("click", async () => {
      axis = name;
      [...choose.children].forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      await read();
      rebuild();
    });
    return button;
  }));
  const smooth = smoothing(() => Math.max(0, ...found.runs.map((run) => run.state.step)), () => loss.update(lines()));
  const onlyHeld = toggle("Held-out loss", held, (on) => {
    held = on;
    rebuild();
  });
  body.append(el("div", { class: "bar" }, choose));
  const place = el("div");
  body.append(place);
  let loss = null;
  const span = (run) => {
    // The mean is over so many steps, whatever the axis.
    const x = run.mean.x;
    return x.length > 1 && run.state.step ? (smooth.span() * (x[x.length - 1] - x[0])) / run.state.step : 0;
  };
  const lines = () => aligned(found.runs.flatMap((run, i) => {
    const style = styled(i);
    if (held) return run.eval.x.length ? [{ name: run.name, ...style, x: run.eval.x, values: run.eval.y, points: true, wide: 2 }] : [];
    if (!span(run)) return [{ name: run.name, ...style, x: run.loss.x, values: run.loss.y, wide: 1.75 }];
    const pale = { name: `${run.name}, each step`, ...style, dash: undefined, x: run.loss.x, values: run.loss.y, wide: 1, pale: true };
    const mean = { name: run.name, ...style, x: run.mean.x, values: smoothed(run.mean, span(run)), wide: 2.25 };
    return found.runs.length > 4 ? [mean] : [pale, mean];
  }));
  const rebuild = () => {
    place.replaceChildren();
    const mark = axis === "time" ? duration : undefined;
    loss = drawLines(place, lines(), { label: `${held ? "Held-out loss" : "Training loss"} by ${AXES[axis][1]}, nats a token`, axis: AXES[axis][1], mark, height: 380, tools: [smooth.select, onlyHeld] });
  };
  rebuild();
  const draw = () => {
    options.replaceChildren();
    finals.replaceChildren();
    drawOptions(options, found);
    drawFinals(finals, found, styled);
    page.nav.replaceChildren(contents(page.main));
  };
  draw();
  follow(page.main, page.nav);

  async function read() {
    found = await ask(`/api/compare?runs=${ids}&axis=${axis}`);
  }
  const compared = new Map(found.runs.map((run) => [run.id, run.offset]));
  let due = null;
  listen(() => "/api/stream", {
    runs(changed) {
      if (!changed.some((run) => compared.has(run.id) && run.read > compared.get(run.id)) || due !== null) return;
      due = setTimeout(async () => {
        due = null;
        await read();
        found.runs.forEach((run) => compared.set(run.id, run.offset));
        loss.update(lines());
        draw();
      }, PAUSE);
    },
  }, (word) => page.stands(word === "live" && !found.runs.some((run) => run.state.live) ? "" : word));
}

/** Options that differ: a column a run. */
function drawOptions(host, found) {
  const names = Object.keys(found.differs);
  const body = panel(host, "options", "Options that differ", "What these runs were told, where it is not the same. All else is equal.");
  if (!names.length) {
    note(body, "They were all told the same.");
    return;
  }
  body.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Options that differ" }, el("table", { class: "data" },
    el("caption", { class: "unseen" }, "Options that differ"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Option"), found.runs.map((run) => el("th", { scope: "col" }, el("a", { href: `/run/${run.id}` }, run.name))))),
    el("tbody", {}, names.map((name) => {
      const values = found.runs.map((run) => found.differs[name][run.id]);
      const usual = mode(values);
      return el("tr", {}, el("th", { scope: "row" }, name), values.map((value) => el("td", { class: value === usual ? "" : "differs" }, value ?? "–")));
    })))));
}

function mode(values) {
  const counts = new Map();
  values.forEach((value) => counts.set(value, (counts.get(value) || 0) + 1));
  const most = Math.max(...counts.values());
  return most > 1 ? [...counts].find(([, count]) => count === most)[0] : undefined;
}

/** What each run came to, over each option that differs. */
function drawFinals(host, found, styled) {
  const heldOut = found.runs.some((run) => run.final.eval !== null);
  const value = (run) => (heldOut ? run.final.eval : run.final.train);
  const body = panel(host, "finals", "What they came to", heldOut ? "The last held-out loss of each run, over each option that differs." : "The mean training loss of each run's last steps (a twentieth of them), over each option that differs.");
  const sorted = found.runs.map((run, i) => ({ run, i })).sort((a, b) => (value(a.run) ?? Infinity) - (value(b.run) ?? Infinity));
  body.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Final losses" }, el("table", { class: "data" },
    el("caption", { class: "unseen" }, "Final losses"),
    el("thead", {}, el("tr", {}, ["Run", "State", "Steps", "Last held-out loss", "Training loss at the end"].map((text, i) => el("th", { scope: "col", class: i > 1 ? "number" : "" }, text)))),
    el("tbody", {}, sorted.map(({ run }) => el("tr", {}, el("th", { scope: "row" }, run.name), el("td", {}, capital(run.state.name)),
      [run.state.step, run.final.eval, run.final.train].map((x) => el("td", { class: "number" }, fmt(x)))))))));
  const grid = el("div", { class: "pair" });
  body.append(grid);
  for (const [name, values] of Object.entries(found.differs)) {
    const points = found.runs.map((run, i) => ({ name: run.name, x: values[run.id], y: num(value(run)), colour: styled(i).colour })).filter((point) => point.x !== undefined && Number.isFinite(point.y));
    if (new Set(points.map((point) => point.x)).size > 1) drawScatter(grid, points, { label: `Final loss by ${name}`, axis: name });
  }
}
