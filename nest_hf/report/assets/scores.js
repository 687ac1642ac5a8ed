// The report on scores.

const data = readJson("data");
data.hypotheses.forEach((one) => { one.facts ??= data.hypotheses[0].facts; one.steps ??= data.hypotheses[0].steps; });
const names = data.systems.map((system) => system.name);
const RATE_NAMES = { cer: "CER", mer: "MER", wer: "WER", kwer: "KWER" };
const RATE_NOTES = { cer: "characters", mer: "mixed tokens", wer: "words", kwer: "keywords" };
let system = 0;

const pane = detailPane({ data, list: () => list });
const list = utteranceList({ data, system: () => system, open: (row, place, shown) => pane.open(row, place, shown, system) });

// Figures

function figures() {
  const rates = Object.keys(RATE_NAMES).filter((rate) => data.systems.some((one) => one.rates[rate]));
  const columns = rates.map((rate) => `${RATE_NAMES[rate]} %`);
  const rows = data.systems.map((one) => [
    one.name,
    ...rates.map((rate) => {
      const found = one.rates[rate];
      return found ? [el("b", {}, percent(found.value)), isNumber(found.low) && el("small", {}, ` ${percent(found.low)}–${percent(found.high)}`)] : "–";
    }),
    ...["substitutions", "deletions", "insertions"].map((key) => count(one.errors[key])),
    count(one.missing),
    one.settings["run.rtfx"] ? short(Number(one.settings["run.rtfx"])) : null,
  ].filter((cell) => cell !== null));
  const header = ["system", ...columns, "S", "D", "I", "missing"];
  if (data.systems.some((one) => one.settings["run.rtfx"])) {
    header.push("RTFx");
    rows.forEach((row) => { if (row.length < header.length) row.push("–"); });
  }
  const charts = rates.map((rate) => el("figure", { class: "card" },
    el("figcaption", {}, el("h3", {}, `${RATE_NAMES[rate]} `, el("small", {}, `errors per 100 ${RATE_NOTES[rate]}`))),
    intervalChart(data.systems.map((one, place) => ({
      label: one.name, points: [one.rates[rate] || null], color: place,
    })), `${RATE_NAMES[rate]} of each system`)));
  return section("figures", "Figures", null, table(header, rows, { class: "figures" }),
    data.systems.length > 1 && el("div", { class: "cards" }, charts), significance(), retention(), settings());
}

function significance() {
  if (!data.comparisons.length) return null;
  const rows = data.comparisons.map((one) => [
    RATE_NAMES[one.rate], `${one.a} − ${one.b}`,
    el("b", {}, `${one.difference > 0 ? "+" : ""}${percent(one.difference)}`),
    `${percent(one.interval[0])} to ${percent(one.interval[1])}`,
    one.p_value.toFixed(3),
    one.p_value < 0.05 ? `${one.difference < 0 ? one.a : one.b} is better` : "not told apart",
  ]);
  return el("div", {}, el("h3", {}, "Differences"),
    el("p", { class: "note" }, "Paired bootstrap over utterances, in points; below zero the first system is better. The verdict is at p < 0.05."),
    table(["rate", "systems", "difference", "95 %", "p", "verdict"], rows, { class: "wide" }));
}

function retention() {
  if (!data.retention) return null;
  const first = names[0];
  const against = (comparisons, name) => comparisons.find((one) => one.rate === "cer" && one.a === first && one.b === name);
  const cells = (rate, found) => [
    rate ? [el("b", {}, percent(rate.value)), isNumber(rate.low) && el("small", {}, ` ${percent(rate.low)}–${percent(rate.high)}`)] : "–",
    found ? percent(-found.difference) : "", found ? found.p_value.toFixed(3) : "",
  ];
  const rows = data.systems.map((one) => [
    one.name, ...cells(one.rates.cer, against(data.comparisons, one.name)),
    ...cells(data.retention.cer[one.name], against(data.retention.comparisons, one.name)),
  ]);
  return el("div", {}, el("h3", {}, "Target against retention"),
    el("p", { class: "note" }, `What each system gains over ${first} on the target set, and what it loses on the set that it must keep.`),
    table(["system", "target CER %", "change", "p", "retention CER %", "change", "p"], rows));
}

function settings() {
  const keys = [...new Set(data.systems.flatMap((one) => Object.keys(one.settings)))];
  return el("details", {}, el("summary", {}, "How it was made"),
    table(["setting", ...names], keys.map((key) => [key, ...data.systems.map((one) => one.settings[key] ?? "–")]), { class: "settings" }));
}

// Conditions

const SHOWN = 12; // labels of a chart

function conditions() {
  if (!data.columns.length) return null;
  const charts = data.columns.map((column) => {
    const label = (place) => {
      const rates = names.map((name) => column.rates[name][place]);
      const utterances = Math.max(...rates.map((rate) => rate.utterances));
      return {
        label: column.labels[place],
        note: count(utterances),
        isSmall: utterances < Math.max(5, 0.005 * data.utterances.id.length),
        points: rates.map((rate) => (rate.tokens ? { value: rate.cer, low: rate.low, high: rate.high } : null)),
        errors: Math.max(...rates.map((rate) => rate.errors)),
        open: () => list.filter(`${column.title}: ${column.labels[place]}`, (row, number) => column.of[names[number]][row] === place),
      };
    };
    const rows = column.labels.map((_, place) => label(place));
    const isCut = rows.length > SHOWN && !column.ordered;
    const shown = isCut ? [...rows].sort((a, b) => b.errors - a.errors).slice(0, SHOWN) : rows;
    if (!column.ordered) {
      const highest = (row) => Math.max(...row.points.map((point) => point?.value ?? 0));
      shown.sort((a, b) => highest(b) - highest(a));
    }
    return el("figure", { class: "card" }, [
      el("figcaption", {}, el("h3", {}, `CER by ${column.title}`),
        isCut && el("p", { class: "note" }, `The ${SHOWN} of ${rows.length} with most errors.`)),
      intervalChart(shown, `CER by ${column.title}`),
      el("details", {}, el("summary", {}, "Numbers"), numbers(column)),
    ]);
  });
  return section("conditions", "Conditions", ["CER in %, with 95 % intervals; the small number counts utterances. Choose a line to see its utterances."],
    names.length > 1 && legend(names), el("div", { class: "cards" }, charts));
}

function numbers(column) {
  const header = [column.title, "utterances", "characters", ...names.flatMap((name) => [names.length > 1 ? `${name}, CER %` : "CER %", "95 %"])];
  return table(header, column.labels.map((label, place) => {
    const rates = names.map((name) => column.rates[name][place]);
    return [
      label, count(Math.max(...rates.map((rate) => rate.utterances))), count(Math.max(...rates.map((rate) => rate.tokens))),
      ...rates.flatMap((rate) => [percent(rate.cer), isNumber(rate.low) ? `${percent(rate.low)}–${percent(rate.high)}` : "–"]),
    ];
  }));
}

// Confusions

function countConfusions() {
  const found = { S: new Map(), D: new Map(), I: new Map() };
  const add = (kind, pair, row) => {
    const entry = found[kind].get(pair) || { number: 0, rows: new Set() };
    entry.number += 1;
    entry.rows.add(row);
    found[kind].set(pair, entry);
  };
  const own = data.hypotheses[system];
  own.edits.forEach((edits, row) => {
    if (own.raw[row] === null || !/[SDI]/.test(edits)) return;
    for (const { kind, said, heard } of runsOf(data.utterances.reference[row], own.text[row], edits)) {
      if (kind === "S") said.forEach((character, place) => add("S", `${character} → ${heard[place]}`, row));
      else if (kind === "D") said.forEach((character) => add("D", character, row));
      else if (kind === "I") heard.forEach((character) => add("I", character, row));
    }
  });
  return Object.fromEntries(Object.entries(found).map(([kind, entries]) => [kind, [...entries].sort((a, b) => b[1].number - a[1].number)]));
}

function confusionCards() {
  const titles = { S: ["Substitutions", "said → heard"], D: ["Deletions", "said, not heard"], I: ["Insertions", "heard, not said"] };
  const found = countConfusions();
  return Object.entries(titles).map(([kind, [title, note]]) => {
    const entries = found[kind];
    const total = entries.reduce((sum, [, entry]) => sum + entry.number, 0);
    const card = el("div", { class: "card" });
    const draw = (limit) => card.replaceChildren(...[
      el("h3", {}, `${title} `, el("small", {}, `${count(total)}, ${note}`)),
      entries.length ? el("ol", { class: "bars" }, entries.slice(0, limit).map(([pair, entry]) => {
        const bar = el("span", { class: `bar-fill ${kind}` });
        bar.style.width = `${100 * entry.number / entries[0][1].number}%`;
        return el("li", {}, el("button", {
          type: "button", title: "Show these utterances",
          on: { click: () => list.filter(`${title.toLowerCase()}: ${pair}`, (row) => entry.rows.has(row)) },
        }, el("span", { class: "pair" }, pair), el("span", { class: "track" }, bar), el("span", { class: "number" }, count(entry.number))));
      })) : el("p", { class: "note" }, "None."),
      entries.length > limit && el("button", { type: "button", class: "more", on: { click: () => draw(limit * 4) } },
        `Show more of ${count(entries.length)}`),
    ].filter(Boolean));
    draw(15);
    return card;
  });
}

// Keywords

function keywordTable(rows, title, choose) {
  const header = [title, "said", "missed", "false alarms", "recall %", "precision %", "F1 %"];
  const keys = ["keyword", "num_keywords", "misses", "false_alarms", "recall", "precision", "f1"];
  const state = { key: "wrong", down: true, limit: 25 };
  const wrong = (row) => row.misses + row.false_alarms;
  const box = el("div");
  const button = (row, number, kinds, what) => (choose && number ? el("button", {
    type: "button", class: "link", title: "Show these utterances", on: { click: () => choose(row, kinds, what) },
  }, count(number)) : count(number));
  function draw() {
    const value = (row) => (state.key === "wrong" ? wrong(row) : row[state.key]);
    const sorted = [...rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      const order = typeof x === "string" ? x.localeCompare(y, "zh") : (x ?? -1) - (y ?? -1);
      return state.down ? -order : order;
    });
    const cells = sorted.slice(0, state.limit).map((row) => [
      [row.keyword, row.group && el("small", {}, ` ${row.group}`)],
      button(row, row.num_keywords, ["correct", "miss"], "said"),
      button(row, row.misses, ["miss"], "missed"),
      button(row, row.false_alarms, ["false_alarm"], "false alarms"),
      ...["recall", "precision", "f1"].map((key) => percent(row[key], 1)),
    ]);
    const found = table(header, cells, { class: "keyword-table" });
    found.querySelectorAll("thead th").forEach((cell, place) => {
      const key = keys[place];
      const down = state.key === key ? !state.down : key !== "keyword";
      cell.setAttribute("aria-sort", state.key === key ? (state.down ? "descending" : "ascending") : "none");
      cell.replaceChildren(el("button", { type: "button", class: "sort", on: { click: () => { state.key = key; state.down = down; draw(); } } },
        header[place], el("span", { "aria-hidden": "true" }, state.key === key ? (state.down ? " ↓" : " ↑") : "")));
    });
    box.replaceChildren(found, ...(rows.length > state.limit ? [el("button", {
      type: "button", class: "more", on: { click: () => { state.limit *= 8; draw(); } },
    }, `Show more of ${count(rows.length)}`)] : []));
  }
  draw();
  return box;
}

function keywordContent() {
  const { keywords, groups } = data.systems[system];
  if (!keywords.length) return [el("p", { class: "note" }, `${names[system]} was scored without keywords.`)];
  const events = data.hypotheses[system].keywords;
  const choose = (row, kinds, what) => list.filter(`${row.keyword}: ${what}`, (place) =>
    data.hypotheses[system].keywords[place].some(([kind, keyword]) => keyword === row.keyword && kinds.includes(kind)));
  return [
    keywordTable(keywords, "keyword", events.some((one) => one.length) ? choose : null),
    groups.length > 0 && [el("h3", {}, "By group"), keywordTable(groups, "group", null)],
  ];
}

// The page

const confusions = el("div", { class: "cards three" });
const keywords = el("div");
const hasKeywords = data.systems.some((one) => one.keywords.length);
const chooser = names.length > 1 && el("label", { class: "system" }, "System ", el("select", {
  id: "system", on: { change: (event) => { system = Number(event.target.value); redraw(); } },
}, names.map((name, place) => el("option", { value: place }, name))));

function redraw() {
  confusions.replaceChildren(...confusionCards());
  keywords.replaceChildren(...keywordContent().flat(Infinity).filter(Boolean));
  document.querySelectorAll(".of-system").forEach((place) => { place.textContent = names[system]; });
  list.update();
  list.reopen();
}

const ofSystem = () => el("span", { class: "of-system" }, names[system]);
const normalizer = data.systems[0].settings;
const options = ["remove_fillers", "fold_erhua"].filter((key) => normalizer[`normalizer.${key}`] === "True").map((key) => key.replace("_", " "));
const sections = [
  figures(),
  conditions(),
  section("confusions", "Confusions", ["Characters of ", ofSystem(), ", by one minimal alignment of each utterance."], confusions),
  hasKeywords && section("keywords", "Keywords", ["Of ", ofSystem(), ". A number opens the utterances behind it."], keywords),
  section("utterances", "Utterances", ["Of ", ofSystem(), ": ", el("del", { class: "S" }, "said"), el("ins", { class: "S" }, "heard instead"), ", ",
    el("del", { class: "D" }, "deleted"), ", ", el("ins", { class: "I" }, "inserted"), "."],
    el("div", { class: "split" }, list.element, pane.element)),
].filter(Boolean);

document.body.append(
  el("div", { class: "title" }, el("h1", {}, data.title), el("p", {}, [
    `${plural(data.utterances.id.length, "utterance")}, ${plural(data.systems[0].errors.num_tokens, "character")}`,
    ` · normaliser ${["level " + normalizer["normalizer.level"], ...options].join(", ")} · 95 % intervals`,
  ])),
  navigation("Sections", sections, chooser),
  el("main", {}, sections),
);
redraw();
