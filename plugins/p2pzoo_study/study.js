// One session of the study. The session id alone decides which images are shown, in which order.
"use strict";

const { study, protocol, algorithms } = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const SIDES = ["first", "second"];
const frame = () => new Promise(requestAnimationFrame);

// --- random numbers: a hash of the id (FNV-1a, mixed), then mulberry32 ---

function randomFrom(id) {
  let state = 2166136261;
  for (const code of new TextEncoder().encode(id)) state = Math.imul(state ^ code, 16777619);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(list, random) {
  const items = [...list];
  for (let i = items.length - 1; i > 0; i -= 1) {
    const j = Math.floor(random() * (i + 1));
    [items[i], items[j]] = [items[j], items[i]];
  }
  return items;
}

function plan(session) {
  const random = randomFrom(`${study} ${session}`);
  const algorithm = algorithms[Math.floor(random() * algorithms.length)];
  const pairs = shuffled(algorithm.pairs, random), total = protocol.practice + protocol.trials;
  // No image occurs twice as real or twice as fake. With 2 × total images, none occurs twice at all.
  const offset = protocol.pairing === "same input" ? 0 : pairs.length >= 2 * total ? total : Math.floor(pairs.length / 2);
  const trials = Array.from({ length: total }, (_, i) => {
    const fake = pairs[i], real = pairs[(i + offset) % pairs.length];
    return { practice: i < protocol.practice, real, fake, fakeSide: SIDES[Math.floor(random() * 2)] };
  });
  return { algorithm: algorithm.label, trials };
}

// --- images and answers ---

async function loadImage(address) {
  const image = new Image();
  image.src = address;
  image.alt = "";
  await image.decode();
  return image;
}

// Shows an image from one frame until the first frame after the display time. Returns how long it was visible, in ms, by
// the clock of the frames. The 4 ms (less than a frame at 240 Hz)
// allow for rounding: without them, an image could stay for one frame too many.
async function flash(image) {
  const start = await frame();
  image.classList.add("visible");
  let now;
  do now = await frame(); while (now - start < protocol.display_ms - 4);
  image.classList.remove("visible");
  return Math.round((now - start) * 10) / 10;
}

function waitForAnswer() {
  return new Promise(resolve => {
    const done = new AbortController(), once = { signal: done.signal };
    const give = side => { done.abort(); SIDES.forEach(other => at(other).disabled = true); resolve(side); };
    for (const side of SIDES) {
      at(side).disabled = false;
      at(side).addEventListener("click", () => give(side), once);
    }
    addEventListener("keydown", event => {
      const side = { 1: "first", ArrowLeft: "first", ArrowUp: "first", 2: "second", ArrowRight: "second", ArrowDown: "second" }[event.key];
      if (side && !event.repeat) { event.preventDefault(); give(side); }
    }, once);
  });
}

function waitForNext() {
  at("next").hidden = false;
  at("next").focus();
  return new Promise(resolve => at("next").addEventListener("click", () => { at("next").hidden = true; resolve(); }, { once: true }));
}

function showMessage([bold, rest], kind = "") {
  at("message").className = kind;
  at("message").replaceChildren(Object.assign(document.createElement("b"), { textContent: bold }), document.createElement("br"), rest);
}

// --- a session ---

async function run(session) {
  const { algorithm, trials } = plan(session);
  const images = new Map();
  const addresses = [...new Set(trials.flatMap(({ real, fake }) => [real.real, fake.fake]))];
  for (const address of addresses) {
    images.set(address, await loadImage(address));
    at("loading").textContent = `loading images: ${images.size} of ${addresses.length}`;
  }
  let left = 0;
  document.addEventListener("visibilitychange", () => { if (document.hidden) left += 1; });
  const warn = event => event.preventDefault();
  addEventListener("beforeunload", warn);
  at("welcome").hidden = true;
  at("trial").hidden = false;
  const records = [];
  for (const [i, { practice, real, fake, fakeSide }] of trials.entries()) {
    at("which").textContent = practice ? `practice ${i + 1} of ${protocol.practice}` : `${i + 1 - protocol.practice} of ${protocol.trials}`;
    if (i === protocol.practice) {
      showMessage(["That was the practice.", "From now on, the page does not show whether you were right."]);
      await waitForNext();
    }
    const pair = SIDES.map(side => images.get(side === fakeSide ? fake.fake : real.real));
    SIDES.forEach((side, j) => {
      at(side).querySelector("img")?.remove();
      at(side).append(pair[j]);
    });
    showMessage(["Look.", ""]);
    await Promise.all(pair.map(image => image.decode()));
    await frame();
    const before = left, shownMs = [];
    for (const image of pair) shownMs.push(await flash(image));
    showMessage(["Which one is fake?", ""]);
    const askedAt = performance.now(), answer = await waitForAnswer();
    records.push({
      practice, real: real.id, fake: fake.id, fake_side: fakeSide, answer, shown_ms: shownMs,
      answer_ms: Math.round(performance.now() - askedAt), left_page: left > before,
    });
    at("done").value = i + 1;
    if (practice) {
      const right = answer === fakeSide;
      showMessage([right ? "Right." : "Wrong.", `The ${fakeSide} one was fake.`], right ? "right" : "wrong");
      await waitForNext();
    }
  }
  removeEventListener("beforeunload", warn);
  finish({ format: "p2pzoo-study-1", study, session, algorithm, protocol, pixel_ratio: devicePixelRatio, trials: records });
}

function finish(record) {
  const text = JSON.stringify(record, null, 1);
  at("trial").hidden = true;
  at("end").hidden = false;
  at("saved").textContent = record.session;
  const times = record.trials.flatMap(trial => trial.shown_ms);
  at("times").textContent = `images were shown for ${Math.round(Math.min(...times))} to ${Math.round(Math.max(...times))} ms`;
  at("text").value = text;
  at("save").href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  at("save").download = `study-${study}-${record.session}.json`;
  at("save").focus();
}

const bytes = crypto.getRandomValues(new Uint8Array(6));
at("session").value = new URLSearchParams(location.search).get("session") ?? [...bytes].map(byte => byte.toString(16).padStart(2, "0")).join("");
at("begin").addEventListener("click", () => {
  const session = at("session").value;
  if (!/^[A-Za-z0-9_-]{1,40}$/.test(session)) { at("loading").textContent = "a session id has letters, digits, - and _ only, at most 40"; return; }
  at("begin").disabled = at("session").disabled = true;
  run(session).catch(error => { at("loading").textContent = `an image could not be shown (${error.message}): reload the page`; });
});
at("begin").focus();
