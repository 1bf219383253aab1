// A picture through every model beside each other, with ONNX Runtime Web. models.json (from build.py) names the models.

import * as ort from "./ort/ort.wasm.min.mjs";
import { prepareImage } from "./recipe.js";

const N_SHOWN = 5;
const N_WARM_UP = 3; // the first runs compile and allocate
const N_RUNS = 10;
const NONE_BELOW = 50; // percent: less than all other answers together
const SMALL_PICTURE = 100; // pixels: shown with their edges
const MEGABYTE = 1e6;
const byId = (id) => document.getElementById(id);
const sessions = new Map();
let models = [];
let results = []; // one a model: { shares } or { error }, and its times
let latest = 0; // the last question asked: an answer to an earlier one is not shown

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;

function say(text) {
  byId("status").textContent = text;
}

// A session of a model; fetched once.
function open(model) {
  if (!sessions.has(model.file)) {
    const session = ort.InferenceSession.create(encodeURIComponent(model.file));
    session.catch(() => sessions.delete(model.file)); // to be tried again
    sessions.set(model.file, session);
  }
  return sessions.get(model.file);
}

async function readPixels(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

function softmax(logits) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (value) => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

// The middle of an odd number of values, the mean of the two middle ones of an even number.
export function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

const order = (shares) => shares.map((_, i) => i).sort((a, b) => shares[b] - shares[a] || a - b);
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const milliseconds = (time) => `${time < 10 ? time.toFixed(1) : time.toFixed(0)}\u00a0ms`;
const nameOf = (model, i) => model.labels[i] ?? `class ${i}`;
const threshold = () => Number(byId("threshold").value) / 100;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function painted(made, i) {
  made.style.setProperty("--colour", `var(--model-${i % 4})`);
  return made;
}

// What a model answers, and how long it takes beside the first.
function card(model, i) {
  const made = painted(element("article", "model"), i);
  made.setAttribute("aria-label", model.name);
  made.append(element("h2", "", model.name), element("p", "why", `${(model.bytes / MEGABYTE).toFixed(1)} MB`));
  const { shares, error, times } = results[i];
  if (error) made.append(element("p", "why", error));
  if (shares) {
    const first = order(shares)[0];
    const none = shares[first] < threshold();
    made.append(element("p", "answer", none ? "None of these" : nameOf(model, first)));
    made.append(element("p", "why share", none ? `likeliest: ${nameOf(model, first)}, ${percent(shares[first])}`
      : percent(shares[first])));
  }
  if (times) {
    const text = element("p", "time", milliseconds(median(times)));
    const reference = results[0].times;
    if (i > 0 && reference) text.append(`, ${(median(reference) / median(times)).toFixed(2)} times as fast`);
    made.append(text);
  }
  return made;
}

// The class of that name: of the same number where there is one, since names repeat (ImageNet has two cranes).
function indexOf(model, { label, k }) {
  return nameOf(model, k) === label ? k : model.labels.indexOf(label);
}

// One row an answer that is among the first of any model, with a bar for every model.
function answerRow(answer) {
  const row = element("li");
  row.append(element("div", "label", answer.label));
  models.forEach((model, i) => {
    const { shares } = results[i];
    if (!shares) return;
    const share = shares[indexOf(model, answer)];
    const bar = painted(element("div", "bar"), i);
    bar.title = model.name;
    const filled = element("div", "filled");
    filled.style.width = `${100 * (share ?? 0)}%`;
    const track = element("div", "track");
    track.append(filled);
    bar.append(track, element("span", "share", share === undefined ? "-" : percent(share)));
    row.append(bar);
  });
  return row;
}

function show() {
  byId("threshold-shown").textContent = `${byId("threshold").value} %`;
  if (!results.length) return;
  byId("models").replaceChildren(...models.map(card));
  byId("answers").replaceChildren(...likeliest().map(answerRow));
}

// The answers that any model thinks likeliest: by the larger share, the likeliest first.
function likeliest() {
  const found = new Map();
  models.forEach((model, i) => {
    const shares = results[i].shares ?? [];
    for (const k of order(shares).slice(0, N_SHOWN)) {
      const label = nameOf(model, k);
      const largest = Math.max(found.get(`${k} ${label}`)?.largest ?? 0, shares[k]);
      found.set(`${k} ${label}`, { label, k, largest });
    }
  });
  return [...found.values()].sort((a, b) => b.largest - a.largest).slice(0, N_SHOWN);
}

const breathe = () => new Promise((resolve) => setTimeout(resolve)); // lets the page be drawn between runs

// Every model's first answer, then its times: models in turns, so that what else the device does meets all alike.
async function classify(picture) {
  const asked = ++latest;
  results = models.map(() => ({}));
  const runs = [];
  for (const [i, model] of models.entries()) {
    say(`${model.name}: loading.`);
    try {
      const session = await open(model);
      const [height, width] = model.recipe.size;
      const pixels = prepareImage(picture, model.recipe);
      const feeds = {
        [session.inputNames[0]]: new ort.Tensor("float32", pixels, [1, model.recipe.mean.length, height, width]),
      };
      const outputs = await session.run(feeds);
      if (asked !== latest) return;
      results[i] = { shares: softmax(outputs[session.outputNames[0]].data) };
      runs.push({ session, feeds, i, times: [] });
    } catch (error) {
      if (asked !== latest) return;
      results[i] = { error: error.message };
    }
    show();
  }
  for (let round = 0; round < N_WARM_UP + N_RUNS; round++) {
    say(round < N_WARM_UP ? "Warming up." : `Timing: run ${round - N_WARM_UP + 1} of ${N_RUNS}.`);
    await breathe();
    for (const { session, feeds, times } of runs) {
      const start = performance.now();
      await session.run(feeds);
      if (round >= N_WARM_UP) times.push(performance.now() - start);
      if (asked !== latest) return;
    }
  }
  for (const { i, times } of runs) results[i].times = times;
  show();
  say(runs.length ? `Times: median of ${N_RUNS} runs in turns, after ${N_WARM_UP} to warm up; ${threads()}.`
    : "No model could be run.");
}

function threads() {
  return ort.env.wasm.numThreads === 1 ? "one thread" : `${ort.env.wasm.numThreads} threads`;
}

async function pick(blob, name) {
  let picture;
  try {
    picture = await readPixels(blob);
  } catch {
    latest++;
    results = [];
    byId("result").hidden = true;
    say(`${name} is no picture that this browser reads.`);
    return;
  }
  const shown = byId("shown");
  URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(blob);
  shown.classList.toggle("small", Math.max(picture.width, picture.height) < SMALL_PICTURE);
  byId("result").hidden = false;
  await classify(picture);
}

function markSample(pressed) {
  for (const button of byId("samples").children) button.setAttribute("aria-pressed", String(button === pressed));
}

function sampleButton(path) {
  const button = element("button");
  const image = Object.assign(element("img"), { src: path, alt: decodeURIComponent(path.split("/").at(-1)) });
  button.type = "button";
  button.append(image);
  button.addEventListener("click", async () => {
    markSample(button);
    await pick(await (await fetch(path)).blob(), image.alt);
  });
  return button;
}

async function start() {
  const site = await (await fetch("models.json")).json();
  models = site.models;
  byId("samples").replaceChildren(...site.samples.map(sampleButton));
  byId("samples").hidden = !site.samples.length;
  byId("threshold").value = NONE_BELOW;
  byId("threshold").addEventListener("input", show);
  byId("picture").addEventListener("change", async ({ target }) => {
    const [file] = target.files;
    if (!file) return;
    markSample(null);
    await pick(file, file.name);
    target.value = ""; // the same picture can be picked again
  });
  show();
  say(site.samples.length ? "Pick a picture, or one of the samples." : "Pick a picture.");
}

start().catch((error) => say(`models.json can not be read: ${error.message}`));
