// The gallery's page: everything that is shown comes from the JSON inside it, and is put in place as text.
"use strict";

const { runs, sets, columns } = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const column = Object.fromEntries(columns.map(each => [each.key, each]));
const ARROW = { higher: " ↑", lower: " ↓" };
const COLOURS = ["#3b82f6", "#e8590c", "#2f9e44", "#c2255c", "#7048e8", "#0c8599", "#b58900", "#868e96"];
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
const DRAWN_AT_FIRST = 6;
const state = { key: "", up: false, image: 0, pair: "x", view: "pictures", curve: "" };
const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 4, useGrouping: false });
const text = value => typeof value === "number" ? number.format(value) : "–";

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function drawn(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// --- which runs, in which order ---

const KINDS = { profile: run => [run.profile], state: run => [run.state] };
for (const kind of new Set(runs.flatMap(run => Object.keys(run.components)))) KINDS[kind] = run => run.components[kind] ?? ["none"];
const filters = {};

function options(kind) {
  const counts = new Map();
  for (const run of runs) for (const name of KINDS[kind](run)) if (name != null) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => a < b ? -1 : 1);
}

for (const run of runs) run.words = [run.name, run.title, ...run.settings].join("\n").toLowerCase();

function wanted(run) {
  const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  return words.every(word => run.words.includes(word)) &&
    Object.entries(filters).every(([kind, select]) => !select.value || KINDS[kind](run).includes(select.value));
}

// Runs that were measured under the chosen protocol, in order; then those that were not, which nothing ranks.
function ordered() {
  const found = runs.filter(wanted);
  if (!state.key) return [found.sort((a, b) => (a.name < b.name ? -1 : 1) * (state.up ? 1 : -1)), []];
  const measured = found.filter(run => typeof run.values[state.key] === "number");
  measured.sort((a, b) => (a.values[state.key] - b.values[state.key]) * (state.up ? 1 : -1));
  return [measured, found.filter(run => typeof run.values[state.key] !== "number")];
}

const sameMetric = key => columns.filter(each => each.metric === column[key].metric && each.key !== key);
const elsewhere = run => state.key ? sameMetric(state.key).find(each => each.key in run.values) : undefined;

function tellOrder(others) {
  const told = at("told");
  told.className = "told";
  if (!state.key) { told.textContent = ""; return; }
  const { metric, told: measured, protocol } = column[state.key];
  const otherwise = others.filter(elsewhere).length, never = others.length - otherwise;
  const ends = [];
  if (otherwise) ends.push(`${otherwise} measured under another protocol stand${otherwise === 1 ? "s" : ""} after them: those numbers do not compare`);
  if (never) ends.push(`${never} ha${never === 1 ? "s" : "ve"} no ${metric}`);
  told.textContent = `${metric}: ${measured} (protocol ${protocol}). ${ends.length ? ends.join("; ") + "." : ""}`;
  told.classList.toggle("mixed", otherwise > 0);
}

// --- pictures ---

function card(run) {
  const parts = [make("h2", { textContent: run.title }), make("p", { className: "name" }, make("code", { textContent: run.name }))];
  if (run.set === null) parts.push(make("div", { className: "none", textContent: "no test images" }));
  else {
    run.after = make("img", { loading: "lazy", decoding: "async", draggable: false });
    run.before = make("img", { loading: "lazy", decoding: "async", draggable: false });
    run.corner = make("span", { className: "before", ariaHidden: true });
    const slide = make("div", { className: "slide" }, run.after, run.before, run.corner, make("span", { className: "after", textContent: "ŷ", ariaHidden: true }));
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

function picture(run) {
  if (run.set === null) return;
  const set = sets[run.set], index = state.image % set.ids.length;
  const before = state.pair === "x" ? "x" : "y";
  run.after.src = run.y_hat[index];
  run.before.src = set[before][index];
  run.after.alt = `ŷ of ${set.ids[index]} by ${run.title}`;
  run.before.alt = `${before} of ${set.ids[index]}`;
  run.corner.textContent = before;
}

function score(run) {
  const other = elsewhere(run);
  run.score.hidden = !state.key;
  if (!state.key) return;
  const own = run.values[state.key];
  run.score.className = other && own === undefined ? "score other" : "score";
  run.score.replaceChildren(
    make("span", { textContent: column[state.key].metric + (ARROW[column[state.key].better] ?? "") }),
    own === undefined && other
      ? make("span", { textContent: `${text(run.values[other.key])}, measured otherwise (${other.apart || other.protocol})` })
      : make("b", { textContent: text(own) }),
  );
}

// --- numbers ---

function heads() {
  const row = make("tr", {}, make("th", { scope: "col", textContent: "run" }));
  for (const each of columns) {
    const button = make("button", { type: "button", textContent: each.metric + (ARROW[each.better] ?? ""), title: each.told });
    button.addEventListener("click", () => sortBy(each.key, each.key === state.key ? !state.up : undefined));
    const several = each.apart !== "";
    const head = make("th", { scope: "col" }, button, make("small", { className: several ? "apart" : "", textContent: several ? `only: ${each.apart}` : "", hidden: !several }));
    head.dataset.key = each.key;
    row.append(head);
  }
  document.querySelector("#numbers thead").append(row);
}

function line(run) {
  const name = make("th", { scope: "row" }, run.report ? make("a", { href: run.report, textContent: run.title }) : run.title, make("small", { textContent: run.name }));
  run.cells = columns.map(({ key }) => make("td", { textContent: text(run.values[key]) }));
  run.line = make("tr", {}, name, ...run.cells);
}

function best(shown) {
  columns.forEach(({ key, better }, i) => {
    const known = better ? shown.map(run => run.values[key]).filter(Number.isFinite) : [];
    const top = better === "higher" ? Math.max(...known) : Math.min(...known);
    for (const run of shown) run.cells[i].classList.toggle("best", known.length > 1 && run.values[key] === top);
  });
  for (const head of document.querySelectorAll("#numbers thead th[data-key]")) {
    if (head.dataset.key === state.key) head.setAttribute("aria-sort", state.up ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
}

// --- curves ---

const chosen = new Map();  // run -> how its curve is drawn
let touched = false;

function choose(run, on) {
  if (!on) { chosen.delete(run); return; }
  const taken = new Set([...chosen.values()].map(style => style.place));
  let place = 0;
  while (taken.has(place)) place += 1;
  chosen.set(run, { place, stroke: COLOURS[place % COLOURS.length], "stroke-dasharray": DASHES[Math.floor(place / COLOURS.length) % DASHES.length] });
}

function legend(shown) {
  const having = shown.filter(run => run.curves[state.curve]?.[0].length);
  if (!touched) {
    chosen.clear();
    having.slice(0, DRAWN_AT_FIRST).forEach(run => choose(run, true));
  }
  at("legend").replaceChildren(...having.map(run => {
    const box = make("input", { type: "checkbox", checked: chosen.has(run) });
    const mark = drawn("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" });
    const colour = () => mark.replaceChildren(...(chosen.has(run) ? [drawn("line", { x1: 0, x2: 28, y1: 6, y2: 6, ...style(run) })] : []));
    box.addEventListener("change", () => { touched = true; choose(run, box.checked); colour(); plot(having); });
    colour();
    return make("li", {}, make("label", {}, box, mark, make("span", {}, run.title, make("small", { textContent: run.name }))));
  }));
  plot(having);
}

const style = run => (({ place, ...rest }) => rest)(chosen.get(run));

function ticks(low, high) {
  const rough = (high - low) / 7 || Math.abs(high) / 7 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(each => each * power >= rough) * power, found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(Math.abs(value) < step / 1e6 ? 0 : value);
  return found;
}

function plot(having) {
  const curves = having.filter(run => chosen.has(run)).map(run => [run, ...run.curves[state.curve]]);
  const [left, right, top, bottom] = [58, 788, 14, 420];
  if (!curves.length) {
    const told = drawn("text", { x: 400, y: 220, "text-anchor": "middle" }, having.length ? "tick a run to see its curve" : "no run here has logged this");
    at("plot").replaceChildren(told);
    return;
  }
  const xs = curves.flatMap(([, images]) => images), ys = curves.flatMap(([, , values]) => values);
  const extent = list => list.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const [x0, x1] = [0, extent(xs)[1]], [y0, y1] = extent(ys);
  const x = value => left + (value - x0) / (x1 - x0 || 1) * (right - left);
  const y = value => bottom - (value - y0) / (y1 - y0 || 1) * (bottom - top);
  const marks = [];
  for (const value of ticks(y0, y1)) marks.push(drawn("line", { class: "rule", x1: left, x2: right, y1: y(value), y2: y(value) }), drawn("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, text(value)));
  for (const value of ticks(x0, x1)) marks.push(drawn("line", { class: "rule", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 5 }), drawn("text", { x: x(value), y: bottom + 18, "text-anchor": value > 0.97 * x1 ? "end" : "middle" }, text(value)));
  marks.push(drawn("text", { x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, `${state.curve} over images seen`));
  const lines = curves.map(([run, images, values]) => drawn("polyline", { points: images.map((seen, i) => `${x(seen).toFixed(1)},${y(values[i]).toFixed(1)}`).join(" "), ...style(run) }, drawn("title", {}, run.title)));
  at("plot").replaceChildren(...marks, ...lines);
}

// --- all of it ---

function show() {
  const [measured, others] = ordered(), shown = [...measured, ...others];
  at("count").textContent = shown.length === runs.length ? `${runs.length} runs` : `${shown.length} of ${runs.length} runs`;
  tellOrder(others);
  if (state.view === "pictures") {
    const cards = measured.map(run => run.card);
    if (others.length && measured.length) cards.push(make("p", { className: "divide", textContent: "Not measured under this protocol: in no order" }));
    shown.forEach(run => { picture(run); score(run); });
    at("pictures").replaceChildren(...cards, ...others.map(run => run.card));
  }
  if (state.view === "numbers") {
    document.querySelector("#numbers tbody").replaceChildren(...shown.map(run => run.line));
    best(shown);
  }
  if (state.view === "curves") legend(shown);
}

function sortBy(key, up) {
  state.key = key;
  state.up = up ?? (key ? column[key].better === "lower" : true);
  at("sort").value = key;
  at("turn").textContent = state.up ? "▲" : "▼";
  at("turn").title = at("turn").ariaLabel = state.up ? "smallest first; turn around" : "largest first; turn around";
  show();
}

function view(name) {
  state.view = name;
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  for (const part of document.querySelectorAll(".bar .pictures, .bar .curves")) part.hidden = !part.classList.contains(name) || (part.classList.contains("pictures") && !sets.length);
  show();
}

function turnTo(image) {
  const count = at("image").options.length;
  state.image = (image + count) % count;
  at("image").value = state.image;
  show();
}

function begin() {
  runs.forEach(run => { card(run); line(run); });
  heads();
  for (const kind of Object.keys(KINDS)) {
    const found = options(kind);
    if (found.length < 2) continue;
    const select = make("select", {}, new Option("all", ""), ...found.map(([name, count]) => new Option(`${name} (${count})`, name)));
    select.dataset.kind = kind;
    select.addEventListener("change", show);
    filters[kind] = select;
    at("filters").append(make("label", { className: "field", textContent: kind.replace("_", " ") }, select));
  }
  at("sort").append(new Option("name", ""), ...columns.map(each => new Option(each.metric + (ARROW[each.better] ?? "") + (each.apart ? ` (${each.apart})` : ""), each.key)));
  const most = Math.max(0, ...sets.map(set => set.ids.length));
  for (let i = 0; i < most; i += 1) at("image").append(new Option(sets.length === 1 ? `${i + 1}: ${sets[0].ids[i]}` : `${i + 1}`, i));
  const logged = [...new Set(runs.flatMap(run => Object.keys(run.curves)))].sort((a, b) => (b.startsWith("G.") - a.startsWith("G.")) || (a < b ? -1 : 1));
  at("curve").append(...logged.map(name => new Option(name, name)));
  state.curve = logged[0] ?? "";

  at("bar").addEventListener("submit", event => event.preventDefault());
  at("search").addEventListener("input", show);
  at("clear").addEventListener("click", () => { at("search").value = ""; Object.values(filters).forEach(select => select.value = ""); show(); });
  at("more").addEventListener("click", () => at("more").ariaExpanded = String(at("bar").classList.toggle("open")));
  at("sort").addEventListener("change", () => sortBy(at("sort").value));
  at("turn").addEventListener("click", () => sortBy(state.key, !state.up));
  at("image").addEventListener("change", () => turnTo(Number(at("image").value)));
  at("before").addEventListener("click", () => turnTo(state.image - 1));
  at("next").addEventListener("click", () => turnTo(state.image + 1));
  at("curve").addEventListener("change", () => { state.curve = at("curve").value; show(); });
  at("pair").addEventListener("change", () => {
    state.pair = at("pair").value;
    at("left").textContent = state.pair === "x" ? "x, the input" : "y, the target";
    show();
  });
  for (const radio of document.querySelectorAll("[name=view]")) radio.addEventListener("change", () => view(radio.value));

  const move = share => document.documentElement.style.setProperty("--at", `${share}%`);
  at("at").addEventListener("input", () => move(at("at").value));
  let held = null;
  const drag = event => {
    if (!held) return;
    const { left, width } = held.getBoundingClientRect();
    at("at").value = Math.round(Math.min(1, Math.max(0, (event.clientX - left) / width)) * 100);
    move(at("at").value);
  };
  at("pictures").addEventListener("pointerdown", event => { held = event.target.closest(".slide"); drag(event); });
  addEventListener("pointermove", drag);
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => { held = null; });

  sortBy("", true);
  view(document.querySelector("[name=view]:checked").value);
  document.documentElement.dataset.ready = "yes";
}

begin();
