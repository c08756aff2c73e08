// The page: what is chosen, how it changes, and how all begins.

const SIDES = { first: ["first"], second: ["second"], both: ["first", "second"], difference: ["difference"] };
const SPEEDS = [1, 2, 4, 8, 16];
const GAP = 14; // pixels between pictures

const state = {
  pinned: [0], hover: null, drag: null, // steps; the step under the pointer; the step that a drag began at
  place: null, cursor: null, // {picture, cells} that is pinned; {picture, cell} under the pointer or the keys
  plane: 0, show: "first", look: {}, several: false, timer: null,
};
const darkScreen = matchMedia("(prefers-color-scheme: dark)");
const keptViews = {};
let views = [], pictureViews = [], strip = null, looked = null, waiting = 0, drawnMap = "", stripRun = 0;

const asAmount = (value) => amount(value, state.look.baseline === "relative");
const isDark = () => (state.look.theme === "auto" ? darkScreen.matches : state.look.theme === "dark");
const shownSteps = () => (state.hover === null ? state.pinned : [state.hover]);
const isTwo = () => state.show === "difference";
const recordsShown = () => ({ first: [0], second: [1] })[state.show] ?? [0, 1];
const nameOf = (side) => data.records[["first", "second"].indexOf(side)]?.name ?? side;

// Change what is chosen, and show it.
function update(changes) {
  Object.assign(state, changes);
  changed();
}

// A weight as words; small ones keep two digits.
function amount(value, times) {
  const size = Math.abs(times ? value : 100 * value), sign = value < 0 ? "\u2212" : "";
  const digits = size >= 10 ? size.toFixed(1) : size >= 0.1 ? size.toFixed(2) : Number(size.toPrecision(2)).toString();
  return `${sign}${times ? `${digits} times` : `${digits}%`}`;
}

function spans(steps) {
  const parts = [];
  for (const t of steps) {
    if (parts.at(-1)?.[1] === t - 1) parts.at(-1)[1] = t;
    else parts.push([t, t]);
  }
  return parts.map(([a, b]) => (a === b ? `${a + 1}` : `${a + 1}\u2013${b + 1}`));
}

function pin(steps, { scroll = true } = {}) {
  update({ pinned: [...new Set(steps)].sort((a, b) => a - b), hover: null });
  if (scroll) text.scrollTo(data.stepPiece[state.pinned.at(-1)]);
}

// The steps from where the pinned ones begin, or end, to another.
function upTo(step) {
  return range(...sorted(step < state.pinned[0] ? state.pinned.at(-1) : state.pinned[0], step));
}

function stepBy(count, more = false) {
  const from = state.pinned.at(count > 0 || more ? -1 : 0), step = Math.min(Math.max(from + count, 0), data.T - 1);
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
  const textContent = on ? "\u275a\u275a" : "\u25b6\ufe0e";
  Object.assign(byId("play"), { ariaPressed: String(on), ariaLabel: on ? "Stop" : "Play", textContent });
  changed();
}

async function choosePlane(number) {
  const { length } = data.records[0].planes;
  state.plane = (number + length) % length;
  showPlane();
  await loadViews();
}

// The view of a plane of a record, as the look wants it; each is kept.
async function viewOf(record, number) {
  const { baseline, sinks, smooth } = state.look, key = [record, number, baseline, sinks, smooth].join();
  const plane = await data.plane(record, number);
  return (keptViews[key] ??= new View(plane, { baseline, sinks, smooth }));
}

async function loadViews() {
  const wanted = state.plane, { show } = state, found = await Promise.all(recordsShown().map((r) => viewOf(r, wanted)));
  if (wanted !== state.plane || show !== state.show) return;
  views = found;
  drawnMap = "";
  drawGrounds();
  changed();
}

async function setLook(name, value) {
  state.look[name] = value;
  showLook();
  timeline.looked = null; // its colour may be another
  await loadViews();
}

async function setShow(show) {
  state.show = show;
  await loadViews();
  buildPictures();
  changed();
}

let firstLook = {};
async function restore() {
  readHash();
  showLook();
  showPlane();
  await loadViews();
  buildPictures();
  text.scrollTo(data.stepPiece[state.pinned.at(-1)]);
}

async function start() {
  await data.read();
  const { colours, look } = data.facts;
  const { fps, ...asTheVideo } = look;
  firstLook = { ...asTheVideo, opacity: 1, grid: true, marks: true, theme: "auto" };
  document.documentElement.style.setProperty("--current", css(colours.fixed.current));
  text.build();
  timeline.build((step) => {
    play(false);
    pin([step]);
  });
  buildMenus();
  buildLook();
  const { planes } = data.facts.records[0];
  if (planes.length > 1) {
    strip = new Strip(byId("strip"), planes.map((plane) => plane.name), choosePlane);
    byId("strip").hidden = false;
    strip.resize(Math.min(Math.max(Math.min(innerHeight / 12, innerWidth / 8), 44), 72));
  }
  listenToText();
  listenToKeys();
  byId("back").onclick = () => stepBy(-1);
  byId("on").onclick = () => stepBy(1);
  byId("play").onclick = () => play(!state.timer);
  byId("save").onclick = savePicture;
  byId("copy").onclick = copyTable;
  new ResizeObserver(() => requestAnimationFrame(() => {
    timeline.resize();
    changed();
  })).observe(byId("slider"));
  const flowed = new ResizeObserver(() => text.measure());
  for (const box of [byId("prompt"), byId("answer")]) flowed.observe(box);
  const resized = new ResizeObserver(() => requestAnimationFrame(layoutPictures));
  for (const box of [byId("pictures").parentElement, byId("notes")]) resized.observe(box);
  darkScreen.addEventListener("change", () => setLook("theme", state.look.theme));
  addEventListener("hashchange", () => location.hash !== written && restore());
  timeline.resize();
  text.measure();
  await restore();
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  byId("trouble").hidden = false;
  byId("trouble").textContent = globalThis.DecompressionStream ? `The page could not be shown: ${error.message}`
    : "This browser is too old for the page; take one of the last two years.";
  console.error(error);
});
