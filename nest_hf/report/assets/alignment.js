// What an alignment says: its pairs of characters, its errors, and how they are shown.

const EDIT = /(\d+)([=SDI])/g;
const NAMES = { S: "substituted", D: "deleted", I: "inserted" };

// Runs {kind, said, heard} of the characters of a reference and of a hypothesis; characters are code points.
function runsOf(reference, hypothesis, edits) {
  const [said, heard] = [Array.from(reference), Array.from(hypothesis)];
  const runs = [];
  let [i, j] = [0, 0];
  for (const [, length, kind] of edits.matchAll(EDIT)) {
    const run = { kind, said: [], heard: [], start: i, heardStart: j };
    if (kind !== "I") { run.said = said.slice(i, i + Number(length)); i += Number(length); }
    if (kind !== "D") { run.heard = heard.slice(j, j + Number(length)); j += Number(length); }
    runs.push(run);
  }
  return runs;
}

function errorsOf(edits) {
  const found = { "=": 0, S: 0, D: 0, I: 0 };
  for (const [, length, kind] of edits.matchAll(EDIT)) found[kind] += Number(length);
  return { S: found.S, D: found.D, I: found.I, errors: found.S + found.D + found.I, tokens: found["="] + found.S + found.D };
}

// One line: what is struck out was said, what is underlined was heard instead. A long correct beginning is cut.
function lineOf(runs) {
  return runs.map(({ kind, said, heard }, place) => {
    if (kind === "=") {
      const cut = place === 0 && runs.length > 1 && said.length > 10;
      return (cut ? "…" : "") + (cut ? said.slice(-6) : said).join("");
    }
    return [
      said.length > 0 && el("del", { class: kind }, said.join("")),
      heard.length > 0 && el("ins", { class: kind }, heard.join("")),
    ];
  });
}

// Said above heard, the kind of error below each pair. `inKeyword` and `heardKeyword` are sets of positions to underline.
function gridOf(runs, inKeyword, heardKeyword) {
  const cells = [];
  for (const { kind, said, heard, start, heardStart } of runs) {
    for (let place = 0; place < Math.max(said.length, heard.length); place++) {
      const [above, below] = [said[place], heard[place]];
      cells.push(el("span", { class: `cell ${kind === "=" ? "ok" : kind}`, title: NAMES[kind] || null }, [
        el("span", { class: above && inKeyword.has(start + place) ? "keyword" : null }, above ?? "\u00a0"),
        el("span", { class: below && heardKeyword.has(heardStart + place) ? "keyword" : null }, below ?? "\u00a0"),
        el("span", { class: "kind" }, kind === "=" ? "\u00a0" : kind),
      ]));
    }
  }
  return el("div", { class: "pairs", role: "img", "aria-label": spoken(runs) }, cells);
}

const spoken = (runs) => runs.map(({ kind, said, heard }) =>
  kind === "=" ? said.join("") : `[${NAMES[kind]}: ${said.join("")}${kind === "S" ? " as " : ""}${heard.join("")}]`).join(" ");
