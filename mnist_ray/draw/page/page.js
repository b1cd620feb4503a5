// FACTS and FILES come from files.js.
"use strict";
const $ = id => document.getElementById(id);
const canvas = $("canvas");
const sheet = $("sheet");
const SIZE = canvas.width;
const PEN = SIZE / 14;
const STEP = SIZE / 28;
const [HEIGHT, WIDTH] = FACTS.size;
const GREY = FACTS.channels === 1;
const paper = canvas.getContext("2d", { willReadFrequently: true });

// ---- the network

async function unpacked(name) {
  const bytes = Uint8Array.from(atob(FILES[name]), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

let worker;
let waiting = null; // the picture to be answered next: only the latest matters
let busy = true; // until the network has started

async function start() {
  const files = Object.fromEntries(await Promise.all(Object.keys(FILES).map(async name => [name, await unpacked(name)])));
  const script = new Blob([files["ort.wasm.min.js"], "\n", files["worker.js"]], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(script));
  await ask({ files });
}

// One message to the worker and its answer.
function ask(message, transfer = []) {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => data?.error ? reject(new Error(data.error)) : resolve(data);
    worker.onerror = event => reject(new Error(event.message || "the browser refused to start it"));
    worker.postMessage(message, transfer);
  });
}

// picture(): { pixels, width, height }, called when its turn has come; source: what to call it.
function show(picture, source = "") {
  waiting = { picture, source };
  pump();
}

async function pump() {
  if (busy || !waiting) return;
  busy = true;
  const { picture, source } = waiting;
  waiting = null;
  try {
    const { pixels, width, height } = picture();
    present(await ask({ pixels: pixels.buffer, width, height }, [pixels.buffer]), source);
  } catch (error) {
    fail(`The network could not answer: ${error.message}`);
  }
  busy = false;
  pump();
}

function fail(text) {
  $("failure").textContent = text;
  $("failure").hidden = !text;
}

// ---- what it answers

const className = i => FACTS.classes?.[i] ?? String(i);
const percent = p => `${(100 * p).toFixed(1)} %`;
let bars = [];
let later = 0;

function present({ image, p, known, several, maps }, source) { // p: a probability a class, null where nothing is drawn
  if (!$("hint").hidden) p = null; // of an empty sheet too, a network has an opinion
  paint($("seen"), image, GREY ? 1 : 3, 0, 1);
  const best = p ? p.indexOf(Math.max(...p)) : -1;
  makeBars(p ? p.length : FACTS.classes?.length ?? 0);
  bars.forEach(({ row, fill, value }, i) => {
    row.className = i === best ? "best" : "";
    fill.style.width = `${100 * (p?.[i] ?? 0)}%`;
    value.value = p?.[i] ?? "";
    value.textContent = p ? percent(p[i]) : "";
  });
  const word = p ? className(best) : "Nothing drawn";
  $("best").textContent = word;
  $("best").className = !p ? "none" : word.length > 3 ? "long" : "";
  const sure = p ? percent(p[best]) + (known ? "" : several ? ", perhaps several digits" : ", perhaps none of these") : "";
  $("sure").textContent = sure;
  presentMaps(maps);
  $("source").textContent = source;
  clearTimeout(later); // a reader of screens hears where the drawing ended, not each stroke
  later = setTimeout(() => { $("status").textContent = p ? `${word}, ${sure}` : word; }, 700);
}

function makeBars(n) {
  if (bars.length === n) return;
  bars = Array.from({ length: n }, (_, i) => {
    const [row, label, track, fill, value] = ["li", "span", "i", "b", "data"].map(tag => document.createElement(tag));
    label.textContent = className(i);
    track.append(fill);
    row.append(label, track, value);
    return { row, fill, value };
  });
  $("bars").replaceChildren(...bars.map(bar => bar.row));
}

// values: float32 [channels, height, width], low as black and high as white
function paint(target, values, channels, low, high) {
  const n = target.width * target.height;
  const pixels = new ImageData(target.width, target.height);
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = 255 * (values[(c % channels) * n + i] - low) / (high - low || 1);
    pixels.data[4 * i + 3] = 255;
  }
  target.getContext("2d").putImageData(pixels, 0, 0);
}

function presentMaps(maps) {
  const targets = $("maps").children;
  if (!maps) {
    for (const target of targets) target.getContext("2d").clearRect(0, 0, target.width, target.height);
    $("scale").textContent = "";
    return;
  }
  const [, channels, height, width] = maps.dims;
  const low = maps.data.reduce((a, b) => Math.min(a, b));
  const high = maps.data.reduce((a, b) => Math.max(a, b));
  for (let c = 0; c < channels; c++) {
    Object.assign(targets[c], { width, height });
    paint(targets[c], maps.data.subarray(c * width * height, (c + 1) * width * height), 1, low, high);
  }
  const number = x => x.toPrecision(2).replace("-", "−");
  $("scale").textContent = `${channels} channels on one scale: black ${number(low)}, white ${number(high)}.`;
}

// ---- drawing

let at = null; // the pen's place
let keyPen = { x: SIZE / 2, y: SIZE / 2, down: false };

function wipe() {
  paper.fillStyle = FACTS.dark ? "#000" : "#fff";
  paper.fillRect(0, 0, SIZE, SIZE);
  sheet.classList.remove("photo");
  $("hint").hidden = false;
}

function clear() {
  wipe();
  at = null;
  keyPen.down = false;
  placePen();
  fail("");
  show(drawing);
}

function drawing() {
  return { pixels: paper.getImageData(0, 0, SIZE, SIZE).data, width: SIZE, height: SIZE };
}

function stroke(from, to) {
  if (sheet.classList.contains("photo")) wipe();
  $("hint").hidden = true;
  paper.strokeStyle = FACTS.dark ? "#fff" : "#000";
  paper.lineWidth = PEN;
  paper.lineCap = "round";
  paper.beginPath();
  paper.moveTo(from.x, from.y);
  paper.lineTo(to.x, to.y);
  paper.stroke();
  show(drawing);
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return { x: (event.clientX - box.left) * SIZE / box.width, y: (event.clientY - box.top) * SIZE / box.height };
}

function placePen(visible = !$("pen").hidden) {
  Object.assign($("pen").style, { left: `${100 * keyPen.x / SIZE}%`, top: `${100 * keyPen.y / SIZE}%` });
  $("pen").className = keyPen.down ? "down" : "";
  $("pen").hidden = !visible;
}

if (GREY) {
  canvas.addEventListener("pointerdown", event => {
    if (event.button !== 0 || !event.isPrimary) return;
    canvas.setPointerCapture(event.pointerId);
    placePen(false);
    at = place(event);
    stroke(at, at);
  });
  canvas.addEventListener("pointermove", event => {
    if (!at || !event.isPrimary) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) {
      const to = place(each);
      stroke(at, to);
      at = to;
    }
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, event => { if (event.isPrimary) at = null; });

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in ARROWS) {
      const step = event.shiftKey ? STEP / 4 : STEP;
      const [x, y] = ARROWS[event.key].map((d, i) => Math.min(Math.max([keyPen.x, keyPen.y][i] + d * step, PEN / 2), SIZE - PEN / 2));
      if (keyPen.down) stroke(keyPen, { x, y });
      Object.assign(keyPen, { x, y });
      placePen(true);
    } else if (event.key === " ") {
      if (event.repeat) return event.preventDefault();
      keyPen.down = !keyPen.down;
      if (keyPen.down) stroke(keyPen, keyPen);
      placePen(true);
      $("status").textContent = keyPen.down ? "Pen down" : "Pen up";
    } else if (event.key === "Delete" || event.key === "Backspace") {
      clear();
    } else {
      return;
    }
    event.preventDefault();
  });
  canvas.addEventListener("blur", () => placePen(false));
  canvas.addEventListener("focus", () => placePen(canvas.matches(":focus-visible")));
}

// ---- pictures

const TILE = 1024;

// The bytes of a picture as Pillow has them: turned as EXIF says, colour profiles ignored. Read in tiles, because browsers limit a
// canvas's sides and area (telephones to 16 megapixels).
async function decoded(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap;
  if (width * height > FACTS.maxPixels) {
    throw new Error(`it has ${width} × ${height} pixels; at most ${FACTS.maxPixels.toLocaleString("en")} are allowed`);
  }
  const tile = Object.assign(document.createElement("canvas"), { width: Math.min(width, TILE), height: Math.min(height, TILE) });
  const context = tile.getContext("2d", { willReadFrequently: true });
  context.globalCompositeOperation = "copy";
  const pixels = new Uint8Array(width * height * 4);
  for (let y = 0; y < height; y += TILE) {
    for (let x = 0; x < width; x += TILE) {
      context.drawImage(bitmap, -x, -y);
      const [columns, rows] = [Math.min(TILE, width - x), Math.min(TILE, height - y)];
      const part = context.getImageData(0, 0, columns, rows).data;
      for (let row = 0; row < rows; row++) {
        pixels.set(part.subarray(4 * columns * row, 4 * columns * (row + 1)), 4 * ((y + row) * width + x));
      }
    }
  }
  return { bitmap, pixels, width, height };
}

async function openFile(file) {
  let picture;
  try {
    picture = await decoded(file);
  } catch (error) {
    return fail(`${file.name} could not be read as a picture: ${error.message}`);
  }
  fail("");
  const { bitmap, width, height } = picture;
  $("hint").hidden = true;
  sheet.classList.add("photo");
  const scale = SIZE / Math.max(width, height);
  const box = [(SIZE - width * scale) / 2, (SIZE - height * scale) / 2, width * scale, height * scale];
  paper.clearRect(0, 0, SIZE, SIZE);
  paper.fillStyle = "#fff"; // where the picture is transparent
  paper.fillRect(...box);
  paper.imageSmoothingEnabled = scale < 1;
  paper.imageSmoothingQuality = "high";
  paper.drawImage(bitmap, ...box);
  bitmap.close();
  show(() => picture, `${file.name}, ${width} × ${height} pixels`);
}

$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) openFile(file);
  $("file").value = ""; // the same file may be chosen again
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    sheet.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) openFile(event.dataTransfer.files[0]);
  });
}
$("clear").addEventListener("click", clear);

// ---- the page

const digits = FACTS.classes?.every(c => /^\d$/.test(c));
document.title = $("title").textContent = !GREY ? "Show a picture" : digits ? "Draw a digit" : "Draw";
$("hint").textContent = GREY ? "Draw here, or drop a picture" : "Drop a picture here";
$("made").textContent = `${WIDTH} × ${HEIGHT} pixels` + (FACTS.digit
  ? ", made as MNIST was: fitted, bright on black, its centre of mass in the middle."
  : GREY ? ", made as the training pictures were." : ".");
$("about").textContent = [FACTS.run && `Run ${FACTS.run}`, FACTS.dataset && `trained on ${FACTS.dataset}`].filter(Boolean).join(", ");
if ($("about").textContent) $("about").textContent += ".";
$("sha256").textContent = FACTS.sha256.slice(0, 12);
$("sha256").title = FACTS.sha256;
Object.assign($("seen"), { width: WIDTH, height: HEIGHT });
$("maps").append(...Array.from({ length: FACTS.maps }, () => document.createElement("canvas")));
$("first").hidden = !FACTS.maps;
if (!GREY) {
  sheet.classList.add("colour");
  canvas.removeAttribute("tabindex");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "The picture");
  $("keys").hidden = true;
}
sheet.classList.toggle("dark", FACTS.dark);
wipe();
makeBars(FACTS.classes?.length ?? 0);
$("best").textContent = "Starting…";
$("best").className = "none";
start().then(
  () => {
    busy = false;
    if (!waiting && GREY) show(drawing);
    else if (!waiting) $("best").textContent = "No picture yet";
    pump();
  },
  error => {
    $("best").textContent = "Not running";
    fail(`The network could not be started: ${error.message}.` + (location.protocol === "file:"
    ? " This browser may not run it from disk: serve the folder instead, for instance with python3 -m http.server." : ""));
  },
);
