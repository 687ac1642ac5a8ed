// Elements are made of text nodes and attributes alone: text of the data is never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const readJson = (id) => {
  const block = document.getElementById(id);
  return block ? JSON.parse(block.textContent) : null;
};

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const percent = (value, digits = 2) => (isNumber(value) ? (100 * value).toFixed(digits).replace("-", "−") : "–");
const count = (value) => (isNumber(value) ? value.toLocaleString("en") : "–");
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

function short(value) {
  if (!isNumber(value)) return "–";
  if (value === 0 || Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

// Three to six round numbers from `low` to `high`.
function ticks(low, high) {
  const rough = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((unit) => unit * power).find((unit) => unit >= rough);
  const found = [];
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high + step * 1e-6; place++) {
    found.push(Number((place * step).toPrecision(12)));
  }
  return found;
}

// A heading, what it needs explained, and the content.
function section(id, title, note, ...content) {
  const heading = `${id}-heading`;
  return el("section", { id, "aria-labelledby": heading }, [
    el("h2", { id: heading }, title),
    note && el("p", { class: "note" }, note),
    content,
  ]);
}

function table(header, rows, options = {}) {
  return el("div", { class: "scroll", tabindex: options.tall ? "0" : null }, [
    el("table", { class: options.class || null }, [
      options.caption && el("caption", {}, options.caption),
      el("thead", {}, el("tr", {}, header.map((cell) => el("th", { scope: "col" }, cell)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, place) =>
        place ? el("td", {}, cell) : el("th", { scope: "row" }, cell))))),
    ]),
  ]);
}

// The links to the sections, of which the one in view is marked.
function navigation(title, sections, ...controls) {
  const links = sections.map((part) => el("a", { href: `#${part.id}` }, part.querySelector("h2").textContent));
  const mark = () => {
    let current = 0;
    sections.forEach((part, place) => { if (part.getBoundingClientRect().top < innerHeight / 3) current = place; });
    links.forEach((link, place) => {
      if (place === current) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    });
  };
  addEventListener("scroll", mark, { passive: true });
  requestAnimationFrame(mark);
  return el("header", { class: "bar" }, el("nav", { "aria-label": title }, links), controls);
}
