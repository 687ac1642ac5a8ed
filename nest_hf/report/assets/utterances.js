// The list of utterances: searched, filtered, sorted; only the rows in view are elements.

const ROW = 60; // px, as in the style
const SPARE = 8; // rows above and below the view

function utteranceList({ data, system, open }) {
  const { id, raw, reference } = data.utterances;
  const total = id.length;
  const clips = new Set(data.clips);
  const hasAudio = (row) => clips.has(row) || Boolean(data.utterances.link && data.utterances.link[row]);
  const errors = data.hypotheses.map((one) => one.edits.map(errorsOf));
  const facts = (row) => data.hypotheses[system()].facts[row];
  const numeric = [...new Set(data.hypotheses[0].facts.flatMap((one) => Object.keys(one).filter((key) => isNumber(one[key]))))];

  // how rows can be sorted: the largest first, except for texts
  const rate = (one) => one.errors / Math.max(one.tokens, 1);
  const orders = [
    ["errors", "most errors", (row) => errors[system()][row].errors],
    ["cer", "highest CER", (row) => rate(errors[system()][row])],
    ["id", "id", null],
    ...numeric.map((key) => [key, titleOf(data, key), (row) => facts(row)[key] ?? -Infinity]),
    ...(data.systems.length > 1 ? data.systems.map((other, place) =>
      [`worse-${place}`, `worse than ${other.name}`, (row) => errors[system()][row].errors - errors[place][row].errors]) : []),
  ];

  let haystack = null;
  const searchable = (row) => {
    haystack ??= id.map((key, place) => [
      key, raw[place], reference[place], ...data.hypotheses.flatMap((one) => [one.raw[place] ?? "", one.text[place]]),
      ...Object.values(data.hypotheses[0].facts[place]).filter((value) => typeof value === "string"),
    ].join("\n").toLowerCase());
    return haystack[row];
  };

  const state = { query: "", show: "all", order: "errors", reverse: false, filters: new Map(), rows: [], selected: -1 };

  const search = el("input", {
    type: "search", id: "search", placeholder: "Search id, text, speaker", "aria-label": "Search utterances",
    autocomplete: "off", spellcheck: "false", on: { input: () => { state.query = search.value; update(); } },
  });
  const choice = (label, options, listener) => el("select", { "aria-label": label, on: { change: listener } },
    options.map(([value, text]) => el("option", { value }, text)));
  const show = choice("Which utterances", [
    ["all", "all utterances"], ["wrong", "with errors"], ["missing", "without hypothesis"], ["audio", "with audio"],
  ], () => { state.show = show.value; update(); });
  const sort = choice("Sort by", orders, () => { state.order = sort.value; state.reverse = false; update(); });
  const turn = el("button", {
    type: "button", class: "icon", title: "Turn the order round", "aria-label": "Turn the order round",
    on: { click: () => { state.reverse = !state.reverse; update(); } },
  }, "⇅");
  const chips = el("div", { class: "chips" });
  const summary = el("p", { class: "summary", role: "status" });
  const view = el("div", {
    class: "list", id: "list", role: "listbox", tabindex: "0", "aria-label": "Utterances", on: { keydown: key },
  });
  const toolbar = el("div", { class: "toolbar" }, search, show, el("label", {}, el("span", {}, "Sort "), sort), turn);

  function update() {
    const terms = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    const tests = [...state.filters.values()];
    const own = errors[system()];
    const spoken = data.hypotheses[system()].raw;
    const kept = [];
    for (let row = 0; row < total; row++) {
      if (state.show === "wrong" && !own[row].errors) continue;
      if (state.show === "missing" && spoken[row] !== null) continue;
      if (state.show === "audio" && !hasAudio(row)) continue;
      if (!tests.every((test) => test(row, system()))) continue;
      if (terms.length && !terms.every((term) => searchable(row).includes(term))) continue;
      kept.push(row);
    }
    const value = orders.find(([name]) => name === state.order)[2];
    const values = value && kept.map(value);
    const places = kept.map((_, place) => place);
    if (values) places.sort((a, b) => values[b] - values[a] || a - b);
    else places.sort((a, b) => (id[kept[a]] < id[kept[b]] ? -1 : 1));
    state.rows = places.map((place) => kept[place]);
    if (state.reverse) state.rows.reverse();
    report();
    view.style.height = `${Math.max(ROW * state.rows.length, ROW)}px`;
    view.replaceChildren();
    drawn.clear();
    draw();
  }

  // What the rows that are left amount to.
  function report() {
    const sum = { S: 0, D: 0, I: 0, errors: 0, tokens: 0 };
    for (const row of state.rows) for (const name in sum) sum[name] += errors[system()][row][name];
    const cer = sum.tokens ? `CER ${percent(sum.errors / sum.tokens)} %` : "no reference characters";
    summary.replaceChildren(`${count(state.rows.length)} of ${plural(total, "utterance")} · ${cer} `,
      el("small", {}, ["S", "D", "I"].map((kind) => `${kind}\u00a0${count(sum[kind])} · `), `N\u00a0${count(sum.tokens)}`));
    chips.replaceChildren(...[...state.filters.keys()].map((name) => el("button", {
      type: "button", class: "chip", "aria-label": `Remove the filter ${name}`,
      on: { click: () => { state.filters.delete(name); update(); } },
    }, name, el("span", { "aria-hidden": "true" }, " ✕"))));
  }

  const drawn = new Map(); // place -> element
  function draw() {
    const above = -view.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(above / ROW) - SPARE);
    const last = Math.min(state.rows.length, Math.ceil((above + innerHeight) / ROW) + SPARE);
    for (const [place, element] of drawn) {
      if (place < first || place >= last) { element.remove(); drawn.delete(place); }
    }
    for (let place = first; place < last; place++) {
      if (drawn.has(place)) continue;
      const element = rowAt(place);
      drawn.set(place, element);
      view.append(element);
    }
    if (!state.rows.length && !view.firstChild) view.append(el("p", { class: "empty" }, "No utterance is left. Remove a filter or change the search."));
  }
  let waiting = false;
  const later = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };
  addEventListener("scroll", later, { passive: true });
  addEventListener("resize", later);

  function rowAt(place) {
    const row = state.rows[place];
    const hypothesis = data.hypotheses[system()];
    const own = errors[system()][row];
    const known = facts(row);
    const details = [
      known.speaker, isNumber(known.duration_s) && `${known.duration_s.toFixed(1)} s`,
      isNumber(known.snr_db) && `${known.snr_db.toFixed(0)} dB`,
    ].filter(Boolean).join(" · ");
    const missing = hypothesis.raw[row] === null;
    const element = el("div", {
      class: "row", role: "option", id: `row-${place}`, "aria-selected": String(row === state.selected),
      "aria-setsize": state.rows.length, "aria-posinset": place + 1, on: { click: () => select(place) },
    }, [
      el("span", { class: "head" }, [
        el("span", { class: "id" }, id[row]),
        el("span", { class: "details" }, details),
        hasAudio(row) && el("span", { class: "has-audio", title: "has audio" }, "♪"),
        el("span", { class: "rate" }, missing ? "missing" : `${own.errors}/${own.tokens}`, " ",
          el("b", {}, own.tokens ? `${percent(rate(own), 0)} %` : "–")),
      ]),
      el("span", { class: "line" }, lineOf(runsOf(reference[row], hypothesis.text[row], hypothesis.edits[row]))),
    ]);
    element.style.transform = `translateY(${ROW * place}px)`;
    return element;
  }

  function select(place, scroll = false) {
    if (place < 0 || place >= state.rows.length) return;
    state.selected = state.rows[place];
    if (scroll) {
      const box = view.getBoundingClientRect();
      const [top, reserved] = [box.top + ROW * place, view.parentElement.querySelector(".controls").offsetHeight + 56];
      if (top < reserved) scrollBy(0, top - reserved);
      else if (top + ROW > innerHeight) scrollBy(0, top + ROW - innerHeight + 8);
      draw();
    }
    for (const [at, element] of drawn) element.setAttribute("aria-selected", String(at === place));
    view.setAttribute("aria-activedescendant", `row-${place}`);
    open(state.selected, place, state.rows.length);
  }
  const current = () => state.rows.indexOf(state.selected);

  function key(event) {
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -total, End: total };
    if (event.key in moves) {
      const to = Math.min(Math.max(current() + moves[event.key], 0), state.rows.length - 1);
      select(to, true);
    } else if (event.key === "Enter") select(Math.max(current(), 0), true);
    else if (event.key === " ") document.querySelector("#detail audio")?.dispatchEvent(new Event("toggle-play"));
    else return;
    event.preventDefault();
  }

  return {
    element: el("div", { class: "list-side" }, el("div", { class: "controls" }, toolbar, chips, summary), view),
    update,
    move: (step) => select(current() + step, true),
    // Shows the chosen utterance again, as another system heard it.
    reopen() {
      if (current() >= 0) open(state.selected, current(), state.rows.length);
    },
    errors,
    hasAudio,
    // Leaves only the rows that pass; a filter of one kind takes the place of the last one.
    filter(name, test) {
      state.filters.clear();
      state.filters.set(name, test);
      state.query = search.value = "";
      state.show = show.value = "all";
      update();
      document.getElementById("utterances").scrollIntoView();
      if (matchMedia("(min-width: 900px)").matches) select(0);
      view.focus({ preventScroll: true });
    },
  };
}

function titleOf(data, key) {
  const column = data.columns.find((one) => one.name === key);
  return column ? column.title : key.replaceAll("_", " ");
}
