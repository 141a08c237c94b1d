"use strict";
// Decisions are kept in the browser until they are saved to a file.
const settings = JSON.parse(document.getElementById("settings").textContent);
const cards = [...document.querySelectorAll(".card")];
const decided = new Map();  // index of the card -> name, or null if the object is removed
const history = [];
let current = 0;
let saved = true;

const idOf = (card) => card.dataset.file + "\n" + card.dataset.shape + "\n" + card.dataset.predicted;

function remember() {
  const rows = [...decided].map(([index, name]) => [idOf(cards[index]), name]);
  try { localStorage.setItem(settings.key, JSON.stringify(rows)); } catch (error) { /* a private window */ }
}

function restore() {
  let rows = [];
  try { rows = JSON.parse(localStorage.getItem(settings.key) || "[]"); } catch (error) { /* as above */ }
  const places = new Map(cards.map((card, index) => [idOf(card), index]));
  for (const [id, name] of rows) if (places.has(id)) decided.set(places.get(id), name);
  saved = decided.size === 0;
}

function show(index) {
  const card = cards[index];
  const predicted = card.dataset.predicted;
  card.classList.remove("accepted", "retyped", "removed");
  let text = predicted || "(no name)";
  if (decided.has(index)) {
    const name = decided.get(index);
    card.classList.add(name === null ? "removed" : name === predicted ? "accepted" : "retyped");
    text = name === null ? text : name;
  }
  card.querySelector(".name").textContent = text;
  card.setAttribute("aria-label", `object ${index + 1}: ${text}`);
}

function progress() {
  const text = `${decided.size} of ${cards.length} decided${saved ? "" : ", not saved yet"}`;
  document.getElementById("progress").textContent = text;
}

function focus(index) {
  current = Math.max(0, Math.min(cards.length - 1, index));
  cards.forEach((card, number) => { card.tabIndex = number === current ? 0 : -1; });
  if (cards.length) cards[current].focus();
}

function hidden(index) {
  return document.body.classList.contains("undecided-only") && decided.has(index);
}

function step(from, by) {
  let index = from + by;
  while (index >= 0 && index < cards.length && hidden(index)) index += by;
  focus(index >= 0 && index < cards.length ? index : from);
}

function decide(index, name) {
  history.push([index, decided.has(index) ? decided.get(index) : undefined]);
  decided.set(index, name);
  saved = false;
  show(index);
  remember();
  progress();
  step(index, 1);
}

function undo() {
  const last = history.pop();
  if (!last) return;
  const [index, before] = last;
  if (before === undefined) decided.delete(index); else decided.set(index, before);
  saved = false;
  show(index);
  remember();
  progress();
  focus(index);
}

function retype(index, start) {
  const card = cards[index];
  const place = card.querySelector(".name");
  const input = document.createElement("input");
  input.setAttribute("list", "names");
  input.setAttribute("aria-label", "the correct name");
  input.maxLength = 200;
  input.value = start === undefined ? (decided.get(index) || card.dataset.predicted) : start;
  place.replaceChildren(input);
  input.focus();
  if (start === undefined) input.select();
  let finished = false;
  const finish = (keep) => {
    if (finished) return;
    finished = true;
    const name = input.value.trim();
    if (keep && name) decide(index, name); else { show(index); focus(index); }
  };
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") { event.preventDefault(); finish(true); }
    if (event.key === "Escape") finish(false);
  });
  input.addEventListener("blur", () => finish(input.value.trim() !== "" && input.value !== card.dataset.predicted));
}

function columns() {
  return getComputedStyle(document.getElementById("cards")).gridTemplateColumns.split(" ").length;
}

function act(what, index) {
  if (what === "accept") {
    const name = decided.get(index) || cards[index].dataset.predicted;
    if (name) decide(index, name); else retype(index);
  }
  if (what === "retype") retype(index);
  if (what === "remove") decide(index, null);
}

document.getElementById("cards").addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (!card || event.target.closest("input")) return;
  const index = cards.indexOf(card);
  const what = event.target.dataset.do;
  if (what) act(what, index); else focus(index);
});

document.addEventListener("keydown", (event) => {
  if (!cards.length) return;
  // Every letter begins a name, so undo needs a key that is no letter.
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && event.target.tagName !== "INPUT") {
    event.preventDefault();
    undo();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const card = event.target.closest && event.target.closest(".card");
  if (!card && event.target !== document.body) return;
  if (event.target.tagName === "BUTTON" && (event.key === "Enter" || event.key === " ")) return;
  const index = card ? cards.indexOf(card) : current;
  const keys = {
    Enter: () => act("accept", index),
    Delete: () => act("remove", index),
    ArrowRight: () => step(index, 1),
    ArrowLeft: () => step(index, -1),
    ArrowDown: () => focus(index + columns()),
    ArrowUp: () => focus(index - columns()),
    Backspace: undo,
    F2: () => act("retype", index),
  };
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); return; }
  if (event.key.length === 1 && /[\p{L}\p{N}]/u.test(event.key)) { event.preventDefault(); retype(index, event.key); }
});

document.getElementById("open").addEventListener("change", (event) => {
  document.body.classList.toggle("undecided-only", event.target.checked);
  if (hidden(current)) step(current, 1);
});

document.getElementById("save").addEventListener("click", () => {
  const corrections = [...decided].sort((one, other) => one[0] - other[0]).map(([index, name]) => {
    const { file, shape, predicted } = cards[index].dataset;
    return { file_name: file, shape: Number(shape), predicted, name };
  });
  const data = new Blob([JSON.stringify({ corrections }, null, 1) + "\n"], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(data);
  link.download = "corrections.json";
  link.click();
  URL.revokeObjectURL(link.href);
  saved = true;
  progress();
});

window.addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });

restore();
cards.forEach((_, index) => show(index));
progress();
focus(Math.max(0, cards.findIndex((_, index) => !decided.has(index))));
