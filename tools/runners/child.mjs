// What runs in node: the commands of child.py for ONNX Runtime's two packages.
//
//     node child.mjs FOLDER PACKAGE OUT answer|time PATHS... BATCH:N...
//
// FOLDER holds node_modules with PACKAGE, onnxruntime-node or onnxruntime-web (WebAssembly).
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";

const [folder, name, out, command, ...rest] = process.argv.slice(2);
const isPlan = (text) => /^\d+:\d+$/.test(text);
const plan = rest.filter(isPlan).map((text) => text.split(":").map(Number));
const paths = rest.filter((text) => !isPlan(text));
const threads = Number(process.env.RUNNER_THREADS ?? 2);
const leastSeconds = 0.15; // of one round, as in child.py
const ort = createRequire(join(folder, "package.json"))(name);
if (name === "onnxruntime-web") ort.env.wasm.numThreads = threads;

async function readArray(path) {
  const bytes = await readFile(path);
  const header = bytes.readUInt16LE(8);
  const described = bytes.toString("latin1", 10, 10 + header);
  if (!described.includes("'<f4'") || described.includes("True")) throw new Error(`${path}: no float32 in C order`);
  const shape = described.match(/\(([\d, ]+)\)/)[1].split(",").filter((text) => text.trim()).map(Number);
  const start = 10 + header;
  return { shape, data: new Float32Array(bytes.buffer.slice(bytes.byteOffset + start, bytes.byteOffset + bytes.length)) };
}

async function openModel(path) {
  const executionProviders = [name === "onnxruntime-web" ? "wasm" : "cpu"];
  const options = { executionProviders, intraOpNumThreads: threads, logSeverityLevel: 3 };
  const session = await ort.InferenceSession.create(new Uint8Array(await readFile(path)), options);
  return async (pixels) => (await session.run({ [session.inputNames[0]]: pixels }))[session.outputNames[0]];
}

function cut(images, start, batch) {
  const size = images.data.length / images.shape[0];
  const data = images.data.subarray(start * size, (start + batch) * size);
  return new ort.Tensor("float32", data, [batch, ...images.shape.slice(1)]);
}

async function measure(answer, pixels, calls) {
  const start = performance.now();
  for (let call = 0; call < calls; call++) await answer(pixels);
  return (performance.now() - start) / 1000 / calls;
}

const images = await readArray(paths.pop());
const answers = [];
for (const path of paths) answers.push(await openModel(path));
const found = {};
for (const [batch, count] of plan) {
  const rows = [];
  if (command === "answer") {
    for (let start = 0; start < count; start += batch) {
      const { dims, data } = await answers[0](cut(images, start, batch));
      const width = data.length / dims[0];
      for (let row = 0; row < dims[0]; row++) rows.push([...data.slice(row * width, (row + 1) * width)]);
    }
  } else {
    const pixels = cut(images, 0, batch);
    const calls = [];
    for (const answer of answers) {
      await answer(pixels);
      calls.push(Math.max(1, Math.round(leastSeconds / (await measure(answer, pixels, 1)))));
    }
    for (let round = 0; round < count; round++) {
      const row = [];
      for (const [i, answer] of answers.entries()) row.push(await measure(answer, pixels, calls[i]));
      rows.push(row);
    }
  }
  found[batch] = rows;
}
await writeFile(out, JSON.stringify(found));
process.exit(0);
