// The page: drawing, masks, scores, receptive fields and feature maps. explore_network.js runs the
// networks. A mask is a Uint8Array (H, W): bit k of a pixel is set if class k is there.

"use strict";

const $ = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];

const DATA = JSON.parse($("#data").textContent);
const SIZE = DATA.size; // of an image, in pixels
const AREA = SIZE * SIZE;
const CLASSES = DATA.classes.length;
const COLORS = DATA.colors.map((text) => rgb(...[1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16))));
const WHITE = rgb(255, 255, 255);
const ORANGE = rgb(213, 94, 0);
const DARK = grey(30);
const SMALLEST = 3; // radius of a shape, in pixels
const LARGEST = 20;

const networks = DATA.networks.map((description) => new Network(description));
const testImages = DATA.images.map(({ pixels, masks }) => ({ pixels: bytes(pixels), masks: bytes(masks) }));

// What the user has made and chosen. Everything else follows from it.
const state = {
  base: -1, // number of the test image below the shapes; -1 is black
  shapes: [],
  chosen: null, // one of the shapes
  painted: new Uint8Array(AREA),
  brush: { row: SIZE >> 1, column: SIZE >> 1, down: false },
  thresholds: DATA.classes.map(() => 0.5),
  pixel: null, // {network, row, column} of an output
  stage: 0,
  network: networks.length - 1, // whose stages are drawn
};

// What follows: image, truth, and for each network its masks by both rules.
const image = new Uint8Array(3 * AREA);
const truth = new Uint8Array(AREA);
const results = networks.map(() => ({
  confidence: new Float32Array(CLASSES * AREA), // 1 is the class's mask value
  threshold: new Uint8Array(AREA),
  window: new Uint8Array(AREA),
  milliseconds: 0,
}));

// A colour as one number, in the order in which a canvas stores it.
function rgb(red, green, blue) {
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

function grey(value) {
  return rgb(value, value, value);
}

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// ---- Shapes -------------------------------------------------------------------------------------

// The corners of a shape around (0, 0) for radius 1, as SegStudio draws them; null for round ones.
function corners(shape) {
  const name = DATA.classes[shape.kind];
  if (name === "rectangle") {
    const d = shape.slim;
    return [d, Math.PI - d, Math.PI + d, -d].map((angle) => [Math.cos(angle), Math.sin(angle)]);
  }
  if (name === "triangle") return [0, 1, 2].map((k) => polar(1, (k * 2 * Math.PI) / 3));
  if (name === "star") return Array.from({ length: 10 }, (_, k) => polar(k % 2 ? 0.45 : 1, (k * Math.PI) / 5));
  return null;
}

function polar(length, angle) {
  return [length * Math.cos(angle), length * Math.sin(angle)];
}

// Whether the centre of a pixel is in a shape.
function contains(shape, column, row) {
  const dx = (column - shape.x) / shape.radius;
  const dy = (row - shape.y) / shape.radius;
  const x = dx * Math.cos(shape.turn) + dy * Math.sin(shape.turn);
  const y = dy * Math.cos(shape.turn) - dx * Math.sin(shape.turn);
  const points = corners(shape);
  if (points === null) {
    const short = DATA.classes[shape.kind] === "oval" ? shape.slim : 1;
    return x * x + (y * y) / (short * short) < 1;
  }
  let inside = false; // it changes at each edge that a ray to the right crosses
  for (let k = 0, last = points.length - 1; k < points.length; last = k++) {
    const [x1, y1] = points[last];
    const [x2, y2] = points[k];
    if (y1 > y !== y2 > y && x < x1 + ((y - y1) / (y2 - y1)) * (x2 - x1)) inside = !inside;
  }
  return inside;
}

function between(low, high) {
  return low + Math.random() * (high - low);
}

function newColor() {
  const color = [0, 1, 2].map(() => Math.floor(between(0, 256)));
  color[Math.floor(between(0, 3))] = Math.floor(between(128, 256)); // none is near black
  return color;
}

function newShape(kind, x, y, radius) {
  const slim = DATA.classes[kind] === "oval" ? 0.6 : 0.65;
  return { kind, x, y, radius, slim, turn: between(-0.4, 0.4), color: newColor() };
}

function addShape(kind, x, y, radius) {
  state.shapes.push(newShape(kind, x, y, radius));
  state.chosen = state.shapes[state.shapes.length - 1];
  keepInside(state.chosen);
}

function keepInside(shape) {
  shape.radius = Math.min(Math.max(shape.radius, SMALLEST), LARGEST);
  const margin = Math.min(shape.radius, SIZE / 2 - 1);
  shape.x = Math.min(Math.max(shape.x, margin), SIZE - 1 - margin);
  shape.y = Math.min(Math.max(shape.y, margin), SIZE - 1 - margin);
}

function randomImage() {
  state.base = -1;
  state.shapes = [];
  const count = Math.floor(between(2, 6));
  for (let k = 0; k < count; k++) {
    addShape(Math.floor(between(0, CLASSES)), between(0, SIZE), between(0, SIZE), between(5, 14));
    state.chosen.turn = between(-Math.PI, Math.PI);
    state.chosen.slim = DATA.classes[state.chosen.kind] === "oval" ? between(0.45, 0.7) : between(0.4, 0.9);
  }
}

// Draws the test image, then the shapes over it. A shape hides what is below it, also in the masks.
function drawImage() {
  image.fill(0);
  truth.fill(0);
  if (state.base >= 0) {
    image.set(testImages[state.base].pixels);
    truth.set(testImages[state.base].masks);
  }
  for (const shape of state.shapes) {
    const reach = Math.ceil(shape.radius) + 1;
    const [left, top] = [shape.x - reach, shape.y - reach].map((v) => Math.max(0, Math.floor(v)));
    const [right, bottom] = [shape.x + reach, shape.y + reach].map((v) => Math.min(SIZE - 1, Math.ceil(v)));
    for (let row = top; row <= bottom; row++) {
      for (let column = left; column <= right; column++) {
        if (!contains(shape, column, row)) continue;
        const i = row * SIZE + column;
        for (let c = 0; c < 3; c++) image[c * AREA + i] = shape.color[c];
        truth[i] = 1 << shape.kind;
      }
    }
  }
}

// ---- Masks and scores ---------------------------------------------------------------------------

function runNetwork(number) {
  const network = networks[number];
  const started = performance.now();
  const output = network.run(image);
  results[number].milliseconds = performance.now() - started;
  const { confidence } = results[number];
  for (let k = 0; k < CLASSES; k++) {
    for (let i = k * AREA; i < (k + 1) * AREA; i++) {
      confidence[i] = network.logits ? 1 / (1 + Math.exp(-output[i])) : output[i] / DATA.maskValues[k];
    }
  }
}

function setMasks({ confidence, threshold, window }) {
  threshold.fill(0);
  window.fill(0);
  for (let k = 0; k < CLASSES; k++) {
    const value = DATA.maskValues[k];
    const low = DATA.windows[k][0] / value;
    const high = (DATA.windows[k][1] ?? Infinity) / value;
    for (let i = 0; i < AREA; i++) {
      const x = confidence[k * AREA + i];
      if (x > state.thresholds[k]) threshold[i] |= 1 << k;
      if (x > low && x < high) window[i] |= 1 << k;
    }
  }
}

// IoU and Dice of each class and their means; null where neither mask has the class.
function scores(masks) {
  const classes = DATA.classes.map((_, k) => {
    let both = 0;
    let sum = 0;
    for (let i = 0; i < AREA; i++) {
      const a = (masks[i] >> k) & 1;
      const b = (truth[i] >> k) & 1;
      both += a & b;
      sum += a + b;
    }
    return sum === 0 ? null : { iou: both / (sum - both), dice: (2 * both) / sum };
  });
  const there = classes.filter((score) => score !== null);
  const mean = (key) => there.reduce((sum, score) => sum + score[key], 0) / there.length;
  return { classes, mean: there.length === 0 ? null : { iou: mean("iou"), dice: mean("dice") } };
}

// ---- Pictures -----------------------------------------------------------------------------------

const small = document.createElement("canvas"); // a picture before it is enlarged

// Fills a canvas with a picture of width x height pixels; color(i) is a number made by rgb().
function show(canvas, width, height, color) {
  const context = canvas.getContext("2d");
  small.width = width;
  small.height = height;
  const smallContext = small.getContext("2d");
  const picture = smallContext.createImageData(width, height);
  const pixels = new Uint32Array(picture.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = color(i);
  smallContext.putImageData(picture, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  return context;
}

// The masks in the classes' colours over a dark, grey copy of the image; several classes are white.
function maskColor(masks, i) {
  const bits = masks[i];
  if (bits === 0) return grey(0.1 * (image[i] + image[AREA + i] + image[2 * AREA + i]));
  const k = 31 - Math.clz32(bits);
  return bits === 1 << k ? COLORS[k] : WHITE;
}

function drawEditor() {
  const canvas = $("#editor");
  const painting = document.body.classList.contains("painting");
  const light = state.pixel && seenBy(state.pixel);
  const context = show(canvas, SIZE, SIZE, (i) => {
    const paint = painting && state.painted[i] ? maskColor(state.painted, i) : null;
    const parts = [0, 1, 2].map((c) => {
      let value = image[c * AREA + i];
      if (paint !== null) value = 0.35 * value + 0.65 * ((paint >> (8 * c)) & 255);
      // A dark image with light on it: the light shows on black pixels and on coloured ones.
      return light ? Math.min(0.4 * value + light[i] * (0.45 * value + 100), 255) : value;
    });
    return rgb(...parts);
  });
  const scale = canvas.width / SIZE;
  if (state.pixel) cross(context, scale, state.pixel.row, state.pixel.column);
  if (painting) {
    const half = brushSize() / 2;
    const { row, column } = state.brush;
    frame(context, (column + 0.5 - half) * scale, (row + 0.5 - half) * scale, 2 * half * scale);
  } else if (state.chosen) {
    const { x, y, radius } = state.chosen;
    frame(context, (x + 0.5 - radius) * scale, (y + 0.5 - radius) * scale, 2 * radius * scale);
  }
}

// What an output pixel sees: 0 to 1 for each input pixel.
function seenBy({ network: number, row, column }) {
  if (!$("input[name=view][value=influence]").checked) return fieldOf(state.pixel);
  const influence = networks[number].influence(largestClass(state.pixel), row, column);
  const most = Math.max(...influence);
  return influence.map((value) => (most > 0 ? (value / most) ** 0.4 : 0)); // weak ones show, too
}

let latestField = { key: "", field: null }; // it changes with the pixel only, not with the image

function fieldOf({ network, row, column }) {
  const key = [network, row, column].join();
  if (key !== latestField.key) latestField = { key, field: networks[network].receptiveField(row, column) };
  return latestField.field;
}

function largestClass(pixel) {
  const shares = DATA.classes.map((_, k) => confidenceAt(pixel, k));
  return shares.indexOf(Math.max(...shares));
}

// A square in white and black dashes: visible on every colour.
function frame(context, left, top, side) {
  context.lineWidth = 3;
  for (const [color, dashes] of [["#ffffff", []], ["#000000", [8, 8]]]) {
    context.strokeStyle = color;
    context.setLineDash(dashes);
    context.strokeRect(left, top, side, side);
  }
  context.setLineDash([]);
}

// Marks one pixel by a white square with a black border.
function cross(context, scale, row, column) {
  context.lineWidth = 3;
  context.strokeStyle = "#000000";
  context.strokeRect(column * scale - 4, row * scale - 4, scale + 8, scale + 8);
  context.strokeStyle = "#ffffff";
  context.strokeRect(column * scale - 2, row * scale - 2, scale + 4, scale + 4);
}

const coverages = networks.map(() => null); // made when they are first shown

function drawMasks() {
  show($("#truth"), SIZE, SIZE, (i) => maskColor(truth, i));
  networks.forEach((network, number) => {
    const canvas = $(`#network-${number}`);
    let blocked = null;
    if ($("#coverage").checked) blocked = coverages[number] ??= network.coverage();
    const context = show(canvas, SIZE, SIZE, (i) =>
      blocked && !blocked[i] ? ORANGE : maskColor(results[number].threshold, i)
    );
    if (state.pixel?.network === number) cross(context, canvas.width / SIZE, state.pixel.row, state.pixel.column);
  });
}

// ---- Scores, thresholds, windows ----------------------------------------------------------------

function text(score) {
  return score === null ? "not there" : `IoU ${score.iou.toFixed(2)}\nDice ${score.dice.toFixed(2)}`;
}

function drawScores() {
  const columns = results.flatMap((result) => [result.threshold, result.window]);
  const painted = state.painted.some((bits) => bits > 0);
  document.body.classList.toggle("painted", painted);
  columns.push(state.painted);
  const found = columns.map(scores);
  for (const row of all("#scores tr[data-class]")) {
    const k = Number(row.dataset.class);
    [...row.querySelectorAll("td")].forEach((cell, column) => {
      const bit = 1 << k;
      const masks = columns[column];
      show(cell.querySelector("canvas"), SIZE, SIZE, (i) => (masks[i] & bit ? COLORS[k] : DARK));
      cell.querySelector("span").textContent = text(found[column].classes[k]);
    });
    const value = state.thresholds[k] * DATA.maskValues[k];
    row.querySelector("output").textContent =
      `${state.thresholds[k].toFixed(2)} × ${DATA.maskValues[k]} = ${value.toFixed(1)}`;
  }
  [...all("#scores .mean td span")].forEach((span, column) => (span.textContent = text(found[column].mean)));
  networks.forEach((_, number) => {
    const mean = found[2 * number].mean;
    $(`#note-${number}`).textContent = mean === null ? "" : `mean IoU ${mean.iou.toFixed(2)}`;
  });
  const you = found[found.length - 1].mean;
  $("#editor-note").textContent = painted && you ? `you: mean IoU ${you.iou.toFixed(2)}` : "";
}

// DLStudio's windows on one axis, with the thresholds and the outputs at the chosen pixel.
function drawWindows() {
  const left = 84;
  const right = 400;
  const at = (value) => left + ((right - left) * Math.min(Math.max(value, 0), 300)) / 300;
  let svg = "";
  for (const value of [0, 50, 100, 150, 200, 250, 300]) {
    svg += `<line x1="${at(value)}" x2="${at(value)}" y1="6" y2="238" stroke="currentColor" opacity="0.2"/>`;
    svg += `<text x="${at(value)}" y="256" text-anchor="middle">${value}</text>`;
  }
  DATA.classes.forEach((name, k) => {
    const top = 12 + 45 * k;
    const [low, high] = DATA.windows[k];
    const end = high ?? 300;
    svg += `<text x="0" y="${top + 21}">${name}</text>`;
    svg += `<rect x="${at(low)}" y="${top}" width="${at(end) - at(low)}" height="32" rx="3" fill="${DATA.colors[k]}" opacity="0.75"/>`;
    const line = at(state.thresholds[k] * DATA.maskValues[k]);
    svg += `<line x1="${line}" x2="${line}" y1="${top - 5}" y2="${top + 37}" stroke="currentColor" stroke-width="4"/>`;
    if (state.pixel) {
      const value = confidenceAt(state.pixel, k) * DATA.maskValues[k];
      svg += `<circle cx="${at(value)}" cy="${top + 16}" r="7" fill="#ffffff" stroke="#000000" stroke-width="3"/>`;
    }
  });
  $("#windows").innerHTML = svg;
}

function confidenceAt({ network, row, column }, k) {
  return results[network].confidence[k * AREA + row * SIZE + column];
}

// ---- One output pixel ---------------------------------------------------------------------------

function describePixel() {
  const box = $("#pixel");
  if (state.pixel === null) {
    box.innerHTML = '<p class="soft">No pixel is chosen.</p>';
    return;
  }
  const { network: number, row, column } = state.pixel;
  const field = fieldOf(state.pixel);
  const rows = [];
  const columns = [];
  let count = 0;
  field.forEach((reached, i) => {
    if (!reached) return;
    count++;
    rows.push(Math.floor(i / SIZE));
    columns.push(i % SIZE);
  });
  let sentence;
  if (count === 0) {
    sentence =
      "<span class='warn'>No input pixel reaches it.</span> Its outputs are the same for every " +
      "image: the biases of the last layer. Training can only change these constants.";
  } else {
    const [top, bottom, first, last] = [Math.min(...rows), Math.max(...rows), Math.min(...columns), Math.max(...columns)];
    const sides = `${bottom - top + 1}×${last - first + 1}`;
    const whole = count === AREA ? "It sees the whole image." : `They lie in ${sides} pixels: rows ${top} to ${bottom}, columns ${first} to ${last}.`;
    sentence = `<b>${count.toLocaleString("en")} of ${AREA.toLocaleString("en")} input pixels reach it.</b> ${whole}`;
  }
  const cells = DATA.classes.map((name, k) => {
    const share = confidenceAt(state.pixel, k);
    const output = (share * DATA.maskValues[k]).toFixed(1);
    const yes = share > state.thresholds[k] ? "<b>yes</b>" : "no";
    return `<tr><th>${name}</th><td>${output}</td><td>${share.toFixed(2)}</td><td>${yes}</td></tr>`;
  });
  box.innerHTML =
    `<p>Network <b></b>, row ${row}, column ${column}. ${sentence}</p>` +
    "<table><thead><tr><th></th><th>output</th><th>÷ mask value</th><th>above the threshold</th></tr>" +
    `</thead><tbody>${cells.join("")}</tbody></table>`;
  box.querySelector("p b").textContent = networks[number].name;
}

// ---- Stages and feature maps --------------------------------------------------------------------

// The network as a U: down to the first stage of the smallest resolution, then up.
function buildU() {
  const network = networks[state.network];
  const { stages, steps } = network;
  const height = (stage) => steps[stage.step].shape[1];
  const bottom = stages.findIndex((stage) => height(stage) === Math.min(...stages.map(height)));
  const u = $("#u");
  u.replaceChildren();
  const columns = [0, 1].map(() => {
    const column = document.createElement("div");
    column.className = "column";
    u.append(column);
    return column;
  });
  stages.forEach((stage, number) => {
    const [channels, rows, width] = steps[stage.step].shape;
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.stage = number;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 40;
    const name = document.createElement("b");
    name.textContent = stage.name;
    button.title = stage.name;
    const shape = document.createElement("span");
    shape.textContent = `${channels}×${rows}×${width}`;
    button.append(canvas, name, shape);
    button.addEventListener("click", () => {
      chooseStage(number);
      const below = matchMedia("(max-width: 64rem)").matches; // else they are beside the drawing
      if (below) $("#maps").scrollIntoView({ block: "nearest", behavior: "smooth" });
    });
    button.addEventListener("keydown", (event) => {
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const inOrder = number <= bottom ? step : -step; // the right column runs upwards
      const next = Math.min(Math.max(number + inOrder, 0), stages.length - 1);
      u.querySelector(`[data-stage="${next}"]`).focus();
      chooseStage(next);
    });
    columns[number <= bottom ? 0 : 1].append(button);
  });
  state.stage = Math.min(state.stage, stages.length - 1);
  drawSkips();
  drawStages();
}

// Green lines from the stages that are copied to the concatenations.
function drawSkips() {
  const u = $("#u");
  u.querySelector("svg")?.remove();
  const outer = u.getBoundingClientRect();
  const edge = (number, side) => {
    const box = u.querySelector(`[data-stage="${number}"]`).getBoundingClientRect();
    return [box[side] - outer.left, (box.top + box.bottom) / 2 - outer.top];
  };
  // The grey arrow from the last stage of the left column to the first one of the right column.
  const down = u.querySelectorAll(".column:first-child button").length;
  const [x1, y1] = edge(down - 1, "right");
  const [x2, y2] = edge(down, "left");
  let svg =
    `<path d="M${x1 + 3} ${y1} L${x2 - 4} ${y2}" stroke="var(--soft)" stroke-width="2.5"/>` +
    `<path d="M${x2 - 9} ${y2 - 6} l7 6 l-7 6 z" fill="var(--soft)"/>`;
  networks[state.network].stages.forEach((stage, number) => {
    if (stage.copied_from === undefined) return;
    const [x1, y1] = edge(stage.copied_from, "right");
    const [x2, y2] = edge(number, "left");
    svg +=
      `<path d="M${x1} ${y1} L${x2} ${y2}" stroke="var(--skip)" stroke-width="2.5" fill="none"/>` +
      `<circle cx="${x2}" cy="${y2}" r="5" fill="var(--skip)"/>`;
  });
  u.insertAdjacentHTML("beforeend", `<svg aria-hidden="true">${svg}</svg>`);
}

function chooseStage(number) {
  state.stage = number;
  drawStages();
}

// A picture of one channel: the smallest value is black, the largest white.
function greyOf(values, start, size) {
  let low = Infinity;
  let high = -Infinity;
  for (let i = start; i < start + size; i++) {
    low = Math.min(low, values[i]);
    high = Math.max(high, values[i]);
  }
  const range = high - low;
  return (i) => grey(range > 0 ? (255 * (values[start + i] - low)) / range : 90);
}

function drawStages() {
  const network = networks[state.network];
  for (const button of all("#u button")) {
    const number = Number(button.dataset.stage);
    const step = network.stages[number].step;
    const [channels, height, width] = network.steps[step].shape;
    const values = network.values[step];
    const mean = new Float32Array(height * width);
    for (let i = 0; i < values.length; i++) mean[i % mean.length] += Math.abs(values[i]) / channels;
    show(button.querySelector("canvas"), width, height, greyOf(mean, 0, mean.length));
    button.setAttribute("aria-pressed", number === state.stage);
  }
  // The other network, too, if it has the same stage.
  const names = (network) => network.stages.map((stage) => stage.name).join();
  const alike = networks.filter((other) => names(other) === names(network));
  const box = $("#maps");
  const key = `${state.network} ${alike.length} ${state.stage}`;
  if (box.dataset.key !== key) {
    box.dataset.key = key;
    box.replaceChildren();
    for (const other of alike) {
      const { shape } = other.steps[other.stages[state.stage].step];
      const title = document.createElement("h3");
      title.textContent = `${other.stages[state.stage].name}, ${other.name}`;
      const note = document.createElement("p");
      note.textContent = describeStage(other, shape);
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `feature maps of ${title.textContent}`);
      box.append(title, note, canvas);
    }
  }
  const canvases = [...box.querySelectorAll("canvas")];
  canvases.forEach((canvas, k) => drawMaps(canvas, alike[k], box.clientWidth, TALLEST / alike.length));
}

function describeStage(network, [channels, height, width]) {
  const stage = network.stages[state.stage];
  let sentence = `${channels} channels of ${height}×${width}. In each one, black is its smallest value and white its largest.`;
  if (stage.copied_from !== undefined) {
    sentence += ` ${stage.copied} of the channels are copied from ${network.stages[stage.copied_from].name}.`;
  }
  return sentence;
}

const TALLEST = 680; // all feature maps of a stage together, in pixels of the screen

function drawMaps(canvas, network, room, tallest) {
  const step = network.stages[state.stage].step;
  const [channels, height, width] = network.steps[step].shape;
  const values = network.values[step];
  const gap = 4;
  const columnsFor = (scale) => Math.max(1, Math.min(channels, Math.floor((room + gap) / (width * scale + gap))));
  let scale = Math.max(1, Math.floor(SIZE / width)); // as wide as the image, or wider if there is room
  const heightFor = (scale) => Math.ceil(channels / columnsFor(scale)) * (height * scale + gap);
  while (scale * width < 200 && heightFor(scale + 1) < tallest) scale++;
  const [w, h] = [width * scale, height * scale];
  const rows = Math.ceil(channels / columnsFor(scale));
  const columns = Math.ceil(channels / rows); // full rows, if possible
  canvas.width = columns * (w + gap) - gap;
  canvas.height = rows * (h + gap) - gap;
  const context = canvas.getContext("2d");
  const tile = document.createElement("canvas");
  tile.width = w;
  tile.height = h;
  for (let c = 0; c < channels; c++) {
    show(tile, width, height, greyOf(values, c * height * width, height * width));
    context.drawImage(tile, (c % columns) * (w + gap), Math.floor(c / columns) * (h + gap));
  }
}

// ---- Keeping everything up to date --------------------------------------------------------------

let due = null; // what has to be done before the next picture: "image", or "masks" only

function update(what = "image") {
  if (due === null) requestAnimationFrame(refresh);
  if (due !== "image") due = what;
}

function refresh() {
  const what = due;
  due = null;
  if (what === "image") {
    drawImage();
    networks.forEach((_, number) => runNetwork(number));
    const times = networks.map(({ name }, number) => `${name} ${results[number].milliseconds.toFixed(0)} ms`);
    $("#time").textContent = `computed in: ${times.join(", ")}`;
    drawStages();
  }
  results.forEach(setMasks);
  drawEditor();
  drawMasks();
  drawScores();
  drawWindows();
  describePixel();
  $("#image").value = state.base;
}

// ---- Pointer and keys ---------------------------------------------------------------------------

// The pixel under the pointer, as a number with a fraction: 0 is the centre of the first pixel.
function place(event) {
  const box = event.currentTarget.getBoundingClientRect();
  const column = ((event.clientX - box.left) / box.width) * SIZE - 0.5;
  const row = ((event.clientY - box.top) / box.height) * SIZE - 0.5;
  return [column, row];
}

function nearest(value) {
  return Math.min(Math.max(Math.round(value), 0), SIZE - 1);
}

function chosenKind() {
  return $("input[name=kind]:checked").value; // a number as text, or "eraser"
}

function painting() {
  return $("input[name=mode]:checked").value === "paint";
}

function brushSize() {
  return Number($("#brush").value);
}

function paint() {
  const half = (brushSize() - 1) / 2;
  const { row, column } = state.brush;
  const bits = chosenKind() === "eraser" ? 0 : 1 << chosenKind();
  for (let y = Math.max(0, row - half); y <= Math.min(SIZE - 1, row + half); y++) {
    for (let x = Math.max(0, column - half); x <= Math.min(SIZE - 1, column + half); x++) {
      state.painted[y * SIZE + x] = bits;
    }
  }
}

// Moves the brush in steps of one pixel, so that a fast stroke has no gaps.
function moveBrush(row, column, down) {
  const from = { ...state.brush };
  const steps = Math.max(Math.abs(row - from.row), Math.abs(column - from.column), 1);
  for (let k = down ? 1 : steps; k <= steps; k++) {
    state.brush.row = Math.round(from.row + ((row - from.row) * k) / steps);
    state.brush.column = Math.round(from.column + ((column - from.column) * k) / steps);
    if (down) paint();
  }
  update("masks");
}

let drag = null; // {shape, dx, dy} while a shape is moved, {shape, x, y} while it is drawn

$("#editor").addEventListener("pointerdown", (event) => {
  const [x, y] = place(event);
  event.currentTarget.setPointerCapture(event.pointerId);
  if (painting()) {
    moveBrush(nearest(y), nearest(x), false);
    drag = {};
    paint();
    update("masks");
    return;
  }
  const hit = state.shapes.findLast((shape) => contains(shape, x, y));
  if (hit) {
    state.chosen = hit;
    drag = { shape: hit, dx: hit.x - x, dy: hit.y - y };
  } else {
    addShape(Number(chosenKind()), x, y, 8);
    drag = { shape: state.chosen, x, y };
  }
  update();
});

$("#editor").addEventListener("pointermove", (event) => {
  if (drag === null && !painting()) return;
  const [x, y] = place(event);
  if (painting()) {
    moveBrush(nearest(y), nearest(x), drag !== null);
    return;
  }
  const { shape } = drag;
  if ("dx" in drag) {
    shape.x = x + drag.dx;
    shape.y = y + drag.dy;
  } else {
    const distance = Math.hypot(x - drag.x, y - drag.y);
    if (distance > 2) shape.radius = distance;
    shape.x = drag.x;
    shape.y = drag.y;
  }
  keepInside(shape);
  update();
});

for (const name of ["pointerup", "pointercancel"]) {
  $("#editor").addEventListener(name, () => (drag = null));
}

const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

const actions = {
  add() {
    addShape(Number(chosenKind()), between(16, SIZE - 16), between(16, SIZE - 16), 9);
  },
  bigger() {
    resize(1);
  },
  smaller() {
    resize(-1);
  },
  turn() {
    if (state.chosen) state.chosen.turn += Math.PI / 12;
  },
  recolor() {
    if (state.chosen) state.chosen.color = newColor();
  },
  delete() {
    state.shapes = state.shapes.filter((shape) => shape !== state.chosen);
    state.chosen = state.shapes[state.shapes.length - 1] ?? null;
  },
  random: randomImage,
  choose() {
    const next = state.shapes.indexOf(state.chosen) + 1;
    state.chosen = state.shapes[next % state.shapes.length] ?? null;
  },
};

function resize(change) {
  if (!state.chosen) return;
  state.chosen.radius += change;
  keepInside(state.chosen);
}

for (const name of ["add", "bigger", "smaller", "turn", "recolor", "delete", "random"]) {
  $(`#${name}`).addEventListener("click", () => {
    actions[name]();
    update();
  });
}

const KEYS = {
  "+": "bigger", "=": "bigger", "-": "smaller", t: "turn", a: "add", n: "choose", c: "recolor",
  Delete: "delete", Backspace: "delete",
};

$("#editor").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const step = event.shiftKey ? 8 : 1;
  if (painting()) {
    const { row, column, down } = state.brush;
    if (arrow) moveBrush(nearest(row + step * arrow[0]), nearest(column + step * arrow[1]), down);
    else if (key === " ") paint();
    else if (key === "p") state.brush.down = !down;
    else return;
    if (key === "p" && state.brush.down) paint();
    event.preventDefault();
    update("masks");
    return;
  }
  if (arrow && state.chosen) {
    state.chosen.y += step * arrow[0];
    state.chosen.x += step * arrow[1];
    keepInside(state.chosen);
  } else if (KEYS[key]) {
    actions[KEYS[key]]();
  } else {
    return;
  }
  event.preventDefault();
  update();
});

networks.forEach((_, number) => {
  const canvas = $(`#network-${number}`);
  const choose = (row, column) => {
    state.pixel = { network: number, row: nearest(row), column: nearest(column) };
    update("masks");
  };
  canvas.addEventListener("pointerdown", (event) => {
    const [x, y] = place(event);
    canvas.setPointerCapture(event.pointerId);
    choose(y, x);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    const [x, y] = place(event);
    choose(y, x);
  });
  canvas.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    const { row, column } = state.pixel?.network === number ? state.pixel : { row: SIZE >> 1, column: SIZE >> 1 };
    if (arrow) {
      const step = event.shiftKey ? 8 : 1;
      choose(row + step * arrow[0], column + step * arrow[1]);
    } else if (event.key === "Enter" || event.key === " ") {
      choose(row, column);
    } else if (event.key === "Escape") {
      state.pixel = null;
      update("masks");
    } else {
      return;
    }
    event.preventDefault();
  });
});

function chooseImage(number) {
  const count = testImages.length + 1; // -1 is the black image
  state.base = ((number + 1 + count) % count) - 1;
  state.shapes = [];
  state.chosen = null;
  state.painted.fill(0);
  update();
}

$("#image").addEventListener("change", (event) => chooseImage(Number(event.target.value)));
$("#previous").addEventListener("click", () => chooseImage(state.base - 1));
$("#next").addEventListener("click", () => chooseImage(state.base + 1));

function changeMode() {
  document.body.classList.toggle("painting", painting());
  document.body.classList.toggle("hiding", painting() && $("#hide").checked);
  if (!painting() && chosenKind() === "eraser") $("input[name=kind]").checked = true;
  $("#editor-title").textContent = painting() ? "your masks" : "your image";
  update("masks");
}

for (const radio of all("input[name=mode]")) radio.addEventListener("change", changeMode);
$("#hide").addEventListener("change", changeMode);
$("#brush").addEventListener("input", () => update("masks"));
for (const input of all("input[name=view], #coverage")) input.addEventListener("change", () => update("masks"));
$("#clear-paint").addEventListener("click", () => {
  state.painted.fill(0);
  update("masks");
});

for (let k = 0; k < CLASSES; k++) {
  $(`#threshold-${k}`).addEventListener("input", (event) => {
    state.thresholds[k] = Number(event.target.value);
    update("masks");
  });
}

$("#reset").addEventListener("click", () => {
  state.thresholds.fill(0.5);
  for (let k = 0; k < CLASSES; k++) $(`#threshold-${k}`).value = 0.5;
  update("masks");
});

for (const radio of all("input[name=network]")) {
  radio.addEventListener("change", () => {
    state.network = Number(radio.value);
    buildU();
  });
}

for (const form of all("form")) form.addEventListener("submit", (event) => event.preventDefault());

addEventListener("resize", () => {
  drawSkips();
  drawStages();
});

// A first image of three shapes. Browsers may restore old settings of a form: undo that.
for (const input of all("input")) {
  if (input.type === "range") input.value = input.defaultValue;
  else input.checked = input.defaultChecked;
}
for (const [kind, x, y, radius, color] of [
  [0, 17, 19, 11, [230, 200, 120]], [2, 45, 20, 9, [90, 150, 250]], [4, 33, 44, 13, [240, 90, 110]],
]) {
  addShape(kind, x, y, radius);
  Object.assign(state.chosen, { color, turn: 0.2 });
}
changeMode();
update();
refresh();
buildU();

// For the console of the browser, and for the tests.
window.explore = { DATA, networks, results, state, image, truth, testImages, update, scores };
