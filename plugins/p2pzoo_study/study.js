// One session of the study: which images, in which order, is a function of the session's id alone.
"use strict";

const { study, protocol, algorithms } = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const SIDES = ["first", "second"];
const frame = () => new Promise(requestAnimationFrame);

// --- chance: a hash of the id (FNV-1a, mixed), then mulberry32 ---

function chance(id) {
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
  const found = [...list];
  for (let i = found.length - 1; i > 0; i -= 1) {
    const j = Math.floor(random() * (i + 1));
    [found[i], found[j]] = [found[j], found[i]];
  }
  return found;
}

function plan(session) {
  const random = chance(`${study} ${session}`);
  const algorithm = algorithms[Math.floor(random() * algorithms.length)];
  const pairs = shuffled(algorithm.pairs, random), total = protocol.practice + protocol.trials;
  // No image comes twice as the same kind; with 2 × total images none comes twice at all.
  const apart = protocol.pairing === "same input" ? 0 : pairs.length >= 2 * total ? total : Math.floor(pairs.length / 2);
  const trials = Array.from({ length: total }, (_, i) => {
    const fake = pairs[i], real = pairs[(i + apart) % pairs.length];
    return { practice: i < protocol.practice, real, fake, fakeSide: SIDES[Math.floor(random() * 2)] };
  });
  return { algorithm: algorithm.label, trials };
}

// --- showing ---

async function loaded(address) {
  const image = new Image();
  image.src = address;
  image.alt = "";
  await image.decode();
  return image;
}

// Visible from one frame on until the first one after the time is over; what it took, by the frames' own clock.
async function flash(image) {
  const begun = await frame();
  image.classList.add("shown");
  let now;
  do now = await frame(); while (now - begun < protocol.display_ms - 4);
  image.classList.remove("shown");
  return Math.round((now - begun) * 10) / 10;
}

function answer() {
  return new Promise(resolve => {
    const done = new AbortController(), once = { signal: done.signal };
    const give = side => { done.abort(); SIDES.forEach(each => at(each).disabled = true); resolve(side); };
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

function pressed() {
  at("next").hidden = false;
  at("next").focus();
  return new Promise(resolve => at("next").addEventListener("click", () => { at("next").hidden = true; resolve(); }, { once: true }));
}

function say(words, kind = "") {
  const [bold, rest] = words;
  at("say").className = kind;
  at("say").replaceChildren(Object.assign(document.createElement("b"), { textContent: bold }), document.createElement("br"), rest);
}

// --- a session ---

async function run(session) {
  const { algorithm, trials } = plan(session);
  const images = new Map();
  const wanted = [...new Set(trials.flatMap(({ real, fake }) => [real.real, fake.fake]))];
  for (const address of wanted) {
    images.set(address, await loaded(address));
    at("loading").textContent = `loading images: ${images.size} of ${wanted.length}`;
  }
  let left = 0;
  document.addEventListener("visibilitychange", () => { if (document.hidden) left += 1; });
  const warn = event => event.preventDefault();
  addEventListener("beforeunload", warn);
  at("welcome").hidden = true;
  at("trial").hidden = false;
  const told = [];
  for (const [i, { practice, real, fake, fakeSide }] of trials.entries()) {
    at("which").textContent = practice ? `practice ${i + 1} of ${protocol.practice}` : `${i + 1 - protocol.practice} of ${protocol.trials}`;
    if (i === protocol.practice) {
      say(["That was the practice.", "From now on you are not told whether you were right."]);
      await pressed();
    }
    const shown = SIDES.map(side => images.get(side === fakeSide ? fake.fake : real.real));
    SIDES.forEach((side, j) => {
      at(side).querySelector("img")?.remove();
      at(side).append(shown[j]);
    });
    say(["Look.", ""]);
    await Promise.all(shown.map(image => image.decode()));
    await frame();
    const before = left, shownMs = [];
    for (const image of shown) shownMs.push(await flash(image));
    say(["Which one is fake?", ""]);
    const asked = performance.now(), given = await answer();
    told.push({
      practice, real: real.id, fake: fake.id, fake_side: fakeSide, answer: given, shown_ms: shownMs,
      answer_ms: Math.round(performance.now() - asked), left_page: left > before,
    });
    at("done").value = i + 1;
    if (practice) {
      const right = given === fakeSide;
      say([right ? "Right." : "Wrong.", `The ${fakeSide} one was fake.`], right ? "right" : "wrong");
      await pressed();
    }
  }
  removeEventListener("beforeunload", warn);
  finish({ format: "p2pzoo-study-1", study, session, algorithm, protocol, pixel_ratio: devicePixelRatio, trials: told });
}

function finish(record) {
  const text = JSON.stringify(record, null, 1);
  at("trial").hidden = true;
  at("end").hidden = false;
  at("of").textContent = record.session;
  const times = record.trials.flatMap(trial => trial.shown_ms);
  at("late").textContent = `images were shown for ${Math.round(Math.min(...times))} to ${Math.round(Math.max(...times))} ms`;
  at("text").value = text;
  at("save").href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  at("save").download = `study-${study}-${record.session}.json`;
  at("save").focus();
}

const drawn = crypto.getRandomValues(new Uint8Array(6));
at("session").value = new URLSearchParams(location.search).get("session") ?? [...drawn].map(byte => byte.toString(16).padStart(2, "0")).join("");
at("begin").addEventListener("click", () => {
  const session = at("session").value;
  if (!/^[A-Za-z0-9_-]{1,40}$/.test(session)) { at("loading").textContent = "a session is named by letters, digits, - and _"; return; }
  at("begin").disabled = at("session").disabled = true;
  run(session).catch(error => { at("loading").textContent = `an image could not be shown (${error.message})`; });
});
at("begin").focus();
