"use strict";
// Sends images to the server that gave this page, and compares what comes back with them.

const element = Object.fromEntries([...document.querySelectorAll("[id]")].map((each) => [each.id, each]));
const MEGABYTE = 1e6;

let facts = null;
let files = []; // of the latest request
let running = null; // its AbortController
let urls = []; // object URLs of what is shown
let results = []; // {name, url, source}: images that came back, and the file that each belongs to
let opened = null; // the file whose picture is in element.input

// --- the server ---

/** Ask the server; throw an Error with its message where it refuses. */
async function ask(path, options = {}) {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is it still running, and is the network up?");
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = `The server answers ${response.status}.`;
  try {
    message = JSON.parse(text).error || message;
  } catch {
    // not from p2pzoo: a proxy
  }
  throw new Error(message);
}

async function start() {
  setState("starting");
  hideError();
  try {
    facts = await (await ask("model")).json();
  } catch (error) {
    fail(error);
    return;
  }
  document.title = `${facts.title} · p2pzoo`;
  element.title.textContent = facts.title;
  describe();
  const { limits, interval } = facts;
  element["samples-option"].hidden = !limits.samples;
  element.samples.max = limits.samples ?? 1;
  element["seed-option"].hidden = !facts.is_random;
  element["interval-option"].hidden = !interval;
  if (interval) element["interval-name"].textContent = `interval at level ${interval.level}`;
  element.choose.disabled = false;
  setState("ready");
}

// --- what is asked ---

function readQuery() {
  const query = new URLSearchParams();
  const samples = Number(element.samples.value);
  if (facts.limits.samples && samples > 1) query.set("samples", samples);
  if (facts.is_random && element.seed.value !== "0") query.set("seed", element.seed.value);
  if (facts.interval && element.interval.checked) query.set("interval", facts.interval.level);
  return query.size ? `?${query}` : "";
}

function findFault(chosen) {
  const { limits } = facts;
  const megabytes = chosen.reduce((sum, file) => sum + file.size, 0) / MEGABYTE;
  if (chosen.length > limits.files) return `${chosen.length} images: choose at most ${limits.files}.`;
  if (megabytes > limits.megabytes)
    return `${megabytes.toFixed(1)} MB: choose smaller or fewer images, at most ${limits.megabytes} MB.`;
  for (const name of ["samples", "seed"])
    if (!element[`${name}-option`].hidden && !element[name].checkValidity())
      return `${name}: ${element[name].validationMessage}`;
  return null;
}

async function translate(chosen) {
  if (!facts || !chosen.length) return;
  running?.abort();
  hideError();
  files = chosen; // also where a fault is found: after a change of the options, "translate again" is for these
  const fault = findFault(chosen);
  if (fault) {
    clear();
    fail(new Error(fault));
    return;
  }
  const request = (running = new AbortController());
  const began = performance.now();
  setState("busy");
  const timer = setInterval(() => showBusy(began), 250);
  showBusy(began);
  try {
    const body = new FormData();
    for (const file of files) body.append("image", file, file.name || "image.png");
    const query = readQuery();
    const path = `${files.length > 1 ? "batch" : "translate"}${query}`;
    const response = await ask(path, { method: "POST", body, signal: request.signal });
    const content = await response.blob();
    await show(content, response.headers.get("content-type"), new URLSearchParams(query).has("interval"));
    setState("done", `${((performance.now() - began) / 1000).toFixed(1)} s`);
  } catch (error) {
    if (request !== running) return; // another request took its place
    clear();
    if (error.name === "AbortError") setState("ready", "cancelled");
    else fail(error);
  } finally {
    clearInterval(timer);
  }
}

function showBusy(began) {
  const what = files.length > 1 ? `${files.length} images` : "image";
  element.status.textContent = `translating ${what}, ${Math.round((performance.now() - began) / 1000)} s`;
}

// --- what comes back ---

/** Return [{name, blob}] of a ZIP whose members are not compressed, as this server writes it. */
async function readZip(archive) {
  const view = new DataView(await archive.arrayBuffer());
  const bytes = new Uint8Array(view.buffer);
  let end = view.byteLength - 22;
  while (end > 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  const members = [];
  let at = view.getUint32(end + 16, true); // the central directory
  for (let i = view.getUint16(end + 10, true); i > 0; i--) {
    const [size, nameLength] = [view.getUint32(at + 20, true), view.getUint16(at + 28, true)];
    const local = view.getUint32(at + 42, true);
    const data = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    members.push({
      name: new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameLength)),
      content: bytes.subarray(data, data + size),
    });
    at += 46 + nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return members;
}

function makeUrl(blob) {
  const url = URL.createObjectURL(blob);
  urls.push(url);
  return url;
}

/** Show no result: an earlier one beside the message of a later request would mislead. */
function clear() {
  for (const url of urls) URL.revokeObjectURL(url);
  [urls, results, opened] = [[], [], null];
  element.skipped.replaceChildren();
  element.results.replaceChildren();
  for (const name of ["skipped", "comparison", "downloads", "promise"]) element[name].hidden = true;
  element.empty.hidden = false;
}

/** Show an answer. hasInterval: whether it was asked for; names say nothing, since an upload may be "street-width.png". */
async function show(content, type, hasInterval) {
  clear();
  const isZip = type.startsWith("application/zip");
  if (isZip) {
    const members = await readZip(content);
    results = members
      .filter(({ name }) => name.endsWith(".png"))
      .map(({ name, content }) => ({
        name: shorten(name),
        file: name,
        url: makeUrl(new Blob([content], { type: "image/png" })),
        source: files.length > 1 ? files[parseInt(name, 10) - 1] : files[0],
      }));
    const errors = members.find(({ name }) => name === "errors.txt");
    for (const line of errors ? new TextDecoder().decode(errors.content).trim().split("\n") : []) {
      const item = document.createElement("li");
      item.textContent = line;
      element.skipped.append(item);
    }
    element["save-all"].href = makeUrl(content);
    element["save-all"].download = files.length > 1 ? "translations.zip" : `${stem(files[0].name)}.zip`;
  } else {
    results = [{ name: "translation", file: `${stem(files[0].name)}.png`, url: makeUrl(content), source: files[0] }];
  }
  element.skipped.hidden = !element.skipped.children.length;
  element["save-all"].hidden = !isZip;
  element.downloads.hidden = false;
  if (results.length > 1)
    results.forEach((result, i) => {
      const button = document.createElement("button");
      button.textContent = result.name;
      button.addEventListener("click", () => choose(i));
      element.results.append(button);
    });
  element.promise.hidden = !hasInterval;
  if (hasInterval)
    element.promise.textContent = `width: a grey of 1 is one 8-bit level. ${facts.interval.promise}`;
  element.empty.hidden = true;
  element.comparison.hidden = false;
  choose(0);
}

function stem(name) {
  return (name || "image").replace(/\.[^.]*$/, "") || "image";
}

/** "photo-lower.png" is "lower" where all results are of one image. */
function shorten(name) {
  const plain = name.replace(/\.png$/, "");
  if (files.length > 1) return plain;
  const part = /-(\d+|mean|spread|lower|upper|width)$/.exec(plain)?.[1];
  return part === undefined ? "translation" : /^\d+$/.test(part) ? `sample ${Number(part) + 1}` : part;
}

function choose(i) {
  const result = results[i];
  [...element.results.children].forEach((each, j) => each.setAttribute("aria-pressed", String(i === j)));
  element.result.src = result.url;
  element.result.alt = result.name;
  element["right-name"].textContent = result.name;
  element.save.href = result.url;
  element.save.download = result.file;
  if (opened !== result.source) {
    opened = result.source;
    element.stage.classList.remove("single");
    element["left-name"].textContent = "input";
    element.input.src = makeUrl(result.source);
  }
}

element.result.addEventListener("load", () => {
  const side = Math.max(element.result.naturalWidth, element.result.naturalHeight);
  element.stage.classList.toggle("small", side < 512);
  element.stage.classList.toggle("enlarged", side < 512);
});
element.input.addEventListener("error", () => {
  element.stage.classList.add("single");
  element["left-name"].textContent = "This browser cannot show the input; its translation:";
});
element.slider.addEventListener("input", () => {
  element.stage.style.setProperty("--at", `${element.slider.value}%`);
});

// --- the page ---

function setState(state, message = "") {
  document.body.dataset.state = state;
  element.status.textContent = message;
  element.cancel.hidden = state !== "busy";
  element.again.hidden = state === "busy" || !files.length || !hasOptions();
}

function hasOptions() {
  return Boolean(facts && (facts.is_random || facts.interval));
}

function hideError() {
  element.error.hidden = true;
}

function fail(error) {
  element.error.textContent = error.message;
  element.error.hidden = false;
  setState("failed");
}

function describe() {
  const { size, input, output, dataset, limits, checkpoint } = facts;
  const channels = (side) =>
    side.is_label_map ? "label map" : `${{ 1: "grey", 3: "RGB" }[side.channels] ?? `${side.channels} channels`}, ${side.dtype}`;
  const rows = {
    "trained on": dataset && `${dataset.summary} (${dataset.name})`,
    "licence of the data": dataset?.licence,
    network: `${facts.generator}${facts.process ? ` in process ${facts.process}` : ""}, ${facts.parameters.toLocaleString("en")} parameters`,
    "training size": `${size[1]} × ${size[0]} px; other sizes work too`,
    "takes → gives": `${channels(input)} → ${channels(output)}`,
    training: checkpoint && `not finished: ${checkpoint.images} of ${checkpoint.of} images`,
    run: `${facts.run}, weights ${facts.weights}, test mode ${facts.test_mode}, ${facts.precision}`,
    limits: `${limits.megabytes} MB and ${limits.files} images at a time, ${limits.megapixels} megapixels for an image`,
    "for programs": "openapi.json",
  };
  element.facts.replaceChildren();
  for (const [name, text] of Object.entries(rows)) {
    if (!text) continue;
    const [term, value] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    value.textContent = text;
    if (name === "for programs") {
      const link = document.createElement("a");
      link.href = link.textContent = text;
      value.replaceChildren("POST /translate, POST /batch: ", link);
    }
    element.facts.append(term, value);
  }
}

element.choose.addEventListener("click", () => element.files.click());
element.files.addEventListener("change", () => {
  translate([...element.files.files]);
  element.files.value = ""; // choosing the same file again is a change
});
element.again.addEventListener("click", () => translate(files));
element.cancel.addEventListener("click", () => running.abort());
element.samples.addEventListener("input", () => (element.interval.checked = false));
element.interval.addEventListener("input", () => (element.samples.value = 1));
for (const name of ["dragenter", "dragover"])
  document.addEventListener(name, (event) => {
    event.preventDefault();
    element.drop.classList.add("over");
  });
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) element.drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  element.drop.classList.remove("over");
  translate([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) translate([...event.clipboardData.files]);
});
addEventListener("hashchange", start);
start();
