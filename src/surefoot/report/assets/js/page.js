// The page: header, contents, the run, the chosen slide.

/** Draw one slide: {slide, arrays}. */
function drawSlide(host, data, tag) {
  const { slide } = data;
  const state = { position: slide.looked_at ?? 0, marks: [], panels: [], pick() {} };
  state.pick = (index) => {
    if (index < 0) return;
    state.position = index;
    state.marks.forEach((mark) => mark());
    state.panels.forEach((refill) => refill());
  };
  const each = (body, draw) => {
    const place = el("div");
    body.append(place);
    const refill = () => {
      place.replaceChildren();
      draw(place, slide.positions[state.position], data);
    };
    state.panels.push(refill);
    refill();
  };
  drawHeadline(host, slide, tag);
  drawBatch(panel(host, "batch", "1 · Batch", "What the model was shown. Grey tokens are the question and are not learned; the others are what it should have said, the warmer the more surprised it was."), slide, state);
  if (slide.positions.length) {
    const prediction = panel(host, "prediction", "2 · Prediction", "What the model thought comes next: before the update in blue, after it in orange. The loss says how far off it was: minus the logarithm of what it gave the right token.");
    choosePosition(prediction, slide, state);
    each(prediction, drawPrediction);
    each(panel(host, "error", "3 · Error", "Prediction minus truth, token by token: p − 1 for the right one, p for all the others, times the token's weight w in the step's mean. This column is where every gradient begins."), drawErrors);
    const head = panel(host, "head", "4 · Head rows", "Each token owns one row of the last weight matrix. Its gradient is its error times the hidden state h: the right token's row is pulled toward h, the others are pushed away.");
    each(head, drawHeadRows);
    drawHeadOfStep(head, slide.head);
  }
  drawBackward(panel(host, "backward", "5 · Backwards", "Backprop carries the error from the last layer to the first and tells every weight which way is down, and how steep. A long bar is a layer that could change the loss most."), slide);
  drawOptimizer(panel(host, "optimizer", "6 · Optimizer", "The gradient is only a direction. The optimizer decides how far each weight goes: from its gradient g, line by line, to its change Δ."), slide);
  if (slide.weights) drawWeights(panel(host, "weights", "7 · Weights", "All weights before and after the update. The two hills nearly always coincide: a step is a whisper to each weight. What is lost to rounding is too small a change for bf16 to write down."), slide.weights);
  if (slide.mountain) drawMountain(panel(host, "mountain", "8 · Mountain", "Loss is the altitude, the weights are where you stand. This is a cut through the landscape in the direction of the step: where the curve leaves the dashed slope, the step got less, or more, than the slope promised."), data);
  if (slide.positions.length) {
    const after = panel(host, "after", "9 · After", "The same question again: the right answer should be a little likelier. Part of that is the head's doing, part the body's.");
    each(after, drawAfter);
    drawWatched(after, slide);
    if (slide.promised !== null) {
      drawBars(after, { items: [{ label: "Promised", note: "by the slope", values: [slide.promised] }, { label: "Obtained", note: "by the step", values: [slide.obtained] }], series: [{ name: "change of the loss", colour: "before" }] },
        { label: "Change of the batch's loss: promised and obtained", unit: signed });
    }
  }
  if (slide.noise.length || slide.influence.length) drawNoise(panel(host, "noise", "10 · Noise and influence", "How much of the gradient is signal, and which rows of the batch pulled a prediction which way."), slide, state);
  const { plain, ...spent } = slide.seconds;
  const step = spent.step ?? spent.opening;
  if (step !== undefined) note(host, `Opening this step took ${fmt(step)} s${plain === undefined ? "" : `, of which the step alone ${fmt(plain)} s`}.`);
}

const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", theme);
  redraw();
}

function themeButton() {
  let theme = "auto";
  const button = el("button", { type: "button", class: "tool", id: "theme" }, "Theme: auto");
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % 3];
    button.textContent = `Theme: ${theme}`;
    setTheme(theme);
  });
  // Canvases are pictures: on paper they are drawn in the light theme, whatever the screen shows.
  addEventListener("beforeprint", () => setTheme("light"));
  addEventListener("afterprint", () => setTheme(theme));
  const print = matchMedia("print");
  print.addEventListener("change", () => setTheme(print.matches ? "light" : theme));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  return button;
}

function contents(main) {
  const links = [...main.querySelectorAll("section[id]")].map((section) => {
    const title = section.matches(".panel") && section.querySelector("h2");
    const text = title ? title.textContent : section.getAttribute("aria-label");
    return el("li", { class: title ? "" : "part" }, el("a", { href: `#${section.id}` }, text));
  });
  return el("ol", {}, links);
}

/** Marks in the contents which section is being read. */
function follow(main, nav) {
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

function start() {
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
