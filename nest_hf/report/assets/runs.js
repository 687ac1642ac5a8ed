// The report on training runs.

const data = readJson("data");
const state = { x: "step", logarithmic: false, smooth: false, hidden: new Set() };
const LOGARITHMIC = new Set(["learning_rate", "loss", "lm_loss", "ctc_loss", "grad_norm", "codebook_perplexity"]);
const X_TITLES = { step: "update", epoch: "epoch" };

// An exponential mean that is not pulled to zero at the beginning.
function smoothed(points) {
  const keep = 0.9;
  let [sum, weight] = [0, 0];
  return points.map(([x, y]) => {
    [sum, weight] = [keep * sum + y, keep * weight + 1];
    return [x, sum / weight];
  });
}

function draw() {
  const at = state.x === "step" ? 0 : 1;
  const cards = data.charts.map(({ metric, title, note, series }) => lineChart(
    series.filter((one) => !state.hidden.has(one.run)).map((one) => {
      const points = one.points.filter((point) => isNumber(point[at])).map((point) => [point[at], point[2]]);
      return { ...one, color: one.run, points: state.smooth && one.points.length > 20 ? smoothed(points) : points };
    }),
    { title, note, logarithmic: state.logarithmic && LOGARITHMIC.has(metric), xTitle: X_TITLES[state.x] },
  )).filter(Boolean);
  charts.replaceChildren(...(cards.length ? cards : [el("p", { class: "note" }, "No run is chosen.")]));
}

const box = (label, change, checked, ...before) => el("label", {}, el("input", {
  type: "checkbox", checked, on: { change: (event) => { change(event.target.checked); draw(); } },
}), " ", before, label);
const charts = el("div", { class: "cards" });
const runs = el("fieldset", { class: "choices runs" }, el("legend", {}, "Runs"), data.runs.map((name, run) =>
  box(name, (on) => (on ? state.hidden.delete(run) : state.hidden.add(run)), true, swatch({ color: run }), " ")));
const xAxis = el("select", { on: { change: (event) => { state.x = event.target.value; draw(); } } },
  Object.entries(X_TITLES).map(([value, text]) => el("option", { value }, text)));
const choices = el("div", { class: "choices" }, el("label", {}, "Over ", xAxis),
  box("logarithmic", (on) => { state.logarithmic = on; }, false), box("smooth training", (on) => { state.smooth = on; }, false));

const sections = [
  section("curves", "Curves", null, data.runs.length > 1 && runs, choices, charts),
  data.rows.length > 0 && section("last", "Last validation", "Of eval_results.json, which is that of the model that was kept.",
    table(data.header, data.rows.map((row) => row.map((cell) => (typeof cell === "string" ? cell : short(cell)))))),
].filter(Boolean);

document.body.append(
  el("div", { class: "title" }, el("h1", {}, data.title), el("p", {}, plural(data.runs.length, "run"))),
  navigation("Sections", sections),
  el("main", {}, sections),
);
draw();
