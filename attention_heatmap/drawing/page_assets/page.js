// The page: what is chosen, what follows from it, and the hands on it.

const SIDES = { first: ["first"], second: ["second"], both: ["first", "second"], difference: ["difference"] };
const SPEEDS = [1, 2, 4, 8, 16];
const GAP = 14; // pixels between pictures
const MOST_NAMED = 5; // tokens that looked at a place

const state = {
  pinned: [0], hover: null, drag: null, // steps; the step under the pointer; the step that a drag began at
  place: null, cursor: null, // {picture, cells} that is pinned; {picture, cell} under the pointer or the keys
  plane: 0, show: "first", look: {}, word: "", several: false, timer: null, planes: [],
};
const darkScreen = matchMedia("(prefers-color-scheme: dark)");
let views = [], pictureViews = [], strip = null, looked = null, waiting = 0, drawnMap = "", stripRun = 0;

const asAmount = (value) => amount(value, state.look.baseline === "relative");
const isDark = () => (state.look.theme === "auto" ? darkScreen.matches : state.look.theme === "dark");
const shownSteps = () => (state.hover === null ? state.pinned : [state.hover]);
const isTwo = () => state.show === "difference";
const recordsShown = () => ({ first: [0], second: [1] })[state.show] ?? [0, 1];

function amount(value, times) {
  if (times) return `${Number(value.toPrecision(3))} times`;
  return `${(100 * value).toFixed(Math.abs(value) < 0.1 ? 2 : 1)}%`;
}

function spans(steps) {
  const parts = [];
  steps.forEach((t) => (parts.length && parts.at(-1)[1] === t - 1 ? (parts.at(-1)[1] = t) : parts.push([t, t])));
  return parts.map(([a, b]) => (a === b ? `${a + 1}` : `${a + 1}\u2013${b + 1}`));
}

// ---- what is chosen -------------------------------------------------------------------------------------------------

function pin(steps, { scroll = true } = {}) {
  state.pinned = [...new Set(steps)].sort((a, b) => a - b);
  state.hover = null;
  if (scroll) text.scrollTo(data.stepPiece[state.pinned.at(-1)]);
  changed();
}

// The steps from where the pinned ones begin, or end, to another.
function upTo(step) {
  const from = step < state.pinned[0] ? state.pinned.at(-1) : state.pinned[0], [a, b] = [from, step].sort((x, y) => x - y);
  return Array.from({ length: b - a + 1 }, (_, n) => a + n);
}

function stepBy(count, more = false) {
  const step = Math.min(Math.max((count > 0 ? state.pinned.at(-1) : state.pinned[more ? state.pinned.length - 1 : 0]) + count, 0), data.T - 1);
  pin(more ? upTo(step) : [step]);
}

function play(on) {
  clearInterval(state.timer);
  state.timer = null;
  if (on) {
    if (state.pinned.at(-1) === data.T - 1) pin([0]);
    state.timer = setInterval(() => {
      if (state.pinned.at(-1) >= data.T - 1) return play(false);
      stepBy(1);
    }, 1000 / Number(byId("speed").value));
  }
  byId("play").setAttribute("aria-pressed", String(on));
  byId("play").setAttribute("aria-label", on ? "Stop" : "Play");
  byId("play").textContent = on ? "\u275a\u275a" : "\u25b6\ufe0e";
  changed();
}

async function choosePlane(number) {
  state.plane = (number + data.records[0].planes.length) % data.records[0].planes.length;
  await loadViews();
  changed();
}

async function loadViews() {
  const wanted = state.plane, planes = await Promise.all(recordsShown().map((r) => data.plane(r, wanted)));
  if (wanted !== state.plane) return;
  views = planes.map((plane) => new View(plane, state.look));
  state.planes = planes;
  drawnMap = "";
  drawGrounds();
}

async function setLook(name, value) {
  state.look[name] = value;
  document.documentElement.dataset.theme = state.look.theme;
  byId("pictures").style.setProperty("--opacity", state.look.opacity);
  text.forget();
  await loadViews();
  changed();
}

async function setShow(show) {
  state.show = show;
  await loadViews();
  buildPictures();
  changed();
}

// ---- pictures -------------------------------------------------------------------------------------------------------

function buildPictures() {
  const sides = SIDES[state.show], several = data.pictures.length > 1;
  const names = { first: data.records[0].name, second: data.records[1]?.name, difference: "difference" };
  pictureViews = data.pictures.flatMap((picture) => sides.map((side) => {
    const title = [several && picture.name, sides.length > 1 && names[side]].filter(Boolean).join(" \u00b7 ");
    const view = new PictureView(picture, side, title);
    listenToPicture(view);
    return view;
  }));
  byId("pictures").replaceChildren(...pictureViews.map((view) => view.figure));
  layoutPictures();
}

function layoutPictures() {
  const area = byId("pictures"), { width, height } = area.getBoundingClientRect();
  if (!pictureViews.length || width < 2) return;
  const label = pictureViews.length > 1 ? 22 : 0, sizes = pictureViews.map(({ picture: p }) => [p.width, p.height]);
  const { columns, scales } = slots(sizes, width, height, label, GAP);
  area.style.gridTemplateColumns = `repeat(${columns}, max-content)`;
  pictureViews.forEach((view, n) => view.resize(Math.floor(sizes[n][0] * scales[n]), Math.floor(sizes[n][1] * scales[n])));
  drawGrounds();
  drawnMap = "";
  changed();
}

function drawGrounds() {
  for (const { picture, ...rest } of pictureViews) {
    const isSink = Array.from(picture.cells, (p) => views.some((view) => view.isSink[p]));
    pictureViews.find((view) => view.figure === rest.figure).drawGround(state.look, isSink);
  }
}

// The maps by side, and the end of their scale.
function currentMaps() {
  const maps = views.map((view) => view.cells()), { cells: quantile } = data.facts.quantiles;
  if (isTwo()) {
    const difference = maps[0].map((map, n) => minus(map, maps[1][n]));
    return { maps: { difference }, end: scaleEnd(joined(difference).map(Math.abs), quantile) };
  }
  const sides = SIDES[state.show], whole = state.look.scale === "video";
  const end = whole ? Math.max(...views.map((view) => view.wholeEnds().cells)) : scaleEnd(joined(maps.flat()), quantile);
  return { maps: Object.fromEntries(sides.map((side, n) => [side, maps[n]])), end };
}

// The places named up to a step, in the phase of the last of them.
function marksUpTo(step) {
  if (!state.look.marks) return [];
  const named = data.facts.marks.filter((mark) => mark.step <= step);
  const shown = named.filter((mark) => mark.phase === named.at(-1).phase);
  return shown.map((mark, n) => ({ ...mark, number: n + 1, last: n === shown.length - 1 }));
}

function cellsIn(picture, [x0, y0], [x1, y1]) {
  const [l, r] = [x0, x1].sort((a, b) => a - b).map((x) => x * picture.width), cells = [];
  const [t, b] = [y0, y1].sort((a, b) => a - b).map((y) => y * picture.height), boxes = picture.cellBoxes;
  for (let c = 0; c < picture.cells.length; c++) {
    if (boxes[4 * c] < r && boxes[4 * c + 2] > l && boxes[4 * c + 1] < b && boxes[4 * c + 3] > t) cells.push(c);
  }
  return cells;
}

function listenToPicture(view) {
  const canvas = view.over, number = view.picture.number;
  let from = null, at = null, moved = false;
  const cursor = (cell) => (state.cursor = cell >= 0 ? { picture: number, cell } : null);
  canvas.addEventListener("pointermove", (event) => {
    cursor(view.cellAt(event.clientX, event.clientY));
    if (from && (moved ||= Math.hypot(event.clientX - at[0], event.clientY - at[1]) > 4)) {
      const cells = cellsIn(view.picture, from, view.partAt(event.clientX, event.clientY));
      if (cells.length) state.place = { picture: number, cells };
    }
    changed();
  });
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    [from, at, moved] = [view.partAt(event.clientX, event.clientY), [event.clientX, event.clientY], false];
  });
  canvas.addEventListener("pointerup", (event) => {
    if (from && !moved) pinCell(number, view.cellAt(event.clientX, event.clientY));
    from = null;
    if (event.pointerType !== "mouse") state.cursor = null;
    changed();
  });
  canvas.addEventListener("pointercancel", () => (from = null));
  canvas.addEventListener("pointerleave", () => {
    state.cursor = null;
    changed();
  });
  canvas.addEventListener("keydown", (event) => moveOverCells(event, view));
  canvas.addEventListener("blur", () => {
    state.cursor = null;
    changed();
  });
}

function pinCell(picture, cell) {
  const same = state.place?.picture === picture && state.place.cells.length === 1 && state.place.cells[0] === cell;
  state.place = same || cell < 0 ? null : { picture, cells: [cell] };
}

// Arrow keys on a picture: to the nearest cell that way; the first time to the hottest one.
function moveOverCells(event, view) {
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }, way = ways[event.key];
  if (!way && event.key !== "Enter") return;
  event.preventDefault();
  event.stopPropagation();
  const { picture } = view, here = state.cursor?.picture === picture.number ? state.cursor.cell : -1;
  if (event.key === "Enter") pinCell(picture.number, here);
  else {
    const cell = here < 0 ? hottest(view.values) : neighbour(picture, here, way);
    state.cursor = { picture: picture.number, cell };
    if (event.shiftKey && here >= 0) {
      const corners = [state.place?.from ?? here, cell].map((c) => middle(picture, c));
      state.place = { picture: picture.number, cells: cellsIn(picture, ...corners), from: state.place?.from ?? here };
    }
  }
  changed();
}

const hottest = (values) => values.reduce((best, value, c) => (value > (values[best] || 0) ? c : best), 0);

function middle(picture, cell) {
  const [l, t, r, b] = picture.cellBoxes.subarray(4 * cell, 4 * cell + 4);
  return [(l + r) / 2 / picture.width, (t + b) / 2 / picture.height];
}

function neighbour(picture, cell, [dx, dy]) {
  const [x, y] = middle(picture, cell);
  let best = cell, least = Infinity;
  for (let c = 0; c < picture.cells.length; c++) {
    const [cx, cy] = middle(picture, c), along = (cx - x) * dx + (cy - y) * dy, aside = Math.abs((cx - x) * dy) + Math.abs((cy - y) * dx);
    if (along > 1e-6 && along + 4 * aside < least) [best, least] = [c, along + 4 * aside];
  }
  return best;
}

// ---- drawing --------------------------------------------------------------------------------------------------------

function changed() {
  waiting ||= requestAnimationFrame(() => {
    waiting = 0;
    render();
  });
}

const placeAsked = () => (state.cursor && !state.place ? { picture: state.cursor.picture, cells: [state.cursor.cell] } : state.place);

function render() {
  if (!views.length || !pictureViews.length) return;
  const steps = shownSteps(), dark = isDark(), place = placeAsked();
  const table = colourTable(isTwo() ? "difference" : state.look.colours);
  views.forEach((view) => view.hold(steps));
  const key = [steps.length > 1 ? steps.join() : steps[0], state.plane, state.show].join("|");
  if (key !== drawnMap) {
    drawnMap = key;
    state.map = currentMaps();
    for (const view of pictureViews) view.drawHeat(state.map.maps[view.side][view.picture.number], state.map.end, table, isTwo());
  }
  const marks = marksUpTo(steps.at(-1));
  for (const view of pictureViews) {
    const number = view.picture.number, on = state.cursor?.picture === number;
    const own = marks.filter((mark) => mark.image === number);
    view.drawOver(own, state.place?.picture === number ? state.place.cells : null, on ? state.cursor.cell : null);
  }
  looked = place ? lookedAt(place) : null;
  drawTexts(steps, table, dark, looked);
  drawWords(steps, place);
  drawTimeline(steps, dark);
  drawStripLater();
  writeHash();
}

function lookedAt({ picture, cells }) {
  const each = views.map((view) => view.lookedAt(picture, cells));
  return isTwo() ? minus(each[0], each[1]) : each[0];
}

function drawTexts(steps, table, dark, looked) {
  const { facts, pieces, stepPiece, P } = data, two = isTwo(), chosen = new Set(steps.map((t) => stepPiece[t]));
  let values, end, last = stepPiece[steps.at(-1)];
  if (looked) {
    values = new Float32Array(pieces.length).fill(NaN);
    looked.forEach((value, t) => {
      const i = stepPiece[t];
      if (!(Math.abs(values[i]) >= Math.abs(value))) values[i] = value;
    });
    end = Math.max(...looked.map(Math.abs), TINY);
    last = pieces.length;
  } else {
    const each = views.map((view) => view.pieces());
    values = two ? minus(each[0], each[1]) : each[0];
    const frame = scaleEnd(shownTexts(values).map(Math.abs), facts.quantiles.text);
    end = state.look.scale === "video" && !two ? views[0].wholeEnds().text : frame;
  }
  text.tint(values, end, { table, two, dark, style: state.look.style, last, chosen, outlined: Boolean(looked) });
  state.texts = { values, end };
  byId("text-title").textContent = looked ? "How much each token looked there" : steps.length > 1
    ? "Where these tokens looked in the text" : "Where this token looked in the text";
  const unit = looked ? (state.look.baseline === "relative" ? facts.baselines.relative[1] : "of its attention") : "of the attention";
  const say = looked ? asAmount : (value) => amount(value, false);
  legend("text-legend", "a token", say, end, unit, table, dark, state.look.style === "glyph" ? "glyph" : "ground");
  legend("cell-legend", "a cell", asAmount, state.map.end, facts.baselines[state.look.baseline][1], table, dark, "cells");
}

function legend(id, name, say, end, unit, table, dark, kind) {
  const [left, bar, right] = byId(id).children, two = isTwo(), context = bar.getContext("2d");
  left.textContent = `${name}  ${two ? `\u2212${say(end)}` : say(0)}`;
  right.textContent = two ? `+${say(end)} ${unit}: ${data.records[0].name} more` : `${say(end)} or more ${unit}`;
  const image = new ImageData(bar.width, 1), words = new Uint32Array(image.data.buffer);
  const shades = kind === "cells" ? null : table[dark ? `dark${kind[0].toUpperCase()}${kind.slice(1)}` : kind];
  const word = ([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r;
  words.forEach((_, n) => (words[n] = shades ? word(shades[n]) : table.cells[n]));
  context.putImageData(image, 0, 0);
}

// Heading, what is read off, notes.
function drawWords(steps, place) {
  const { T, pictures } = data, several = steps.length > 1, count = pictures.length;
  const names = spans(steps), shares = views.map((view) => meanShares(view.plane, steps));
  const shownWord = several ? wordsOf(steps) : data.tokenText(steps[0]);
  byId("which").textContent = several ? `${steps.length} tokens, ${names.slice(0, 4).join(", ")}${names.length > 4 ? ", \u2026" : ""}` : `token ${steps[0] + 1} of ${T}`;
  byId("chip").firstElementChild.textContent = shownWord;
  const on = shares.map((list) => list.slice(0, count).reduce((sum, share) => sum + share.value, 0));
  const onPicture = on.map((value) => `${(100 * value).toFixed(1)}%`).join(" and ");
  byId("looked").textContent = `${several ? "mean, " : ""}${onPicture} on the picture${count > 1 ? "s" : ""}`;
  byId("plane-title").textContent = [...new Set(state.planes.map((plane) => plane.title))].join(" | ");
  timeline.showShares(shares, shares.length > 1 ? data.records.map((record) => record.name) : [""]);
  drawReadout(steps, place);
  drawNotes();
  announce(`${byId("which").textContent}: ${shownWord}, ${byId("looked").textContent}. ${byId("readout").textContent}`);
}

function meanShares(plane, steps) {
  return plane.shares.map(({ name, rgb, weights }) => ({ name, rgb, value: steps.reduce((sum, t) => sum + weights[t], 0) / steps.length }));
}

function wordsOf(steps) {
  const words = [...new Set(steps.map((t) => data.stepPiece[t]))].map((i) => data.pieces[i].text).join("").replace(/\s+/g, " ").trim();
  return words.length > 60 ? `${words.slice(0, 60)}\u2026` : words || "space";
}

function drawReadout(steps, place) {
  const lines = [], weight = (picture, cell) => Object.entries(state.map.maps).map(([side, map]) => {
    const value = map[picture][cell], name = pictureViews.length > data.pictures.length ? `${data.records[side === "first" ? 0 : 1].name} ` : "";
    return Number.isNaN(value) ? "left out as a sink" : `${name}${value > 0 && isTwo() ? "+" : ""}${asAmount(value)}`;
  }).join(", ");
  const whose = steps.length > 1 ? "these tokens, mean" : `token ${steps[0] + 1}`;
  if (state.cursor) {
    const { picture, cell } = state.cursor;
    lines.push([`${cellName(data.pictures[picture], cell)}: `, bold(weight(picture, cell)), ` (${whose})`]);
  } else {
    const maps = Object.values(state.map.maps)[0], best = maps.map((map) => map.length && hottest(isTwo() ? map.map(Math.abs) : map));
    const picture = maps.reduce((a, map, n) => (Math.abs(map[best[n]]) > Math.abs(maps[a][best[a]]) ? n : a), 0);
    if (maps[picture]?.length) lines.push([isTwo() ? "largest difference: " : "highest cell: ", bold(weight(picture, best[picture])), ` at ${cellName(data.pictures[picture], best[picture])}`]);
  }
  if (place) lines.push(...placeLines(place));
  byId("readout").replaceChildren(...lines.map((parts) => {
    const line = document.createElement("p");
    line.append(...parts);
    return line;
  }));
}

const bold = (words) => Object.assign(document.createElement("b"), { textContent: words });

function placeLines({ picture, cells }) {
  const ranked = [...looked.keys()].sort((a, b) => looked[b] - looked[a]).slice(0, MOST_NAMED).filter((t) => looked[t] > 0);
  const buttons = ranked.map((t) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "word", onclick: () => pin([t]) });
    const word = document.createElement("bdi");
    word.textContent = data.tokenText(t);
    button.setAttribute("aria-label", `token ${t + 1}, ${data.tokenText(t)}, ${asAmount(looked[t])}`);
    button.append(word, ` ${asAmount(looked[t])}`);
    return button;
  });
  const what = cells.length > 1 ? `${cells.length} cells` : cellName(data.pictures[picture], cells[0]);
  const parts = [`looked most at ${what}: `, ...buttons];
  if (state.place) {
    parts.push(Object.assign(document.createElement("button"), { type: "button", className: "link", textContent: "let go", onclick: letGo }));
  }
  return [parts];
}

function drawNotes() {
  const { baseline, sinks, smooth } = state.look, plane = state.planes[0], done = [data.facts.baselines[baseline][0]];
  const count = views[0].isSink.reduce((sum, one) => sum + one, 0);
  if (sinks) done.push(`sinks left out (${count ? `${count}, with ${(100 * plane.leftOut).toFixed(1)}% of the attention on the pictures` : "none found"})`);
  if (smooth) done.push(`smoothed over ${smooth} cell${smooth === 1 ? "" : "s"}`);
  const view = done.filter(Boolean).join(", "), notes = view ? [`Map: ${view}.`] : [];
  if (isTwo()) notes.push(`Difference: ${data.records[0].name} minus ${data.records[1].name}.`);
  if (state.show === "both") notes.push(`The text shows ${data.records[0].name}.`);
  notes.push(...plane.checks.map(({ text: said, view: of }) => `Check${of ? ` of the map ${of}` : ""}: ${said}.`));
  byId("notes").textContent = notes.join(" ");
}

let drawnLine = "";
function drawTimeline(steps, dark) {
  const key = [state.plane, state.show, dark, looked ? joined([looked]).join() : "", byId("curve").clientWidth].join("|");
  if (key !== drawnLine) timeline.draw(views[0].plane, looked && looked.map(Math.abs), dark);
  drawnLine = key;
  timeline.move(steps, state.hover === null);
}

// The strip follows the pinned tokens, after the frame, one plane at a time.
let stripKey = "";
function drawStripLater() {
  if (!strip || state.hover !== null) return;
  const key = JSON.stringify([state.pinned, state.show, state.look]);
  strip.choose(state.plane);
  if (key === stripKey) return;
  stripKey = key;
  clearTimeout(stripRun);
  stripRun = setTimeout(drawStrip, 0, key);
}

const stripViews = new Map();
async function drawStrip(key) {
  const table = colourTable(isTwo() ? "difference" : state.look.colours);
  for (let n = 0; n < data.records[0].planes.length; n++) {
    const planes = await Promise.all(recordsShown().map((r) => data.plane(r, n)));
    if (key !== stripKey) return;
    const maps = planes.map((plane) => {
      const name = JSON.stringify([plane.title, planes.indexOf(plane), state.show, n, state.look.baseline, state.look.sinks, state.look.smooth]);
      if (!stripViews.has(name)) stripViews.set(name, new View(plane, state.look));
      const view = stripViews.get(name);
      view.hold(state.pinned);
      return view.cells();
    });
    const shown = isTwo() ? maps[0].map((map, i) => minus(map, maps[1][i])) : maps[0];
    const end = scaleEnd(joined(shown).map(Math.abs), data.facts.quantiles.cells);
    strip.draw(n, shown, table, end, isTwo());
    if (n % 4 === 3) await new Promise((go) => setTimeout(go));
  }
}

let saying = 0;
function announce(words) {
  clearTimeout(saying);
  if (!state.timer) saying = setTimeout(() => (byId("live").textContent = words), 400);
}

function toast(words) {
  const box = byId("toast");
  box.textContent = byId("live").textContent = words;
  box.classList.add("seen");
  setTimeout(() => box.classList.remove("seen"), 2500);
}

// ---- the address names the view -------------------------------------------------------------------------------------

let written = null, writing = 0;
function writeHash() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    const parts = new URLSearchParams(), { look, place, plane, show, pinned } = state;
    parts.set("tokens", spans(pinned).join("_").replaceAll("\u2013", "-"));
    const { layer, head } = data.facts.records[0].planes[plane];
    if (data.records[0].planes.length > 1) parts.set("plane", `${layer}, ${head}`);
    if (data.records.length > 1 && show !== "first") parts.set("show", show);
    if (place) parts.set("place", placeName(place));
    for (const [name, value] of Object.entries(look)) if (value !== firstLook[name]) parts.set(name, value);
    written = `#${parts}`;
    try {
      if (written !== location.hash) history.replaceState(null, "", written);
    } catch { /* a page inside a notebook has no address of its own */ }
  }, 150);
}

function placeName({ picture, cells }) {
  const middles = cells.map((cell) => middle(data.pictures[picture], cell)), [xs, ys] = [0, 1].map((n) => middles.map((m) => m[n]));
  const ends = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  return [picture + 1, ...ends.map((end) => Math.round(end * 1e4))].join("_");
}

async function readHash() {
  const parts = new URLSearchParams(location.hash.slice(1)), { T, facts, records, pictures } = data;
  const steps = (parts.get("tokens") ?? "").split("_").flatMap((span) => {
    const [a, b = a] = span.split("-").map((n) => Number(n) - 1);
    return a >= 0 && b < T && a <= b ? Array.from({ length: b - a + 1 }, (_, n) => a + n) : [];
  });
  state.pinned = steps.length ? steps : [facts.start];
  const plane = facts.records[0].planes.findIndex(({ layer, head }) => `${layer}, ${head}` === parts.get("plane"));
  state.plane = plane >= 0 ? plane : facts.plane;
  state.show = records.length > 1 && SIDES[parts.get("show")] ? parts.get("show") : "first";
  for (const [name, first] of Object.entries(firstLook)) {
    const given = parts.get(name), control = byId(name), known = !control?.options || [...control.options].some((o) => o.value === given);
    const value = typeof first === "boolean" ? given === "true" : typeof first === "number" ? Number(given) : given;
    state.look[name] = given === null || !known || Number.isNaN(value) ? first : value;
  }
  const [number, ...ends] = (parts.get("place") ?? "").split("_").map(Number), picture = pictures[number - 1];
  const [x0, y0, x1, y1] = ends.map((end) => end / 1e4), a = 1e-5;
  const cells = picture && ends.length === 4 ? cellsIn(picture, [x0 - a, y0 - a], [x1 + a, y1 + a]) : [];
  state.place = cells.length ? { picture: number - 1, cells } : null;
}

// ---- hands ----------------------------------------------------------------------------------------------------------

function letGo() {
  [state.place, state.cursor, state.hover] = [null, null, null];
  byId("search").value = "";
  changed();
}

function listenToText() {
  const answer = byId("answer"), stepAt = (event) => {
    const span = event.target.closest("[data-piece]");
    return span ? text.stepOf(Number(span.dataset.piece)) : -1;
  };
  answer.addEventListener("pointerover", (event) => {
    const step = stepAt(event);
    if (event.pointerType === "touch" || step < 0) return;
    if (state.drag !== null && event.buttons) {
      const [a, b] = [state.drag, step].sort((x, y) => x - y);
      return pin(Array.from({ length: b - a + 1 }, (_, n) => a + n), { scroll: false });
    }
    state.hover = step;
    changed();
  });
  answer.addEventListener("pointerleave", () => {
    state.hover = null;
    changed();
  });
  answer.addEventListener("pointerdown", (event) => {
    const step = stepAt(event);
    if (step < 0 || event.pointerType === "touch") return;
    play(false);
    pin(event.shiftKey || state.several ? upTo(step) : [step], { scroll: false });
    state.drag = step;
  });
  addEventListener("pointerup", () => (state.drag = null));
  answer.addEventListener("click", (event) => {
    const step = stepAt(event);
    if (event.pointerType !== "touch" || step < 0) return;
    pin(state.several ? upTo(step) : [step], { scroll: false });
  });
  byId("prompt").addEventListener("pointerover", (event) => {
    const piece = Number(event.target.closest("[data-piece]")?.dataset.piece ?? -1), { texts } = state;
    if (piece < 0 || looked || !texts) return;
    const line = document.createElement("p"), word = document.createElement("bdi");
    word.textContent = data.pieces[piece].text.trim() || "space";
    line.append(word, ": ", bold(amount(texts.values[piece], false)), " of the attention");
    byId("readout").replaceChildren(line);
  });
  byId("prompt").addEventListener("pointerleave", changed);
  byId("several").addEventListener("click", () => {
    state.several = !state.several;
    byId("several").setAttribute("aria-pressed", String(state.several));
  });
  byId("more").addEventListener("click", () => text.showAll(byId("more").getAttribute("aria-expanded") !== "true"));
  byId("search").addEventListener("input", (event) => {
    const { steps, places } = text.find(event.target.value);
    if (steps.length) pin(steps);
    toast(event.target.value.trim() ? `${places || "no"} place${places === 1 ? "" : "s"}` : "");
  });
}

function listenToKeys() {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("[popover]")) return;
    if (event.key === "Escape") {
      document.activeElement?.blur();
      return letGo();
    }
    if (event.target.matches?.("input, select, textarea")) return;
    const onButton = event.target.matches?.("button"), keys = {
      ArrowLeft: () => stepBy(-1, event.shiftKey), ArrowRight: () => stepBy(1, event.shiftKey),
      Home: () => pin([0]), End: () => pin([data.T - 1]), j: () => choosePlane(state.plane + 1), k: () => choosePlane(state.plane - 1),
      " ": onButton ? null : () => play(!state.timer), "/": () => byId("search").focus(), "?": () => byId("help").showPopover(),
    };
    if (event.target.id === "strip" || event.target.id === "answer" || event.target.id === "slider") {
      const plane = event.target.id === "strip";
      Object.assign(keys, {
        ArrowUp: () => (plane ? choosePlane(state.plane - 1) : stepBy(-1)), ArrowDown: () => (plane ? choosePlane(state.plane + 1) : stepBy(1)),
        ...(plane && { ArrowLeft: () => choosePlane(state.plane - 1), ArrowRight: () => choosePlane(state.plane + 1) }),
      });
    }
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    if (event.key !== " ") play(false);
    act();
  });
}

function buildMenus() {
  const planes = data.facts.records[0].planes, { records, facts } = data, option = (value, label) => new Option(label, value);
  const fill = () => {
    const layers = [...new Set(planes.map((plane) => plane.layer))], own = planes.filter((p) => p.layer === planes[state.plane].layer);
    byId("layer").replaceChildren(...layers.map((layer) => option(layer, layer)));
    byId("head").replaceChildren(...own.map((plane) => option(planes.indexOf(plane), plane.head)));
    byId("layer").value = planes[state.plane].layer;
    byId("head").value = state.plane;
    byId("layer-field").hidden = layers.length < 2;
    byId("head-field").hidden = planes.length === layers.length;
  };
  byId("layer").addEventListener("change", (event) => choosePlane(planes.findIndex((p) => String(p.layer) === event.target.value)));
  byId("head").addEventListener("change", (event) => choosePlane(Number(event.target.value)));
  byId("show").replaceChildren(option("first", records[0].name), ...(records.length > 1
    ? [option("second", records[1].name), option("both", "both, side by side"), option("difference", "their difference")] : []));
  byId("show-field").hidden = records.length < 2;
  byId("show").addEventListener("change", (event) => setShow(event.target.value));
  byId("colours").replaceChildren(...Object.keys(facts.colours.maps).map((name) => option(name, name.replaceAll("_", " "))));
  byId("baseline").replaceChildren(...Object.entries(facts.baselines).map(([name, [said]]) => option(name, said ? `${name}: ${said}` : "off: the model's weights")));
  const speeds = [...new Set([...SPEEDS, facts.look.fps])].sort((a, b) => a - b);
  byId("speed").replaceChildren(...speeds.map((speed) => option(speed, `${speed} a second`)));
  byId("speed").value = facts.look.fps;
  byId("speed").addEventListener("change", () => state.timer && play(true));
  return fill;
}

// The controls of the sheet are named as the parts of the look.
function buildLook() {
  for (const name of Object.keys(firstLook)) {
    const control = byId(name), read = () => (control.type === "checkbox" ? control.checked : control.type === "range" ? Number(control.value) : control.value);
    control?.addEventListener("input", () => {
      setLook(name, read());
      showLook();
    });
  }
}

function showLook() {
  for (const [name, value] of Object.entries(state.look)) {
    const control = byId(name);
    if (!control) continue;
    if (control.type === "checkbox") control.checked = value;
    else control.value = value;
    if (control.type === "range") control.nextElementSibling.textContent = value;
  }
  byId("show").value = state.show;
}

let firstLook = {};
async function restore(fill) {
  await readHash();
  document.documentElement.dataset.theme = state.look.theme;
  byId("pictures").style.setProperty("--opacity", state.look.opacity);
  showLook();
  text.forget();
  await loadViews();
  fill();
  buildPictures();
  text.scrollTo(data.stepPiece[state.pinned.at(-1)]);
}

async function copyTable() {
  const table = looked && state.place ? placeTable(looked) : mapTable(Object.fromEntries(Object.entries(state.map.maps).map(([side, map]) =>
    [side === "difference" ? "difference" : Object.keys(state.map.maps).length > 1 ? data.records[side === "first" ? 0 : 1].name : "weight", map])));
  const done = await copyText(table), lines = table.split("\n").length - 2;
  toast(done ? `copied ${lines} ${looked && state.place ? "tokens" : "cells"}` : "this browser does not let the page copy");
}

async function start() {
  await data.read();
  const { colours, look } = data.facts, root = document.documentElement.style;
  firstLook = { colours: look.colours, scale: look.scale, baseline: look.baseline, sinks: look.sinks, smooth: look.smooth,
    style: look.style, opacity: 1, picture: look.picture, grid: true, marks: true, theme: "auto" };
  root.setProperty("--current", css(colours.fixed.current));
  text.build();
  timeline.build((step) => {
    play(false);
    pin([step]);
  });
  const fill = buildMenus(), planes = data.facts.records[0].planes;
  buildLook();
  const choose = choosePlane;
  choosePlane = async (number) => {
    await choose(number);
    fill();
  };
  if (planes.length > 1) {
    strip = new Strip(byId("strip"), planes.map((plane) => plane.name), (n) => choosePlane(n));
    byId("strip").hidden = false;
    strip.resize(Math.min(Math.max(innerHeight / 12, 44), 72));
  }
  listenToText();
  listenToKeys();
  byId("back").onclick = () => stepBy(-1);
  byId("on").onclick = () => stepBy(1);
  byId("play").onclick = () => play(!state.timer);
  byId("save").onclick = savePicture;
  byId("copy").onclick = copyTable;
  new ResizeObserver(layoutPictures).observe(byId("pictures"));
  darkScreen.addEventListener("change", () => setLook("theme", state.look.theme));
  addEventListener("hashchange", () => location.hash !== written && restore(fill));
  await restore(fill);
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  byId("trouble").hidden = false;
  byId("trouble").textContent = typeof DecompressionStream === "undefined"
    ? "This browser is too old for the page; take one of the last two years."
    : `The page could not be shown: ${error.message}`;
  console.error(error);
});
