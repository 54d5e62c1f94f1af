// The gallery's page. All data comes from the JSON inside the page and is inserted as text, never as HTML.
"use strict";

const { runs, sets, columns } = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const columnByKey = Object.fromEntries(columns.map(column => [column.key, column]));
const ARROW = { higher: " ↑", lower: " ↓" };
const COLOURS = Array.from({ length: 8 }, (_, i) => `var(--curve-${i})`);  // of page.css, for light and dark pages
const MEANING = { x: "x, input", y: "y, target" };
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
const INITIAL_CURVES = 6;  // more would hide each other
const state = { key: "", up: false, image: 0, pair: "x", view: "pictures", curve: "" };
const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 4, useGrouping: false });
const text = value => typeof value === "number" ? number.format(value) : "–";

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function makeSvg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// --- filter and order ---

const KINDS = { profile: run => [run.profile], state: run => [run.state] };
for (const kind of new Set(runs.flatMap(run => Object.keys(run.components)))) KINDS[kind] = run => run.components[kind] ?? ["none"];
const filters = {};

function options(kind) {
  const counts = new Map();
  for (const run of runs) for (const name of KINDS[kind](run)) if (name != null) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => a < b ? -1 : 1);
}

for (const run of runs) run.words = [run.name, run.title, ...run.settings].join("\n").toLowerCase();

function matches(run) {
  const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  return words.every(word => run.words.includes(word)) &&
    Object.entries(filters).every(([kind, select]) => !select.value || KINDS[kind](run).includes(select.value));
}

// Returns [the runs measured under the selected protocol, sorted; the others, which cannot be ranked with them].
function sortedRuns() {
  const matching = runs.filter(matches);
  if (!state.key) return [matching.sort((a, b) => (a.name < b.name ? -1 : 1) * (state.up ? 1 : -1)), []];
  const measured = matching.filter(run => typeof run.values[state.key] === "number");
  measured.sort((a, b) => (a.values[state.key] - b.values[state.key]) * (state.up ? 1 : -1));
  return [measured, matching.filter(run => typeof run.values[state.key] !== "number")];
}

const sameMetric = key => columns.filter(column => column.metric === columnByKey[key].metric && column.key !== key);
const otherProtocol = run => state.key ? sameMetric(state.key).find(column => column.key in run.values) : undefined;

function describeOrder(others) {
  const line = at("description");
  line.className = "description";
  if (!state.key) { line.textContent = ""; return; }
  const { metric, description, protocol } = columnByKey[state.key];
  const otherwise = others.filter(otherProtocol).length, never = others.length - otherwise;
  const notes = [];
  if (otherwise) notes.push(`${otherwise} measured under another protocol ${otherwise === 1 ? "follows" : "follow"}: those numbers are not comparable`);
  if (never) notes.push(`${never} without ${metric}`);
  line.textContent = `${metric}: ${description} (protocol ${protocol}). ${notes.length ? notes.join("; ") + "." : ""}`;
  line.classList.toggle("mixed", otherwise > 0);
}

// --- pictures ---

function buildCard(run) {
  const parts = [make("h2", { textContent: run.title }), make("p", { className: "name" }, make("code", { textContent: run.name }))];
  if (run.set === null) parts.push(make("div", { className: "none", textContent: "no test images" }));
  else {
    run.after = make("img", { loading: "lazy", decoding: "async", draggable: false });
    run.before = make("img", { loading: "lazy", decoding: "async", draggable: false });
    run.corner = make("span", { className: "before", ariaHidden: true });
    const slide = make("div", { className: "slide" }, run.after, run.before, run.corner, make("span", { className: "after", textContent: "ŷ, translation", ariaHidden: true }));
    const [width, height] = sets[run.set].size;
    slide.style.aspectRatio = `${width} / ${height}`;
    parts.push(slide);
  }
  run.score = make("p", { className: "score" });
  const tags = Object.entries(run.components).filter(([kind]) => kind !== "dataset").flatMap(([kind, names]) => names.map(name => make("span", { className: "tag", textContent: name, title: kind })));
  if (run.state !== "complete") tags.unshift(make("span", { className: "tag open", textContent: `${run.state}, ${run.images ?? 0} images` }));
  const foot = make("div", { className: "foot" }, make("span", { textContent: [run.profile, run.seed === null ? null : `seed ${run.seed}`].filter(Boolean).join(" · ") }));
  if (run.report) foot.append(make("a", { href: run.report, textContent: "report" }));
  parts.push(run.score, make("div", { className: "tags" }, ...tags), foot);
  run.card = make("article", { className: "card" }, ...parts);
}

function updatePicture(run) {
  if (run.set === null) return;
  const set = sets[run.set], index = state.image % set.ids.length;
  const before = state.pair === "x" ? "x" : "y";
  run.after.src = run.y_hat[index];
  run.before.src = set[before][index];
  run.after.alt = `ŷ of ${set.ids[index]} by ${run.title}`;
  run.before.alt = `${before} of ${set.ids[index]}`;
  run.corner.textContent = MEANING[before];
}

function updateScore(run) {
  const other = otherProtocol(run);
  run.score.hidden = !state.key;
  if (!state.key) return;
  const own = run.values[state.key];
  run.score.className = other && own === undefined ? "score other" : "score";
  run.score.replaceChildren(
    make("span", { textContent: columnByKey[state.key].metric + (ARROW[columnByKey[state.key].better] ?? "") }),
    own === undefined && other
      ? make("span", { textContent: `${text(run.values[other.key])}, under another protocol (${other.differs || other.protocol})` })
      : make("b", { textContent: text(own) }),
  );
}

// --- numbers ---

function buildHeads() {
  const row = make("tr", {}, make("th", { scope: "col", textContent: "run" }));
  for (const { key, metric, better, description, differs } of columns) {
    const button = make("button", { type: "button", textContent: metric + (ARROW[better] ?? ""), title: description });
    button.addEventListener("click", () => sortBy(key, key === state.key ? !state.up : undefined));
    const several = differs !== "";
    const head = make("th", { scope: "col" }, button, make("small", { className: several ? "differs" : "", textContent: several ? `only: ${differs}` : "", hidden: !several }));
    head.dataset.key = key;
    row.append(head);
  }
  document.querySelector("#numbers thead").append(row);
}

function buildLine(run) {
  const name = make("th", { scope: "row" }, run.report ? make("a", { href: run.report, textContent: run.title }) : run.title, make("small", { textContent: run.name }));
  run.cells = columns.map(({ key }) => make("td", { textContent: text(run.values[key]) }));
  run.line = make("tr", {}, name, ...run.cells);
}

function markBest(visible) {
  columns.forEach(({ key, better }, i) => {
    const values = better ? visible.map(run => run.values[key]).filter(Number.isFinite) : [];
    const top = better === "higher" ? Math.max(...values) : Math.min(...values);
    for (const run of visible) run.cells[i].classList.toggle("best", values.length > 1 && run.values[key] === top);
  });
  for (const head of document.querySelectorAll("#numbers thead th[data-key]")) {
    if (head.dataset.key === state.key) head.setAttribute("aria-sort", state.up ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
}

// --- curves ---

const selected = new Map();  // run -> the style of its curve
let userSelected = false;  // until then, the first runs are selected

function selectCurve(run, on) {
  if (!on) { selected.delete(run); return; }
  const taken = new Set([...selected.values()].map(style => style.place));
  let place = 0;
  while (taken.has(place)) place += 1;
  selected.set(run, { place, stroke: COLOURS[place % COLOURS.length], "stroke-dasharray": DASHES[Math.floor(place / COLOURS.length) % DASHES.length] });
}

function drawLegend(visible) {
  const available = visible.filter(run => run.curves[state.curve]?.[0].length);
  if (!userSelected) {
    selected.clear();
    available.slice(0, INITIAL_CURVES).forEach(run => selectCurve(run, true));
  }
  at("legend").replaceChildren(...available.map(run => {
    const box = make("input", { type: "checkbox", checked: selected.has(run) });
    const mark = makeSvg("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" });
    const colour = () => mark.replaceChildren(...(selected.has(run) ? [makeSvg("line", { x1: 0, x2: 28, y1: 6, y2: 6, ...style(run) })] : []));
    box.addEventListener("change", () => { userSelected = true; selectCurve(run, box.checked); colour(); drawPlot(available); });
    colour();
    return make("li", {}, make("label", {}, box, mark, make("span", {}, run.title, make("small", { textContent: run.name }))));
  }));
  drawPlot(available);
}

const style = run => (({ place, ...rest }) => rest)(selected.get(run));

function ticks(low, high) {
  const rough = (high - low) / 7 || Math.abs(high) / 7 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(factor => factor * power >= rough) * power, values = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) values.push(Math.abs(value) < step / 1e6 ? 0 : value);
  return values;
}

function drawPlot(available) {
  const curves = available.filter(run => selected.has(run)).map(run => [run, ...run.curves[state.curve]]);
  const [left, right, top, bottom] = [58, 788, 14, 420];
  if (!curves.length) {
    const hint = makeSvg("text", { x: 400, y: 220, "text-anchor": "middle" }, available.length ? "select a run to see its curve" : "none of these runs logged this");
    at("plot").replaceChildren(hint);
    return;
  }
  const xs = curves.flatMap(([, images]) => images), ys = curves.flatMap(([, , values]) => values);
  const extent = list => list.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const [x0, x1] = [0, extent(xs)[1]], [y0, y1] = extent(ys);
  const x = value => left + (value - x0) / (x1 - x0 || 1) * (right - left);
  const y = value => bottom - (value - y0) / (y1 - y0 || 1) * (bottom - top);
  const marks = [];
  for (const value of ticks(y0, y1)) marks.push(makeSvg("line", { class: "rule", x1: left, x2: right, y1: y(value), y2: y(value) }), makeSvg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, text(value)));
  for (const value of ticks(x0, x1)) marks.push(makeSvg("line", { class: "rule", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 5 }), makeSvg("text", { x: x(value), y: bottom + 18, "text-anchor": value > 0.97 * x1 ? "end" : "middle" }, text(value)));
  marks.push(makeSvg("text", { x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, `${state.curve} over images seen`));
  const lines = curves.map(([run, images, values]) => makeSvg("polyline", { points: images.map((count, i) => `${x(count).toFixed(1)},${y(values[i]).toFixed(1)}`).join(" "), ...style(run) }, makeSvg("title", {}, run.title)));
  at("plot").replaceChildren(...marks, ...lines);
}

// --- the page ---

function show() {
  const [measured, others] = sortedRuns(), visible = [...measured, ...others];
  at("count").textContent = visible.length === runs.length ? `${runs.length} runs` : `${visible.length} of ${runs.length} runs`;
  describeOrder(others);
  if (state.view === "pictures") {
    const cards = measured.map(run => run.card);
    if (others.length && measured.length) cards.push(make("p", { className: "divide", textContent: "Not measured under this protocol: not ranked" }));
    visible.forEach(run => { updatePicture(run); updateScore(run); });
    at("pictures").replaceChildren(...cards, ...others.map(run => run.card));
  }
  if (state.view === "numbers") {
    document.querySelector("#numbers tbody").replaceChildren(...visible.map(run => run.line));
    markBest(visible);
  }
  if (state.view === "curves") drawLegend(visible);
}

function sortBy(key, up) {
  state.key = key;
  state.up = up ?? (key ? columnByKey[key].better === "lower" : true);
  at("sort").value = key;
  at("reverse").textContent = state.up ? "▲" : "▼";
  at("reverse").title = at("reverse").ariaLabel = state.up ? "smallest first; reverse" : "largest first; reverse";
  show();
}

function view(name) {
  state.view = name;
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  at("meaning").hidden = name !== "pictures" || !sets.length;
  for (const part of document.querySelectorAll(".bar .pictures, .bar .curves")) part.hidden = !part.classList.contains(name) || (part.classList.contains("pictures") && !sets.length);
  show();
}

function selectImage(image) {
  const count = at("image").options.length;
  state.image = (image + count) % count;
  at("image").value = state.image;
  show();
}

function begin() {
  runs.forEach(run => { buildCard(run); buildLine(run); });
  buildHeads();
  for (const kind of Object.keys(KINDS)) {
    const counts = options(kind);
    if (counts.length < 2) continue;
    const dropdown = make("select", {}, new Option("all", ""), ...counts.map(([name, count]) => new Option(`${name} (${count})`, name)));
    dropdown.dataset.kind = kind;
    dropdown.addEventListener("change", show);
    filters[kind] = dropdown;
    at("filters").append(make("label", { className: "field", textContent: kind.replace("_", " ") }, dropdown));
  }
  at("sort").append(new Option("name", ""), ...columns.map(({ key, metric, better, differs }) => new Option(metric + (ARROW[better] ?? "") + (differs ? ` (${differs})` : ""), key)));
  const maxImages = Math.max(0, ...sets.map(set => set.ids.length));
  for (let i = 0; i < maxImages; i += 1) at("image").append(new Option(sets.length === 1 ? `${i + 1}: ${sets[0].ids[i]}` : `${i + 1}`, i));
  const logged = [...new Set(runs.flatMap(run => Object.keys(run.curves)))].sort((a, b) => (b.startsWith("G.") - a.startsWith("G.")) || (a < b ? -1 : 1));
  at("curve").append(...logged.map(name => new Option(name, name)));
  state.curve = logged[0] ?? "";

  at("bar").addEventListener("submit", event => event.preventDefault());
  at("search").addEventListener("input", show);
  at("clear").addEventListener("click", () => { at("search").value = ""; Object.values(filters).forEach(select => select.value = ""); show(); });
  at("more").addEventListener("click", () => at("more").ariaExpanded = String(at("bar").classList.toggle("open")));
  at("sort").addEventListener("change", () => sortBy(at("sort").value));
  at("reverse").addEventListener("click", () => sortBy(state.key, !state.up));
  at("image").addEventListener("change", () => selectImage(Number(at("image").value)));
  at("before").addEventListener("click", () => selectImage(state.image - 1));
  at("next").addEventListener("click", () => selectImage(state.image + 1));
  at("curve").addEventListener("change", () => { state.curve = at("curve").value; show(); });
  at("pair").addEventListener("change", () => {
    state.pair = at("pair").value;
    at("left").textContent = MEANING[state.pair];
    show();
  });
  for (const radio of document.querySelectorAll("[name=view]")) radio.addEventListener("change", () => view(radio.value));

  const move = share => document.documentElement.style.setProperty("--at", `${share}%`);
  at("at").addEventListener("input", () => move(at("at").value));
  let heldSlide = null;
  const drag = event => {
    if (!heldSlide) return;
    const { left, width } = heldSlide.getBoundingClientRect();
    at("at").value = Math.round(Math.min(1, Math.max(0, (event.clientX - left) / width)) * 100);
    move(at("at").value);
  };
  at("pictures").addEventListener("pointerdown", event => { heldSlide = event.target.closest(".slide"); drag(event); });
  addEventListener("pointermove", drag);
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => { heldSlide = null; });

  sortBy("", true);
  view(document.querySelector("[name=view]:checked").value);
  document.documentElement.dataset.ready = "yes";
}

begin();
