// Charts as inline SVG in percentages of their box: they need no redrawing when the window changes.

const MARKS = [
  "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
  "M-4-4h8v8h-8z",
  "M0-5.4L5 4h-10z",
  "M0-5.6L5.2 0L0 5.6L-5.2 0z",
  "M-5.2-1.6h3.6v-3.6h3.2v3.6h3.6v3.2h-3.6v3.6h-3.2v-3.6h-3.6z",
  "M0 5.4L5-4h-10z",
];

// Math.min(...values) fails on long lists
const extent = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

const mark = (series) => svg("path", { d: MARKS[series % MARKS.length], class: `mark c${series % 8}` });

const legend = (names) =>
  el("ul", { class: "legend" }, names.map((name, series) =>
    el("li", {}, svg("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" }, mark(series)), name)));

/*
 * Rates with their intervals, one line per series in each row.
 * rows: [{label, note, points: [{value, low, high} or null], open, color, isSmall}], shares of 1; `open` is called by a
 * click; rows that are small have no say in the scale.
 */
function intervalChart(rows, label) {
  const points = rows.flatMap((row) => row.points).filter((point) => point && isNumber(point.value));
  if (!points.length) return el("p", { class: "note" }, "No figures.");
  // a few utterances where everything is wrong would flatten all others: they are drawn at the edge, their numbers tell
  const large = rows.filter((row) => !row.isSmall).flatMap((row) => row.points).filter((point) => point && isNumber(point.value));
  const top = extent((large.length ? large : points).map((point) => point.high ?? point.value))[1] * 1.04 || 0.01;
  const x = (value) => `${(98 * Math.min(value, top) / top + 1).toFixed(3)}%`;
  const at = ticks(0, 100 * top);
  const line = 20;
  const row = ({ label: name, note, points, open, color = 0 }) => {
    const height = line * points.length + 6;
    const plot = svg("svg", { class: "plot", height, "aria-hidden": "true" }, [
      at.map((tick) => svg("line", { class: "grid", x1: x(tick / 100), x2: x(tick / 100), y1: 0, y2: height })),
      points.map((point, series) => {
        if (!point || !isNumber(point.value)) return null;
        const y = line * (series + 0.5) + 3;
        return [
          isNumber(point.low) && svg("line", { class: `whisker c${(color + series) % 8}`, x1: x(point.low), x2: x(point.high), y1: y, y2: y }),
          svg("svg", { x: x(point.value), y, overflow: "visible" }, mark(color + series)),
        ];
      }),
    ]);
    const values = points.map((point) => el("span", {}, point && isNumber(point.value) ? [
      el("b", {}, percent(point.value)),
      isNumber(point.low) && el("small", {}, ` ${percent(point.low)}–${percent(point.high)}`),
    ] : "–"));
    const cells = [
      el("span", { class: "label" }, name, note && el("small", {}, note)),
      plot,
      el("span", { class: "values" }, values),
    ];
    if (!open) return el("div", { class: "chart-row" }, cells);
    return el("button", { class: "chart-row", type: "button", on: { click: open }, title: "Show these utterances" }, cells);
  };
  const axis = svg("svg", { class: "plot axis", height: 18, "aria-hidden": "true" },
    at.map((tick) => svg("text", { x: x(tick / 100), y: 13, "text-anchor": tick ? "middle" : "start" }, short(tick))));
  return el("div", { class: "chart", role: "group", "aria-label": label },
    rows.map(row), el("div", { class: "chart-row axis-row" }, el("span", { class: "label" }, el("small", {}, "%")), axis, el("span")));
}

/*
 * Curves over x.
 * series: [{name, color, dash, points: [[x, y], ...]}]; a pointer on the chart reads the values there.
 */
function lineChart(series, { title, note, logarithmic, xTitle }) {
  const shown = series
    .map((one) => ({ ...one, points: one.points.filter(([, y]) => isNumber(y) && (!logarithmic || y > 0)) }))
    .filter((one) => one.points.length);
  if (!shown.length) return null;
  const scale = logarithmic ? Math.log10 : (value) => value;
  const xs = shown.flatMap((one) => one.points.map(([x]) => x));
  const ys = shown.flatMap((one) => one.points.map(([, y]) => scale(y)));
  const [left, right] = extent(xs);
  let [bottom, top] = extent(ys);
  if (top === bottom) [bottom, top] = [bottom - 0.5, top + 0.5];
  const margin = 0.06 * (top - bottom);
  [bottom, top] = [bottom - margin, top + margin];
  const fx = (x) => (x - left) / (right - left || 1);
  const fy = (y) => 1 - (scale(y) - bottom) / (top - bottom);
  const yTicks = logarithmic
    ? ticks(bottom, top).filter((tick) => Number.isInteger(tick)).map((tick) => 10 ** tick)
    : ticks(bottom, top);
  if (logarithmic && yTicks.length < 2) {
    yTicks.length = 0;
    for (const tick of ticks(bottom, top)) yTicks.push(Number((10 ** tick).toPrecision(2)));
  }
  const xTicks = ticks(left, right);
  const share = (value) => `${(100 * value).toFixed(3)}%`;
  const cursor = svg("line", { class: "cursor", x1: 0, x2: 0, y1: 0, y2: "100%", visibility: "hidden" });
  const curves = svg("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", width: "100%", height: "100%" },
    shown.map((one) => svg("polyline", {
      class: `curve c${one.color % 8} dash${one.dash || 0}${one.pale ? " pale" : ""}`,
      points: one.points.map(([x, y]) => `${(1000 * fx(x)).toFixed(1)},${(1000 * fy(y)).toFixed(1)}`).join(" "),
    })));
  const plot = svg("svg", { class: "lines", role: "img", "aria-label": title }, [
    yTicks.map((tick) => svg("line", { class: "grid", x1: 0, x2: "100%", y1: share(fy(tick)), y2: share(fy(tick)) })),
    curves,
    shown.filter((one) => one.points.length === 1).map((one) =>
      svg("svg", { x: share(fx(one.points[0][0])), y: share(fy(one.points[0][1])), overflow: "visible" }, mark(one.color))),
    cursor,
  ]);
  const reading = el("ul", { class: "reading" });
  const read = (x) => {
    reading.replaceChildren(...shown.map((one) => {
      const near = one.points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
      return el("li", {}, swatch(one), el("span", { class: "name" }, one.name), el("b", {}, short(near[1])),
        el("small", {}, ` at ${short(near[0])}`));
    }));
  };
  read(right);
  const move = (event) => {
    const box = plot.getBoundingClientRect();
    const place = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    cursor.setAttribute("x1", share(place));
    cursor.setAttribute("x2", share(place));
    cursor.setAttribute("visibility", "visible");
    read(left + place * (right - left));
  };
  plot.addEventListener("pointermove", move);
  plot.addEventListener("pointerdown", move);
  plot.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); read(right); });
  const labels = (values, place, axis, anchor) => values.map((tick) =>
    svg("text", axis === "y"
      ? { x: "100%", y: share(place(tick)), dx: -6, dy: 4, "text-anchor": "end" }
      : { x: share(place(tick)), y: 14, "text-anchor": anchor(place(tick)) }, short(tick)));
  const side = (at) => (at < 0.04 ? "start" : at > 0.96 ? "end" : "middle");
  return el("figure", { class: "card" }, [
    el("figcaption", {}, el("h3", {}, title), note && el("p", { class: "note" }, note)),
    el("div", { class: "line-chart" }, [
      svg("svg", { class: "y-axis axis", "aria-hidden": "true" }, labels(yTicks, fy, "y")),
      plot,
      el("span"),
      svg("svg", { class: "x-axis axis", height: 18, "aria-hidden": "true" }, labels(xTicks, fx, "x", side)),
    ]),
    el("p", { class: "x-title" }, xTitle),
    reading,
  ]);
}

const swatch = (one) =>
  svg("svg", { width: 22, height: 10, viewBox: "0 0 22 10", "aria-hidden": "true" },
    svg("line", { class: `curve c${one.color % 8} dash${one.dash || 0}${one.pale ? " pale" : ""}`, x1: 0, x2: 22, y1: 5, y2: 5 }));
