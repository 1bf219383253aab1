// The recipe that corp-onnx stores in a model, on RGBA pixels: resized, centre cropped or padded, normalised.
//
// Canvases resize each in its own way. This does what Pillow does, a separable filter that widens when it shrinks and
// rounds to 8 bits after each direction, so that the network meets the pixels that it meets on a server.

const FILTERS = {
  bilinear: { support: 1, weigh: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weigh: bicubic },
  box: { support: 0.5, weigh: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  hamming: { support: 1, weigh: (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0) },
  lanczos: { support: 3, weigh: (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
};
const BICUBIC_A = -0.5;

function bicubic(x) {
  const d = Math.abs(x);
  if (d < 1) return ((BICUBIC_A + 2) * d - (BICUBIC_A + 3)) * d * d + 1;
  return d < 2 ? BICUBIC_A * (((d - 5) * d + 8) * d - 4) : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

// For every target position: the first source position and the weights from there on.
function plan(from, to, name) {
  const scale = from / to;
  if (name === "nearest") return planNearest(scale, to);
  const positions = Array.from({ length: to }, (_, i) => (i + 0.5) * scale);
  const { support, weigh } = FILTERS[name];
  const widening = Math.max(scale, 1);
  return positions.map((at) => {
    const first = Math.max(0, Math.floor(at - support * widening + 0.5));
    const last = Math.min(from, Math.floor(at + support * widening + 0.5));
    const weights = Array.from({ length: last - first }, (_, i) => weigh((first + i + 0.5 - at) / widening));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((w) => w / sum) };
  });
}

// Adds up the positions as Pillow does: where one falls between two pixels, rounding decides.
function planNearest(scale, to) {
  const steps = [];
  for (let i = 0, at = scale * 0.5; i < to; i++, at += scale) steps.push({ first: Math.floor(at), weights: [1] });
  return steps;
}

// One direction of a resize. `lines` run across it; `along` and `across` are distances in the pixel array.
function resizeLines(source, target, lines, steps, from, to) {
  for (let line = 0; line < lines; line++) {
    steps.forEach(({ first, weights }, position) => {
      for (let band = 0; band < 3; band++) {
        let sum = 0;
        for (let i = 0; i < weights.length; i++) {
          sum += weights[i] * source[line * from.across + (first + i) * from.along + band];
        }
        target[line * to.across + position * to.along + band] = Math.round(sum); // clamped to 0..255 by its type
      }
    });
  }
}

function resize({ data, width, height }, newWidth, newHeight, filter) {
  const middle = new Uint8ClampedArray(newWidth * height * 4);
  resizeLines(data, middle, height, plan(width, newWidth, filter),
    { along: 4, across: 4 * width }, { along: 4, across: 4 * newWidth });
  const result = new Uint8ClampedArray(newWidth * newHeight * 4);
  resizeLines(middle, result, newWidth, plan(height, newHeight, filter),
    { along: 4 * newWidth, across: 4 }, { along: 4 * newWidth, across: 4 });
  return { data: result, width: newWidth, height: newHeight };
}

// Python rounds halves to even.
function roundEven(x) {
  const down = Math.floor(x);
  return x - down === 0.5 ? down + (down % 2) : Math.round(x);
}

function targetSize(width, height, recipe) {
  const { resize, fit = "cover" } = recipe;
  const goals = Array.isArray(resize) ? resize
    : recipe.size.map((side) => resize ?? Math.floor(side / recipe.crop_pct));
  const scales = [goals[0] / height, goals[1] / width];
  const scale = fit === "letterbox" ? Math.min(...scales) : Math.max(...scales);
  const rounded = fit === "cover" && goals[0] === goals[1] ? Math.floor : roundEven;
  const [newHeight, newWidth] = [height, width].map((side, i) =>
    fit === "squash" || (fit === "cover" && side * scale <= goals[i]) ? goals[i] : rounded(side * scale));
  return { newWidth, newHeight };
}

// Where the crop begins; negative where it pads.
function offset(extra, recipe) {
  if (recipe.crop_rounding === "down") return Math.floor(extra / 2);
  return extra > 0 ? roundEven(extra / 2) : -Math.floor(-extra / 2);
}

// RGBA pixels -> the network's input, float32 [channels, height, width].
export function prepareImage(image, recipe) {
  const grey = recipe.channels === "L";
  const { newWidth, newHeight } = targetSize(image.width, image.height, recipe);
  const { data } = resize(grey ? toGrey(image) : image, newWidth, newHeight, recipe.interpolation);
  const [height, width] = recipe.size;
  const [left, top] = [offset(newWidth - width, recipe), offset(newHeight - height, recipe)];
  const { fill = [] } = recipe;
  const bands = grey ? 1 : 3;
  const input = new Float32Array(bands * height * width);
  for (let band = 0; band < bands; band++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const inside = top + y >= 0 && top + y < newHeight && left + x >= 0 && left + x < newWidth;
        const value = inside ? data[((top + y) * newWidth + left + x) * 4 + band] : fill[band] ?? 0;
        input[(band * height + y) * width + x] = (value / 255 - recipe.mean[band]) / recipe.std[band];
      }
    }
  }
  return input;
}

function toGrey({ data, width, height }) {
  const grey = new Uint8ClampedArray(data.length);
  for (let i = 0; i < data.length; i += 4) {
    grey[i] = Math.round(0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]);
  }
  return { data: grey, width, height };
}
