// One utterance: what is known of it, its sound and its spectrogram, and what every system made of it.

// A start that a pause or the next utterance overtakes is no failure.
const play = (audio) => audio.play().catch((error) => { if (error.name !== "AbortError") throw error; });

function detailPane({ data, list }) {
  const pane = el("aside", { id: "detail", "aria-label": "Utterance", tabindex: "-1" }, el("p", { class: "note" },
    "Choose an utterance. In the list: arrow keys move, space plays."));
  let address = null;

  function close() {
    pane.classList.remove("open");
    document.body.classList.remove("covered");
    document.getElementById("list").focus({ preventScroll: true });
  }
  pane.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });

  function open(row, place, shown, system) {
    if (address) URL.revokeObjectURL(address);
    address = null;
    const own = data.hypotheses[system];
    const button = (label, text, listener, disabled, kind) =>
      el("button", { type: "button", class: `icon ${kind || ""}`, "aria-label": label, title: label, disabled, on: { click: listener } }, text);
    pane.replaceChildren(
      el("div", { class: "detail-head" }, [
        el("h3", {}, data.utterances.id[row]),
        el("span", { class: "place" }, `${count(place + 1)} / ${count(shown)}`),
        button("Previous utterance", "↑", () => list().move(-1), place === 0),
        button("Next utterance", "↓", () => list().move(1), place === shown - 1),
        button("Close", "✕", close, false, "close"),
      ]),
      ...sound(row, system),
      hypothesis(row, system),
      ...data.systems.map((_, number) => number !== system && hypothesis(row, number)).filter(Boolean),
      el("h4", {}, "Reference, as given"),
      el("p", { class: "text" }, data.utterances.raw[row] || "(empty)"),
      knowledge(own, row),
    );
    pane.scrollTop = 0;
    pane.classList.add("open");
    document.body.classList.add("covered");
  }

  const severalClips = new Set(data.heard.map((heard) => heard.clip)).size > 1;

  function sound(row, system) {
    const heard = data.heard[system];
    const clip = readJson(`clip-${row}-${heard.clip}`);
    const link = data.utterances.link && data.utterances.link[row];
    if (clip && clip.problem) return [el("p", { class: "note" }, clip.problem)];
    let source = link;
    if (clip && clip.flac) {
      const bytes = Uint8Array.from(atob(clip.flac), (letter) => letter.charCodeAt(0));
      source = address = URL.createObjectURL(new Blob([bytes], { type: "audio/flac" }));
    }
    if (!source) return data.audio === "none" ? [] : [el("p", { class: "note" }, "No audio: the report holds that of the utterances with most errors, where it is known.")];
    const [, begin] = /#t=([\d.]+),/.exec(source) || [null, 0];
    const audio = el("audio", { controls: true, preload: "metadata", src: source });
    audio.addEventListener("toggle-play", () => (audio.paused ? play(audio) : audio.pause()));
    audio.addEventListener("error", () => audio.after(el("p", { class: "note" }, "This browser cannot play the recording, or it is not there any more.")), { once: true });
    const parts = [audio];
    if (clip) parts.unshift(spectrogram(clip, audio, Number(begin)));
    if (clip && clip.shown_s < clip.duration_s - 0.05) {
      parts.push(el("p", { class: "note" }, `The first ${clip.shown_s.toFixed(0)} s of ${clip.duration_s.toFixed(0)} s.`));
    }
    if (heard.note) parts.push(el("p", { class: "note" }, heard.note));
    else if (severalClips) parts.push(el("p", { class: "note" }, `As ${data.systems[system].name} heard it.`));
    return parts;
  }

  function spectrogram(clip, audio, begin) {
    const head = el("span", { class: "playhead" });
    const picture = el("img", { src: clip.spectrogram, alt: `Spectrogram, 0 to ${clip.top_hz / 1000} kHz, ${clip.shown_s.toFixed(1)} s`, draggable: "false" });
    const box = el("div", {
      class: "picture", title: "Click to play from here",
      on: {
        click: (event) => {
          const area = picture.getBoundingClientRect();
          audio.currentTime = begin + clip.shown_s * Math.min(Math.max((event.clientX - area.left) / area.width, 0), 1);
          play(audio);
        },
      },
    }, picture, head);
    const follow = () => {
      head.style.left = `${Math.min(100 * (audio.currentTime - begin) / clip.shown_s, 100)}%`;
      if (!audio.paused && audio.isConnected) requestAnimationFrame(follow);
    };
    for (const event of ["play", "seeked", "timeupdate"]) audio.addEventListener(event, follow);
    const hertz = ticks(0, clip.top_hz / 1000);
    const seconds = ticks(0, clip.shown_s);
    return el("div", { class: "spectrogram" }, [
      svg("svg", { class: "y-axis axis", "aria-hidden": "true" }, hertz.map((tick) =>
        svg("text", { x: "100%", dx: -5, y: `${100 - 100 * tick / (clip.top_hz / 1000)}%`, dy: tick === 0 ? 0 : tick * 1000 === clip.top_hz ? 9 : 4, "text-anchor": "end" }, short(tick)))),
      box,
      el("small", { class: "unit" }, "kHz"),
      svg("svg", { class: "x-axis axis", height: 16, "aria-hidden": "true" }, seconds.map((tick) =>
        svg("text", { x: `${100 * tick / clip.shown_s}%`, y: 12, "text-anchor": tick === 0 ? "start" : tick > 0.95 * clip.shown_s ? "end" : "middle" }, `${short(tick)}${tick === 0 ? " s" : ""}`))),
    ]);
  }

  function hypothesis(row, number) {
    const own = data.hypotheses[number];
    const errors = list().errors[number][row];
    const runs = runsOf(data.utterances.reference[row], own.text[row], own.edits[row]);
    const [said, heard] = [new Set(), new Set()];
    for (const [kind, , start, end] of own.keywords[row]) {
      for (let place = start; place < end; place++) (kind === "false_alarm" ? heard : said).add(place);
    }
    const words = { miss: "missed", false_alarm: "false alarm", correct: "heard" };
    const missing = own.raw[row] === null;
    const passes = own.passes ? Object.entries(own.passes[row]).filter(([, text]) => text !== own.raw[row]) : [];
    return el("div", { class: "hypothesis" }, [
      el("h4", {}, [
        data.systems.length > 1 && svg("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" }, mark(number)),
        data.systems[number].name, " ",
        el("small", {}, errors.tokens ? `CER ${percent(errors.errors / errors.tokens, 1)} % · ` : "", `S ${errors.S} · D ${errors.D} · I ${errors.I}`),
      ]),
      missing ? el("p", { class: "note" }, "No hypothesis: all of the reference counts as deleted.") : gridOf(runs, said, heard),
      own.keywords[row].length > 0 && el("p", { class: "keywords" }, own.keywords[row].map(([kind, keyword]) =>
        el("span", { class: `tag ${kind}` }, `${keyword}: ${words[kind]}`))),
      !missing && el("p", { class: "text" }, own.raw[row] || "(empty)"),
      passes.map(([name, text]) => el("p", { class: "text" }, el("small", {}, `${name === "ctc_text" ? "CTC head" : "language model"} `), text)),
    ]);
  }

  function knowledge(own, row) {
    const lines = Object.entries(own.facts[row]).map(([key, value]) =>
      [titleOf(data, key), isNumber(value) ? short(value) : String(value)]);
    if (own.steps && own.steps[row].length) lines.push(["channel", own.steps[row].join(" → ")]);
    return lines.length > 0 && el("dl", { class: "facts" }, lines.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  }

  return { element: pane, open };
}
