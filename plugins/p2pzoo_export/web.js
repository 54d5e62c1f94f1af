"use strict";
// Draw or open an image and see its translation. #facts holds the data of the page, `embedded` the model and the runtime.

const facts = JSON.parse(document.getElementById("facts").textContent);
const element = Object.fromEntries([...document.querySelectorAll("[id]")].map((each) => [each.id, each]));
const [height, width] = facts.sides;
const input = element.x.getContext("2d", { willReadFrequently: true });
const output = element.y.getContext("2d");
const colours = facts.colours?.map((each) => each.colour);
const MAX_UNDO = 40; // each step keeps a copy of the input: 256 KiB at 256 px

let session, ort;
let noise = null; // of the translations, until another sample is asked for
let noiseSeed = 0;
let chosen = 0;
let filling = false;
let last = null; // last position of the pen while it is down
let requested = 0; // number of translations requested
let done = 0; // the latest request that the output shows
let running = false;
const undoStack = []; // earlier inputs
let opened = null; // the opened image as it is, to take "only these colours" back

// --- the network ---

function decodeBase64(base64) {
  const text = atob(base64);
  const content = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) content[i] = text.charCodeAt(i);
  return content;
}

async function start() {
  const { embedded } = window;
  const script = URL.createObjectURL(new Blob([decodeBase64(embedded.runtime)], { type: "text/javascript" }));
  ort = await import(script);
  URL.revokeObjectURL(script);
  ort.env.wasm.wasmBinary = decodeBase64(embedded.wasm);
  ort.env.wasm.numThreads = 1;
  session = await ort.InferenceSession.create(decodeBase64(embedded.model));
  if (facts.noise) noise = drawNoise(noiseSeed);
  window.embedded = null;
}

/** Return the input canvas as a tensor (1, C, H, W) in [-1, 1]. */
function toTensor() {
  const pixels = input.getImageData(0, 0, width, height).data;
  const count = width * height;
  const values = new Float32Array(facts.channels * count).fill(facts.classes ? -1 : 0);
  for (let i = 0; i < count; i++) {
    const [r, g, b] = [pixels[4 * i], pixels[4 * i + 1], pixels[4 * i + 2]];
    if (facts.classes) values[nearest(r, g, b) * count + i] = 1;
    else if (facts.channels === 1) // grey with the integer weights of PIL, as in `translate`
      values[i] = ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) / 127.5 - 1;
    else [r, g, b].forEach((value, c) => (values[c * count + i] = value / 127.5 - 1));
  }
  return new ort.Tensor("float32", values, [1, facts.channels, height, width]);
}

// --- noise of a process ---

/** Return uniform numbers in [0, 1) that follow from the seed: mulberry32. */
function uniform(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Return noise of N(0, 1) as a tensor (1, K, C, H, W), by Box and Muller. */
function drawNoise(seed) {
  const [draws, channels] = facts.noise;
  const values = new Float32Array(draws * channels * height * width);
  const next = uniform(seed);
  for (let i = 0; i < values.length; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - next()));
    const angle = 2 * Math.PI * next();
    values[i] = radius * Math.cos(angle);
    if (i + 1 < values.length) values[i + 1] = radius * Math.sin(angle);
  }
  return new ort.Tensor("float32", values, [1, draws, channels, height, width]);
}

function prepareNoise() {
  element.sample.hidden = false;
  element.sample.addEventListener("click", () => {
    noise = drawNoise(++noiseSeed);
    translate();
  });
}

function show(tensor) {
  const [, channels, rows, columns] = tensor.dims;
  const count = rows * columns;
  const picture = output.createImageData(columns, rows);
  for (let i = 0; i < count; i++) {
    for (let c = 0; c < 3; c++) {
      const value = facts.classes_given
        ? facts.classes_given[argmax(tensor.data, channels, count, i)].colour[c]
        : (tensor.data[(channels === 3 ? c : 0) * count + i] + 1) * 127.5;
      picture.data[4 * i + c] = Math.round(value); // the array clips to 0 to 255
    }
    picture.data[4 * i + 3] = 255;
  }
  output.putImageData(picture, 0, 0);
}

function argmax(values, channels, count, i) {
  let best = 0;
  for (let c = 1; c < channels; c++) if (values[c * count + i] > values[best * count + i]) best = c;
  return best;
}

async function translate() {
  requested++;
  if (!session) return;
  document.body.dataset.state = "busy";
  if (running) return;
  running = true;
  try {
    while (done < requested) {
      const current = requested;
      await new Promise(requestAnimationFrame); // show the stroke first
      const start = performance.now();
      const { y_hat } = await session.run({ x: toTensor(), ...(noise && { noise }) });
      show(y_hat);
      done = current;
      element.status.textContent = `${Math.round(performance.now() - start)} ms`;
    }
    element.save.href = element.y.toDataURL("image/png");
    element.save.removeAttribute("aria-disabled");
    document.body.dataset.state = "idle";
  } catch (error) {
    fail(error);
  } finally {
    running = false;
  }
}

function fail(error) {
  element.error.textContent = `This browser cannot run the network: ${error.message ?? error}`;
  element.error.hidden = false;
  element.status.textContent = "";
  document.body.dataset.state = "failed";
}

// --- drawing ---

function nearest(r, g, b) {
  let best = 0;
  let smallest = Infinity;
  for (let i = 0; i < colours.length; i++) {
    const [cr, cg, cb] = colours[i];
    const distance = (r - cr) ** 2 + (g - cg) ** 2 + (b - cb) ** 2;
    if (distance < smallest) [best, smallest] = [i, distance];
  }
  return best;
}

function saveForUndo() {
  undoStack.push(input.getImageData(0, 0, width, height));
  if (undoStack.length > MAX_UNDO) undoStack.shift();
  element.undo.disabled = false;
}

function undo() {
  const picture = undoStack.pop();
  if (!picture) return;
  input.putImageData(picture, 0, 0);
  element.undo.disabled = undoStack.length === 0;
  translate();
}

/** Draw a thick line of whole pixels. The lines of a canvas are antialiased, which would mix colours. */
function drawStroke(from, to) {
  const radius = Number(element.size.value) / 2;
  const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) * 2));
  input.fillStyle = `rgb(${colours[chosen].join(" ")})`;
  for (let step = 0; step <= steps; step++) {
    const [x, y] = [from.x + ((to.x - from.x) * step) / steps, from.y + ((to.y - from.y) * step) / steps];
    for (let row = Math.ceil(y - radius - 0.5); row <= y + radius - 0.5; row++) {
      const half = Math.sqrt(Math.max(0, radius ** 2 - (row + 0.5 - y) ** 2));
      const left = Math.round(x - half);
      input.fillRect(left, row, Math.max(1, Math.round(x + half) - left), 1);
    }
  }
}

function floodFill(at) {
  const picture = input.getImageData(0, 0, width, height);
  const pixels = new Uint32Array(picture.data.buffer);
  const start = Math.floor(at.y) * width + Math.floor(at.x);
  const old = pixels[start];
  const paint = new Uint32Array(new Uint8Array([...colours[chosen], 255]).buffer)[0];
  if (old === paint) return;
  const waiting = [start];
  while (waiting.length) {
    const i = waiting.pop();
    if (pixels[i] !== old) continue;
    pixels[i] = paint;
    const column = i % width;
    if (column > 0) waiting.push(i - 1);
    if (column < width - 1) waiting.push(i + 1);
    if (i >= width) waiting.push(i - width);
    if (i < pixels.length - width) waiting.push(i + width);
  }
  input.putImageData(picture, 0, 0);
}

function toPixel(event) {
  const box = element.x.getBoundingClientRect();
  const clamp = (value, limit) => Math.min(Math.max(value, 0), limit - 0.001);
  return {
    x: clamp(((event.clientX - box.left - 1) / (box.width - 2)) * width, width), // 1 px: the border
    y: clamp(((event.clientY - box.top - 1) / (box.height - 2)) * height, height),
  };
}

function clear() {
  const background = colours.length === 2 ? 1 : chosen; // white paper, or the chosen class
  input.fillStyle = `rgb(${colours[background].join(" ")})`;
  input.fillRect(0, 0, width, height);
}

function chooseColour(i) {
  chosen = i;
  [...element.colours.children].forEach((each, j) => each.setAttribute("aria-pressed", String(i === j)));
}

function chooseTool(fill) {
  filling = fill;
  element.brush.setAttribute("aria-pressed", String(!fill));
  element.fill.setAttribute("aria-pressed", String(fill));
}

function prepareDrawing() {
  element.drawing.hidden = false;
  facts.colours.forEach((each, i) => {
    const button = document.createElement("button");
    const swatch = document.createElement("i");
    swatch.style.background = `rgb(${each.colour.join(" ")})`;
    button.append(swatch, each.name);
    button.addEventListener("click", () => chooseColour(i));
    element.colours.append(button);
  });
  chooseColour(0);
  element.brush.addEventListener("click", () => chooseTool(false));
  element.fill.addEventListener("click", () => chooseTool(true));
  element.undo.addEventListener("click", undo);
  element.clear.addEventListener("click", () => {
    saveForUndo();
    clear();
    translate();
  });
  element.x.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    element.x.setPointerCapture(event.pointerId);
    saveForUndo();
    const at = toPixel(event);
    if (filling) floodFill(at);
    else drawStroke((last = at), at);
    translate();
  });
  element.x.addEventListener("pointermove", (event) => {
    if (!last) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const at = toPixel(each);
      drawStroke(last, at);
      last = at;
    }
    translate();
  });
  for (const end of ["pointerup", "pointercancel"]) element.x.addEventListener(end, () => (last = null));
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "z") undo();
    else if (/^[1-9]$/.test(event.key) && Number(event.key) <= colours.length && event.target.tagName !== "INPUT")
      chooseColour(Number(event.key) - 1);
  });
}

// --- images ---

async function openImage(source, name) {
  let picture;
  try {
    picture = await createImageBitmap(source, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    element.opened.textContent = `${name}: this browser cannot read it as an image.`;
    return;
  }
  saveForUndo();
  const { width: fullWidth, height: fullHeight } = picture;
  let [down, across] = facts.scale ?? [0, 0]; // as in training; 0: the model file does not say
  const tooSmall = Math.max(height / (down * fullHeight), width / (across * fullWidth));
  if (!facts.scale) down = across = Math.max(width / fullWidth, height / fullHeight);
  else if (tooSmall > 1) [down, across] = [down * tooSmall, across * tooSmall]; // else a border would be empty
  const [w, h] = [width / across, height / down];
  const percent = [down, across].map((factor) => `${Number((100 * factor).toPrecision(3))}%`);
  const scaled = down === 1 && across === 1 ? "" : `, at ${percent[0]}${percent[0] === percent[1] ? "" : ` × ${percent[1]}`} of its size`;
  input.fillStyle = "white";
  input.fillRect(0, 0, width, height);
  input.imageSmoothingEnabled = down !== 1 || across !== 1;
  input.imageSmoothingQuality = "high";
  input.drawImage(picture, (picture.width - w) / 2, (picture.height - h) / 2, w, h, 0, 0, width, height);
  opened = input.getImageData(0, 0, width, height);
  if (facts.classes || element.snap.checked) snapColours(); // classes: the network sees nothing else
  element.opened.textContent = name ? `Opened: ${name}, ${fullWidth} × ${fullHeight} px${scaled}.` : "";
  translate();
}

/** Replace the colour of each pixel by the nearest colour to draw with. */
function snapColours() {
  const picture = input.getImageData(0, 0, width, height);
  const pixels = picture.data;
  for (let i = 0; i < pixels.length; i += 4) {
    const colour = colours[nearest(pixels[i], pixels[i + 1], pixels[i + 2])];
    for (let c = 0; c < 3; c++) pixels[i + c] = colour[c];
  }
  input.putImageData(picture, 0, 0);
}

/** Ask before the colours of an image change: only the user knows whether a photo or a drawing was opened. */
function prepareSwitch() {
  element.snapping.hidden = false;
  element.snap.addEventListener("change", () => {
    if (!opened) return;
    saveForUndo();
    if (element.snap.checked) snapColours();
    else input.putImageData(opened, 0, 0);
    translate();
  });
}

function prepareImages() {
  element.open.addEventListener("click", () => element.file.click());
  element.file.addEventListener("change", () => {
    const [file] = element.file.files;
    if (file) openImage(file, file.name);
    element.file.value = "";
  });
  const markDropTarget = (isOver) => (event) => {
    event.preventDefault();
    element.x.classList.toggle("over", isOver);
  };
  document.addEventListener("dragover", markDropTarget(true));
  document.addEventListener("dragleave", markDropTarget(false));
  document.addEventListener("drop", (event) => {
    markDropTarget(false)(event);
    const [file] = event.dataTransfer.files;
    if (file) openImage(file, file.name);
  });
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) openImage(file, file.name || "pasted image");
  });
  facts.examples.forEach((each, i) => {
    const button = document.createElement("button");
    const image = document.createElement("img");
    [image.src, image.alt, button.title] = [each.picture, `example ${i + 1}`, each.name];
    button.append(image);
    button.addEventListener("click", () => openExample(each));
    element.examples.append(button);
  });
}

const openExample = (each) => openImage(new Blob([decodeBase64(each.picture.split(",")[1])], { type: "image/png" }), "");

(async () => {
  prepareImages();
  if (facts.noise) prepareNoise();
  if (colours && !facts.classes) prepareSwitch();
  if (colours) prepareDrawing();
  else element.x.classList.add("readonly");
  if (facts.examples.length) await openExample(facts.examples[0]);
  else if (colours) clear();
  undoStack.length = 0;
  element.undo.disabled = true;
  try {
    await start();
    document.body.dataset.state = "ready";
    element.status.textContent = "";
    if (facts.examples.length || colours) translate();
  } catch (error) {
    fail(error);
  }
})();
