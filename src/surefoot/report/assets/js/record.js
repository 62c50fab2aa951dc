// What a run left besides its curves: the worst rows, the ledger of its data, settings, the log of events.

import { capital, el, fmt, pct, shown } from "./dom.js";
import { note, panel, tiles, whenever } from "./parts.js";
import { breakable, drawTable } from "./table.js";

export function drawWorst(host, run, ask) {
  const fill = () => {
    if (!run.worst.length) return;
    const names = { where: "row", cost: "cost, nats", share: "share of all", first: "first visit", last: "last visit", mean: "mean" };
    const body = panel(host, "worst", "Worst rows", "The rows that cost most: wrong labels, odd formats and hard questions gather here. Read them. First visit, last visit and mean are losses, in nats a token.");
    if (run.worst_note) note(body, `${capital(run.worst_note)}.`);
    for (const { title, remark, rows } of run.worst) {
      body.append(el("h3", {}, title));
      note(body, remark);
      const place = (where) => (ask.row ? el("button", { type: "button", class: "link", onclick: () => ask.row(where) }, breakable(where)) : breakable(where));
      const words = (where, row) => [place(where), row.text ? el("div", { class: "words" }, row.text) : ""];
      drawTable(body, Object.keys(rows[0]).filter((key) => key !== "text").map((key) => {
        if (key === "where") return { key, label: names.where, text: words };
        const number = rows.every((row) => row[key] === null || typeof row[key] === "number");
        return { key, label: names[key] || key.replaceAll("_", " "), number, text: (v) => (number ? (key === "share" ? pct : fmt)(v) : v !== null && typeof v === "object" ? JSON.stringify(v) : v) };
      }), rows, { caption: title, first: 10, find: "Find a row" });
    }
  };
  if (ask.worst) return ask.worst(host, fill);
  fill();
  return null;
}

const SETS = { train: "Training data", eval: "Held-out data" };

export function drawLedger(host, run) {
  const sets = Object.entries(run.config.data || {}).filter(([, set]) => set && set.ledger);
  if (!sets.length) return;
  const body = panel(host, "ledger", "Data ledger", "What became of every row: kept, cut or dropped, and why. Nothing is lost without a word.");
  for (const [name, { ledger }] of sets) {
    body.append(el("h3", {}, `${SETS[name] || capital(name)}: ${ledger.source || ""}`), ledger.shape && el("p", { class: "remark" }, `Read as ${ledger.shape}`) || "");
    tiles(body, ["rows", "examples", "prompt_tokens", "supervised_tokens", "longest", "duplicates"]
      .filter((key) => ledger[key] !== undefined).map((key) => [key.replaceAll("_", " "), fmt(ledger[key])]));
    const rows = [];
    for (const [kind, label] of [["dropped", "dropped"], ["noted", "kept, but"]]) {
      for (const [reason, places] of Object.entries(ledger[kind] || {})) {
        rows.push({ kind: label, reason, count: (ledger.counts || {})[reason] ?? places.length, where: places.slice(0, 5).join(", ") });
      }
    }
    for (const [token, count] of Object.entries(ledger.turn_ends || {})) rows.push({ kind: "turns end with", reason: shown(token), count, where: "" });
    if (rows.length) {
      drawTable(body, [{ key: "kind", label: "became", text: capital }, { key: "reason", label: "what" }, { key: "count", label: "rows", number: true, text: (x) => fmt(x) }, { key: "where", label: "such as" }], rows, { caption: `Ledger of ${name}`, stack: true });
    }
  }
}

/** What the run was told and what it ran on; settings that were left alone say nothing and are left out. */
export function drawSettings(host, run) {
  const plain = (value) => (typeof value === "string" ? value : typeof value === "number" ? fmt(value) : JSON.stringify(value));
  const first = ["learning_rate", "optim", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "max_grad_norm", "seed"];
  const order = ({ part, key }) => (part === "config" && first.includes(key) ? first.indexOf(key) : first.length);
  const idle = (key) => key.startsWith("lora_") && !(run.config.config || {}).use_peft;
  const empty = (value) => value === null || value === false || (typeof value === "object" && !Object.keys(value).length);
  const rows = ["config", "model", "machine", "versions"].flatMap((part) => Object.entries(run.config[part] || {})
    .filter(([key, value]) => !empty(value) && !idle(key)).map(([key, value]) => ({ part, key, value: plain(value) })))
    .sort((a, b) => order(a) - order(b));
  if (!rows.length) return;
  const body = panel(host, "settings", "Settings", "What the run was told, and what it ran on. Options that are empty or off are left out.");
  drawTable(body, [{ key: "key", label: "setting" }, { key: "value", label: "value" }, { key: "part", label: "part of", text: capital }], rows,
    { caption: "Settings", first: 12, find: "Find a setting", stack: true });
}

export function drawEvents(host, run) {
  const rows = () => run.events.map((e) => ({ ...e, strong: e.type === "alert" }));
  return whenever(host, () => (run.events.length ? "events" : null), () => {
    const body = panel(host, "events", "Events", "Everything the run recorded besides its steps.");
    const update = drawTable(body, [
      { key: "step", label: "step", number: true, text: (x) => fmt(x) },
      { key: "type", label: "what" },
      { key: "time", label: "when (UTC)", text: (t) => (t === null ? "" : new Date(t * 1000).toISOString().slice(0, 19).replace("T", "\u00a0")) },
      { key: "text", label: "details", text: capital },
    ], rows(), { caption: "Events", first: 15, find: "Find an event", stack: true });
    let told = run.events.length;
    return () => {
      if (run.events.length === told) return;
      told = run.events.length;
      update(rows());
    };
  });
}
