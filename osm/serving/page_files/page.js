// The page: an image on a canvas, what the user selects in it, and the names that the server returns.

import {encodeMask, shrunkMask, tinted} from "/page/masks.js";
import {getJson, postImage, postJson, send, takeKeyFromAddress} from "/page/server.js";

const COLORS = [[230, 159, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [213, 94, 0], [0, 114, 178],
  [240, 228, 66], [148, 103, 189]];
const HOVER = [255, 255, 255];
const DRAG = 5; // in screen pixels: a shorter drag is a click
const HINTS = {
  point: "Click an object. Shift-click to add a part. Alt-click or right-click to remove a part.",
  box: "Drag a box around an object.",
  paint: "Paint over an object, then press the button.",
};
const by = id => document.getElementById(id);
const canvas = by("canvas"), pen = canvas.getContext("2d");

/** What belongs to an image, as it is before anything is selected in it. */
const untouched = () => ({objects: [], selected: null, points: [], hover: null, drag: null, painting: null});

const state = {
  models: [], segmenter: true, image: null, blob: null, tool: "point", sign: "new", busy: 0, uploads: 0, ...untouched(),
};
let hovering = false, wanted = null, numbered = 0;

// -- messages ---------------------------------------------------------------------------------------------------------

function say(text, bad = false) {
  const message = by("message");
  message.hidden = !text;
  message.textContent = text;
  message.className = bad ? "bad" : "";
  message.setAttribute("role", bad ? "alert" : "status");
}

/** Run an action that waits for the server. Its error is shown, and the next action clears it. */
async function act(action, label = "Naming") {
  say("");
  state.busy++;
  by("busy").textContent = label;
  by("busy").hidden = false;
  try {
    return await action();
  } catch (error) {
    say(error.message, true);
    return null;
  } finally {
    state.busy--;
    by("busy").hidden = state.busy === 0;
  }
}

// -- images -----------------------------------------------------------------------------------------------------------

/** Show an image: its file goes to the server, which returns the pixels to show. */
async function open(blob, title) {
  const turn = ++state.uploads;
  await act(async () => {
    const facts = await postImage(blob, title);
    const shown = await (await send(`/v1/images/${facts.id}`)).blob();
    const bitmap = await createImageBitmap(shown);
    if (turn !== state.uploads) return; // another image was chosen in the meantime
    Object.assign(state, untouched(), {image: {...facts, title, bitmap}, blob});
    by("start").hidden = true;
    by("stage").hidden = false;
    by("left-out").hidden = true;
    layOut();
    showAnswer();
    showGallery();
    canvas.setAttribute("aria-label", `${title}, ${facts.width} x ${facts.height} pixels`);
    if (state.segmenter) segment({point: [facts.width / 2, facts.height / 2]}).catch(() => {}); // prepares the image
  }, "Loading");
}

/** Send a request about the current image, and upload the image again if the server has dropped it. */
async function ask(path, body) {
  const {image, blob} = state;
  const full = {...body, model: by("model").value, image: {id: image.id}};
  try {
    return await (await postJson(path, full)).json();
  } catch (error) {
    if (error.code !== "image_not_found") throw error;
    await postImage(blob, image.title);
    return (await postJson(path, full)).json();
  }
}

const segment = region => ask("/v1/segment", {regions: [{...region, segment: true}]});

function other() {
  state.uploads++;
  Object.assign(state, untouched(), {image: null});
  by("start").hidden = false;
  by("stage").hidden = true;
  say("");
  showAnswer();
  showGallery();
}

// -- drawing ----------------------------------------------------------------------------------------------------------

function layOut() {
  if (!state.image) return;
  const {width, height} = state.image;
  const room = by("view").clientWidth, most = Math.max(280, window.innerHeight - 190);
  const scale = Math.min(room / width, most / height, Math.max(1, 900 / Math.max(width, height)));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  for (const one of [...state.objects, state.hover].filter(Boolean)) one.layer = null;
  if (state.painting) state.painting = scaled(state.painting);
  draw();
}

/** A drawing at the size that the canvas has now. */
function scaled(drawing) {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  copy.getContext("2d").drawImage(drawing, 0, 0, copy.width, copy.height);
  return copy;
}

function layerOf(one, alpha) {
  if (!one.layer) {
    one.layer = tinted(shrunkMask(one.segmentation, canvas.width, canvas.height), canvas.width, canvas.height,
      one.color, alpha);
  }
  return one.layer;
}

function draw() {
  if (!state.image) return;
  pen.globalAlpha = 1;
  pen.drawImage(state.image.bitmap, 0, 0, canvas.width, canvas.height);
  for (const one of state.objects) {
    pen.globalAlpha = state.selected === null || state.selected === one ? 1 : 0.35;
    pen.drawImage(layerOf(one, 0.4), 0, 0);
  }
  pen.globalAlpha = 1;
  if (state.hover) pen.drawImage(layerOf(state.hover, 0.3), 0, 0);
  if (state.painting) {
    pen.globalAlpha = 0.6;
    pen.drawImage(state.painting, 0, 0);
    pen.globalAlpha = 1;
  }
  drawLabels();
  const scale = canvas.width / state.image.width;
  for (const {x, y, inside} of state.points) drawPoint(x * scale, y * scale, inside);
  if (state.drag?.box) {
    const [x, y, width, height] = state.drag.box;
    pen.lineWidth = 2;
    pen.strokeStyle = "#ffffff";
    pen.strokeRect(x, y, width, height);
    pen.setLineDash([6, 4]);
    pen.strokeStyle = "#1d4ed8";
    pen.strokeRect(x, y, width, height);
    pen.setLineDash([]);
  }
}

function drawPoint(x, y, inside) {
  pen.beginPath();
  pen.arc(x, y, 8, 0, 2 * Math.PI);
  pen.fillStyle = inside ? "#0b7a3b" : "#b91c1c";
  pen.fill();
  pen.lineWidth = 2;
  pen.strokeStyle = "#ffffff";
  pen.stroke();
  pen.beginPath();
  pen.moveTo(x - 4, y);
  pen.lineTo(x + 4, y);
  if (inside) {
    pen.moveTo(x, y - 4);
    pen.lineTo(x, y + 4);
  }
  pen.stroke();
}

/** Write the names on the objects, the selected one first. A name that would cover another one is left out. */
function drawLabels() {
  const scale = canvas.width / state.image.width, taken = [];
  pen.font = "600 14px system-ui, sans-serif";
  pen.textBaseline = "middle";
  const order = latestFirst().sort((a, b) => (b === state.selected) - (a === state.selected));
  for (const one of order) {
    const text = shortName(one), width = pen.measureText(text).width + 12, height = 22;
    const [x, y, w, h] = one.bbox.map(side => side * scale);
    const left = Math.max(0, Math.min(canvas.width - width, x + w / 2 - width / 2));
    const middle = h < 2 * height ? y - height - 8 : y + h / 2 - height / 2; // a small object stays visible
    const top = Math.max(0, Math.min(canvas.height - height, middle));
    const free = taken.every(([l, t, r]) => left > r || left + width < l || top > t + height || top + height < t);
    if (!free && one !== state.selected) continue;
    taken.push([left, top, left + width]);
    pen.fillStyle = "rgba(0, 0, 0, .78)";
    pen.fillRect(left, top, width, height);
    pen.fillStyle = "#ffffff";
    pen.fillText(text, left + 6, top + height / 2);
  }
}

// -- names ------------------------------------------------------------------------------------------------------------

function request() {
  const names = by("names").value.split("\n").map(line => line.trim()).filter(Boolean);
  const listed = names.length ? {vocabulary: names, method: by("method").value} : {};
  return {modes: [by("mode").value], top_k: 5, masks: true, ...listed};
}

async function name(region, title, replaced = null) {
  const image = state.image, sent = state.points;
  const found = await act(() => ask("/v1/name", {...request(), regions: [region]}));
  if (state.image !== image) return;
  if (!found) { // the object that is selected keeps its own points
    if (state.points === sent) state.points = [...(state.selected?.points || [])];
    draw();
    return;
  }
  const one = keep(found.regions[0], title, replaced?.color);
  if (replaced) state.objects = state.objects.filter(other => other !== replaced);
  state.objects.push(one);
  state.selected = one;
  one.points = sent;
  state.hover = null;
  refresh();
}

function keep(region, title, color) {
  numbered++;
  return {...region, answer: region.answers[0], title, number: numbered, layer: null,
    color: color || COLORS[numbered % COLORS.length]};
}

async function everything() {
  const image = state.image;
  const found = await act(() => ask("/v1/name", {...request(), top_k: 1, everything: true}), "Naming everything");
  if (!found || state.image !== image) return;
  state.points = [];
  state.objects = found.regions.map((region, k) => keep(region, `segment ${k + 1}`));
  for (const [k, one] of state.objects.entries()) one.number = numbered - k; // the largest first in the gallery
  state.selected = null;
  const left = found.skipped_segments;
  by("left-out").hidden = !left;
  by("left-out").textContent = `The largest segments are named; ${left} smaller ones are left out.`;
  refresh();
}

function refresh() {
  draw();
  showAnswer();
  showGallery();
}

const percent = value => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%`;
const likelihood = answer => answer.calibrated_prob ?? answer.prob;

function shortName(one) {
  if (one.answer.skipped) return "no name";
  return (one.answer.unsure ? "maybe " : "") + (one.answer.name || "(empty name)");
}

function element(kind, text = "", options = {}) {
  return Object.assign(document.createElement(kind), {textContent: text, ...options});
}

function showAnswer() {
  const panel = by("answer"), one = state.selected;
  panel.replaceChildren();
  if (!one) return;
  const {answer} = one;
  if (answer.skipped) {
    panel.append(element("p", "No name", {className: "name"}), element("p", answer.skipped));
    return;
  }
  const head = element("p", answer.name || "(empty name)", {className: "name"});
  panel.append(head);
  if (answer.unsure) panel.append(element("span", "unsure", {className: "unsure"}), " ");
  const likely = answer.calibrated_prob === undefined ? "probability" : "likely to be correct";
  panel.append(element("span", `${percent(likelihood(answer))} ${likely}`, {className: "quiet"}));
  if (answer.said) panel.append(element("p", `Free-form answer: ${answer.said}`, {className: "quiet"}));
  if (answer.top?.length) panel.append(topTable(answer.top));
}

function topTable(top) {
  const table = element("table"), cosines = top[0].cosine !== undefined;
  table.append(element("caption", `Most likely names and their ${cosines ? "cosines" : "probabilities"}`));
  for (const one of top) {
    const value = one.cosine ?? one.prob, row = table.insertRow();
    const bar = Object.assign(document.createElement("progress"), {max: 1, value: Math.max(0, value)});
    bar.setAttribute("aria-hidden", "true");
    const cell = row.insertCell();
    cell.append(element("span", one.name || "(empty name)"), bar);
    const number = row.insertCell();
    number.className = "number";
    number.textContent = cosines ? value.toFixed(2) : percent(value);
  }
  return table;
}

function showGallery() {
  by("objects").hidden = state.objects.length === 0;
  by("gallery").replaceChildren(...latestFirst().map(card));
}

const latestFirst = () => [...state.objects].sort((a, b) => b.number - a.number);

function card(one) {
  const row = element("li", "", {className: one === state.selected ? "selected" : ""});
  const pick = element("button", "", {type: "button", className: "pick"});
  pick.setAttribute("aria-pressed", String(one === state.selected));
  const text = element("span");
  text.append(element("strong", one.answer.skipped ? "no name" : one.answer.name || "(empty name)"));
  if (one.answer.unsure) text.append(" ", element("span", "unsure", {className: "unsure"}));
  const facts = [one.answer.skipped ? "" : percent(likelihood(one.answer)), one.title, `${one.area} pixels`];
  text.append(element("span", facts.filter(Boolean).join(" · "), {className: "facts"}));
  pick.append(thumbnail(one), text);
  pick.addEventListener("click", () => {
    state.selected = state.selected === one ? null : one;
    state.points = state.selected ? [...(one.points || [])] : [];
    refresh();
  });
  const drop = element("button", "×", {type: "button", className: "drop"});
  drop.setAttribute("aria-label", `Remove ${one.answer.name || "this object"}`);
  drop.addEventListener("click", () => {
    state.objects = state.objects.filter(other => other !== one);
    if (state.selected === one) Object.assign(state, {selected: null, points: []});
    refresh();
  });
  row.append(pick, drop);
  return row;
}

/** The object cut out of the image, on its own color. */
function thumbnail(one) {
  const small = document.createElement("canvas"), side = 112;
  [small.width, small.height] = [side, side];
  const context = small.getContext("2d"), {bitmap, width} = state.image, scale = bitmap.width / width;
  const [x, y, w, h] = one.bbox, span = Math.max(w, h, 8) * 1.15;
  const [left, top] = [x + w / 2 - span / 2, y + h / 2 - span / 2];
  context.drawImage(bitmap, left * scale, top * scale, span * scale, span * scale, 0, 0, side, side);
  const shown = canvas.width / width;
  context.drawImage(layerOf(one, 0.4), left * shown, top * shown, span * shown, span * shown, 0, 0, side, side);
  return small;
}

// -- selecting --------------------------------------------------------------------------------------------------------

function place(event) {
  const box = canvas.getBoundingClientRect();
  const x = (event.clientX - box.left) * canvas.width / box.width;
  const y = (event.clientY - box.top) * canvas.height / box.height;
  return [Math.min(Math.max(x, 0), canvas.width - 0.01), Math.min(Math.max(y, 0), canvas.height - 0.01)];
}

const inImage = ([x, y]) => [x, y].map(value => Math.round(value * state.image.width / canvas.width * 10) / 10);

function clampedPoint([x, y]) {
  return [Math.min(x, state.image.width - 0.1), Math.min(y, state.image.height - 0.1)];
}

function click(event, at) {
  const [x, y] = clampedPoint(inImage(at));
  const remove = event.altKey || event.button === 2 || state.sign === "remove";
  const add = !remove && (event.shiftKey || state.sign === "add");
  const current = state.selected && state.points.length ? state.selected : null;
  if (remove && !current) {
    say("First click on an object. Then you can remove parts from it.", true);
    return;
  }
  state.points = [...((add || remove) && current ? state.points : []), {x, y, inside: !remove}];
  draw();
  const region = {points: state.points.map(p => [p.x, p.y]), labels: state.points.map(p => Number(p.inside)),
    segment: true};
  const title = state.points.length > 1 ? `${state.points.length} points` : `point ${x}, ${y}`;
  name(region, title, (add || remove) ? current : null);
}

function drop(start, end) {
  const [a, b] = [inImage(start), inImage(end)];
  const box = [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1])];
  nameBox(box);
}

function nameBox(box) {
  state.points = [];
  name({box, segment: state.segmenter}, `box ${box.map(side => Math.round(side)).join(", ")}`);
}

function paintAt(from, to) {
  if (!state.painting) {
    state.painting = document.createElement("canvas");
    [state.painting.width, state.painting.height] = [canvas.width, canvas.height];
  }
  const context = state.painting.getContext("2d");
  Object.assign(context, {lineCap: "round", lineJoin: "round", lineWidth: Number(by("brush").value),
    strokeStyle: "#e69f00"});
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(to[0] + 0.01, to[1]);
  context.stroke();
  draw();
}

function namePainting() {
  if (!state.painting) {
    say("Nothing is painted. Paint over an object first.", true);
    return;
  }
  const {width, height} = state.image, full = document.createElement("canvas");
  [full.width, full.height] = [width, height];
  const context = full.getContext("2d", {willReadFrequently: true});
  context.drawImage(state.painting, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height).data, mask = new Uint8Array(width * height);
  for (let k = 0; k < mask.length; k++) mask[k] = pixels[4 * k + 3] > 127 ? 1 : 0;
  state.painting = null;
  state.points = [];
  name({rle: encodeMask(mask, width, height)}, "painted");
}

/** Show the segment under the pointer. Only one request is under way, and the latest position is asked for next. */
async function preview(at) {
  wanted = at;
  if (hovering || state.busy) return;
  hovering = true;
  const image = state.image;
  try {
    while (wanted && state.image === image && state.tool === "point" && !state.busy) {
      const point = clampedPoint(inImage(wanted));
      wanted = null;
      const found = await segment({point});
      if (state.image !== image || state.busy || !state.inside || state.tool !== "point") break;
      state.hover = {...found.regions[0], color: HOVER, layer: null};
      draw();
    }
  } catch {
    state.hover = null; // a preview that fails is not worth a message: a click will show the reason
  } finally {
    hovering = false;
  }
}

function endHover() {
  wanted = null;
  state.inside = false;
  if (state.hover) {
    state.hover = null;
    draw();
  }
}

canvas.addEventListener("pointerdown", event => {
  if (!state.image || (event.button !== 0 && event.button !== 2)) return;
  canvas.setPointerCapture(event.pointerId);
  const start = place(event);
  state.drag = {start, last: start, screen: [event.clientX, event.clientY], button: event.button, box: null};
  if (state.tool === "paint" && event.button === 0) paintAt(start, start);
});
canvas.addEventListener("pointermove", event => {
  if (!state.image) return;
  const {drag} = state;
  if (!drag) {
    state.inside = true;
    if (state.tool === "point" && state.segmenter && event.pointerType === "mouse") preview(place(event));
    return;
  }
  const at = place(event);
  if (state.tool === "paint") {
    paintAt(drag.last, at);
  } else if (moved(event) && drag.button === 0) {
    endHover();
    drag.box = [Math.min(drag.start[0], at[0]), Math.min(drag.start[1], at[1]), Math.abs(at[0] - drag.start[0]),
      Math.abs(at[1] - drag.start[1])];
    draw();
  }
  drag.last = at;
});
canvas.addEventListener("pointerup", event => {
  const {drag} = state;
  state.drag = null;
  if (!drag || !state.image || state.tool === "paint") return;
  wanted = null;
  if (drag.box) drop(drag.start, place(event));
  else if (state.tool === "point") click(event, place(event));
  else say("Drag a box around an object, from one corner to the opposite one.", true);
});
canvas.addEventListener("pointercancel", () => {
  state.drag = null;
  draw();
});
canvas.addEventListener("pointerleave", endHover);
canvas.addEventListener("contextmenu", event => event.preventDefault());

function moved(event) {
  const [x, y] = state.drag.screen;
  return state.drag.box || Math.hypot(event.clientX - x, event.clientY - y) > DRAG;
}

// -- controls ---------------------------------------------------------------------------------------------------------

/** Make the buttons of a group act as radio buttons, also with the arrow keys. */
function radios(group, key, chosen) {
  const buttons = [...by(group).querySelectorAll("[role=radio]")];
  const choose = button => {
    for (const one of buttons) {
      one.setAttribute("aria-checked", String(one === button));
      one.tabIndex = one === button ? 0 : -1;
    }
    chosen(button.dataset[key]);
  };
  for (const [k, button] of buttons.entries()) {
    button.addEventListener("click", () => choose(button));
    button.addEventListener("keydown", event => {
      const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
      if (!step) return;
      event.preventDefault();
      const next = buttons[(k + step + buttons.length) % buttons.length];
      if (next.disabled) return;
      next.focus();
      choose(next);
    });
  }
}

radios("tools", "tool", tool => {
  state.tool = tool;
  by("signs").hidden = tool !== "point";
  by("painting").hidden = tool !== "paint";
  by("hint").textContent = HINTS[tool];
  endHover();
});
radios("signs", "sign", sign => { state.sign = sign; });
by("hint").textContent = HINTS.point;
by("everything").addEventListener("click", everything);
by("other").addEventListener("click", other);
by("name-painting").addEventListener("click", namePainting);
by("clear-painting").addEventListener("click", () => {
  state.painting = null;
  draw();
});
by("typed-form").addEventListener("submit", event => {
  event.preventDefault();
  const numbers = by("typed").value.split(/[\s,]+/).filter(Boolean).map(Number);
  if (numbers.some(Number.isNaN) || ![2, 4].includes(numbers.length)) {
    say(`"${by("typed").value.slice(0, 60)}" is not a position: type x, y or x, y, width, height in pixels.`, true);
  } else if (numbers.length === 4) {
    nameBox(numbers);
  } else {
    state.points = [{x: numbers[0], y: numbers[1], inside: true}];
    name({point: numbers, segment: state.segmenter}, `point ${numbers.join(", ")}`);
  }
});
by("choose").addEventListener("click", () => by("file").click());
by("file").addEventListener("change", () => {
  const [file] = by("file").files;
  by("file").value = ""; // so that the same file can be chosen again
  if (file) open(file, file.name);
});
document.addEventListener("dragover", event => {
  event.preventDefault();
  by("start").classList.add("over");
});
document.addEventListener("dragleave", () => by("start").classList.remove("over"));
document.addEventListener("drop", event => {
  event.preventDefault();
  by("start").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) open(file, file.name);
});
document.addEventListener("paste", event => {
  const file = [...(event.clipboardData?.files || [])].find(one => one.type.startsWith("image/"));
  if (file) open(file, file.name || "pasted image");
});
by("download").addEventListener("click", () => act(async () => {
  const {image} = state;
  const named = state.objects.filter(one => !one.answer.skipped);
  const regions = named.map(one => ({segmentation: one.segmentation, name: one.answer.name,
    prob: likelihood(one.answer), unsure: Boolean(one.answer.unsure)}));
  const facts = {format: by("format").value, file_name: image.title.slice(0, 200), width: image.width,
    height: image.height};
  const response = await postJson("/v1/export", {...facts, regions});
  const file = decodeURIComponent(response.headers.get("Content-Disposition").split("''")[1]);
  const link = element("a", "", {href: URL.createObjectURL(await response.blob()), download: file});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}, "Writing"));
by("model").addEventListener("change", showModel);
new ResizeObserver(() => {
  if (state.image && Math.abs(by("view").clientWidth - (state.laidOut || 0)) > 1) {
    state.laidOut = by("view").clientWidth;
    layOut();
  }
}).observe(by("view"));

function showModel() {
  const model = state.models.find(one => one.id === by("model").value);
  by("mode").replaceChildren(...model.modes.map(mode => element("option", mode, {value: mode})));
  by("mode").value = model.modes.includes("any") ? "any" : model.modes[0];
  state.segmenter = Boolean(model.segmenter);
  for (const button of [by("everything"), by("tools").querySelector("[data-tool=point]")]) {
    button.disabled = !state.segmenter;
  }
  if (!state.segmenter) by("tools").querySelector("[data-tool=box]").click();
}

async function start() {
  takeKeyFromAddress();
  state.models = (await getJson("/v1/models")).data;
  by("model").replaceChildren(...state.models.map(one => element("option", one.id, {value: one.id})));
  by("model-row").hidden = state.models.length < 2;
  showModel();
  const formats = await getJson("/v1/formats");
  by("format").replaceChildren(...Object.entries(formats).map(([value, title]) => element("option", title, {value})));
  for (const {id, title} of await getJson("/v1/samples")) {
    const button = element("button", "", {type: "button"});
    const image = element("img", "", {alt: "", width: 160, height: 112});
    button.append(image, element("span", title));
    button.addEventListener("click", () => act(async () => {
      await open(await (await send(`/v1/samples/${id}`)).blob(), `${title.split(" (")[0]}.jpg`);
    }, "Loading"));
    const item = element("div");
    item.setAttribute("role", "listitem");
    item.append(button);
    by("samples").append(item);
    send(`/v1/samples/${id}?thumbnail=true`).then(response => response.blob()).then(blob => {
      image.src = URL.createObjectURL(blob);
    }).catch(() => {});
  }
}

start().catch(error => say(error.message, true));
