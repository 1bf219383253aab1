// A picked picture through the chosen model, with ONNX Runtime Web. models.json (from build.py) names the models.

import * as ort from "./ort/ort.wasm.min.mjs";
import { prepareImage } from "./recipe.js";

const N_SHOWN = 5;
const MEGABYTE = 1e6;
const byId = (id) => document.getElementById(id);
const sessions = new Map();
let picture = null;
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

function show(shares, labels) {
  const order = shares.map((_, i) => i).sort((a, b) => shares[b] - shares[a] || a - b).slice(0, N_SHOWN);
  byId("answers").replaceChildren(...order.map((i) => {
    const row = document.createElement("tr");
    row.insertCell().textContent = labels[i] ?? `class ${i}`;
    row.insertCell().textContent = `${(100 * shares[i]).toFixed(1)} %`;
    return row;
  }));
}

async function classify(model) {
  if (!picture) return;
  const asked = ++latest;
  try {
    say(`${model.name}: loading.`);
    const session = await open(model);
    const [height, width] = model.recipe.size;
    const input = prepareImage(picture, model.recipe);
    const tensor = new ort.Tensor("float32", input, [1, model.recipe.mean.length, height, width]);
    const start = performance.now();
    const outputs = await session.run({ [session.inputNames[0]]: tensor });
    const took = performance.now() - start;
    if (asked !== latest) return;
    show(softmax(outputs[session.outputNames[0]].data), model.labels);
    say(`${model.name}: ${took.toFixed(0)} ms`);
  } catch (error) {
    if (asked !== latest) return;
    byId("answers").replaceChildren();
    say(`${model.name}: ${error.message}`);
  }
}

async function pick(file, model) {
  try {
    picture = await readPixels(file);
  } catch {
    picture = null;
    byId("answers").replaceChildren();
    say(`${file.name} is no picture that this browser reads.`);
    return;
  }
  const shown = byId("shown");
  URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(file);
  shown.hidden = false;
  await classify(model());
}

async function start() {
  const models = await (await fetch("models.json")).json();
  byId("models").replaceChildren(...models.map((model, i) => {
    const label = document.createElement("label");
    const radio = Object.assign(document.createElement("input"), {
      type: "radio", name: "model", value: String(i), checked: i === 0,
    });
    radio.addEventListener("change", () => classify(model));
    label.append(radio, ` ${model.name} (${(model.bytes / MEGABYTE).toFixed(1)} MB)`);
    return label;
  }));
  const chosen = () => models[Number(document.querySelector("[name=model]:checked").value)];
  byId("picture").addEventListener("change", ({ target }) => target.files[0] && pick(target.files[0], chosen));
  say("Pick a picture.");
}

start().catch((error) => say(`models.json can not be read: ${error.message}`));
