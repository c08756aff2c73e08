// From what is chosen to what is seen: one frame.

function buildPictures() {
  const sides = SIDES[state.show], several = data.pictures.length > 1;
  pictureViews = data.pictures.flatMap((picture) => sides.map((side) => {
    const title = [several && picture.name, sides.length > 1 && nameOf(side)].filter(Boolean).join(" \u00b7 ");
    const view = new PictureView(picture, side, title);
    listenToPicture(view);
    return view;
  }));
  byId("pictures").replaceChildren(...pictureViews.map((view) => view.figure));
  layoutPictures();
}

function layoutPictures() {
  const area = byId("pictures"), section = area.parentElement;
  area.style.maxHeight = "none";
  section.style.flexBasis = ""; // where it stands above the text it takes its part first, and then what it needs
  const { width, height } = area.getBoundingClientRect();
  if (!pictureViews.length || width < 2) return;
  const label = pictureViews.length > 1 ? 22 : 0, sizes = pictureViews.map(({ picture: p }) => [p.width, p.height]);
  const { columns, scales } = slots(sizes, width, height, label, GAP);
  area.style.gridTemplateColumns = `repeat(${columns}, max-content)`;
  pictureViews.forEach((view, n) => view.resize(Math.floor(sizes[n][0] * scales[n]), Math.floor(sizes[n][1] * scales[n])));
  // What is said of the pictures follows right below them.
  const ends = pictureViews.map(({ figure }) => figure.getBoundingClientRect().bottom);
  area.style.maxHeight = `${Math.max(...ends) - area.getBoundingClientRect().top}px`;
  section.style.flexBasis = "auto";
  drawGrounds();
  drawnMap = "";
  changed();
}

function drawGrounds() {
  const isSink = (p) => views.some((view) => view.isSink[p]);
  pictureViews.forEach((view) => view.drawGround(state.look, Array.from(view.picture.cells, isSink)));
}

// The maps of some views by side, and the end of their scale.
function mapsOf(views, scale) {
  const each = views.map((view) => view.cells()), two = isTwo();
  const maps = two ? [each[1].map((map, n) => minus(map, each[0][n]))] : each;
  const end = scale !== "frame" && !two ? Math.max(...views.map((view) => view.wholeEnds().cells))
    : scaleEnd(joined(maps.flat()).map(Math.abs), data.facts.quantiles.cells);
  return { maps: Object.fromEntries(maps.map((map, n) => [SIDES[state.show][n], map])), end };
}

// The places named up to a step, in the phase of the last of them: the last ones, with their ages.
function marksUpTo(step) {
  if (!state.look.marks) return [];
  const named = data.facts.marks.filter((mark) => mark.step <= step);
  const shown = named.filter((mark) => mark.phase === named.at(-1).phase), count = shown.length;
  return shown.map((mark, n) => ({ ...mark, number: n + 1, age: count - 1 - n })).slice(-data.facts.markLook.most);
}

// How strong the tint of some steps is: it follows the share of their attention that is shown.
function strengthOf(kind, steps) {
  if (isTwo() || state.look.scale !== "frame") return 1;
  const each = views.map(({ plane }) => steps.reduce((sum, t) => sum + plane[kind][t], 0) / steps.length);
  return Math.max(...each);
}

const tableOf = (strength) => colourTable(isTwo() ? "difference" : state.look.colours, strength);

let askedPlace = null; // what `looked` answers

function changed() {
  waiting ||= requestAnimationFrame(() => {
    waiting = 0;
    render();
  });
}

const placeAsked = () => (state.cursor && !state.place ? { picture: state.cursor.picture, cells: [state.cursor.cell] } : state.place);

function render() {
  if (views.length !== recordsShown().length || !pictureViews.length) return; // not there yet
  const steps = shownSteps(), place = placeAsked();
  const table = tableOf(strengthOf("cellStrengths", steps));
  views.forEach((view) => view.hold(steps));
  const key = [steps.join(), state.plane, state.show].join("|");
  if (key !== drawnMap) {
    drawnMap = key;
    state.map = mapsOf(views, state.look.scale);
    for (const view of pictureViews) view.drawHeat(state.map.maps[view.side][view.picture.number], state.map.end, table, isTwo());
  }
  const marks = marksUpTo(steps.at(-1));
  for (const view of pictureViews) {
    const { number } = view.picture, [own, cursor] = [state.place, state.cursor].map((one) => (one?.picture === number ? one : null));
    view.drawOver(marks.filter((mark) => mark.image === number), own?.cells ?? null, cursor?.cell ?? null);
  }
  const asked = place && [place.picture, place.cells.join(), state.plane, state.show, JSON.stringify(state.look)].join("|");
  if (asked !== askedPlace) looked = place && oneOf(views.map((view) => view.lookedAt(place.picture, place.cells)));
  askedPlace = asked;
  drawTexts(steps, table);
  drawWords(steps, place);
  timeline.draw(views[0].plane, looked);
  timeline.move(steps);
  drawStripLater();
  writeHash();
}

// What one view says, or, of a difference, the second minus the first.
const oneOf = (each) => (isTwo() ? minus(each[1], each[0]) : each[0]);

// Which colours of a table the text has.
const textKind = () => ({ tint: ["ground", "darkGround"], glyph: ["glyph", "darkGlyph"] })[state.look.style][Number(isDark())];

function drawTexts(steps, cellTable) {
  const { facts, pieces, stepPiece } = data, two = isTwo(), chosen = new Set(steps.map((t) => stepPiece[t]));
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
    values = oneOf(views.map((view) => view.pieces()));
    const frame = scaleEnd(shownTexts(values).map(Math.abs), facts.quantiles.text);
    end = state.look.scale !== "frame" && !two ? views[0].wholeEnds().text : frame;
  }
  const table = tableOf(looked ? 1 : strengthOf("textStrengths", steps));
  text.tint(values, end, { table, two, last, chosen, outlined: Boolean(looked) });
  state.texts = { values, end };
  say("text-title", looked ? "Who looked there" : "Weights on the text");
  const unit = looked ? (state.look.baseline === "relative" ? facts.baselines.relative[1] : "of its attention") : "of the attention";
  const textAmount = looked ? asAmount : (value) => amount(value, false);
  legend("text-legend", "a token", textAmount, end, unit, table, textKind());
  legend("cell-legend", "a cell", asAmount, state.map.end, facts.baselines[state.look.baseline][1], cellTable, "cells");
}

function legend(id, name, amountOf, end, unit, table, kind) {
  const [left, bar, right] = byId(id).children, two = isTwo();
  const most = looked && kind !== "cells" ? "" : " or more", high = amountOf(end);
  const { logDecades } = data.facts, log = state.look.scale === "log" && !two;
  left.textContent = `${name}  ${log ? `${amountOf(end / 10 ** logDecades)} or less` : amountOf(two ? -end : 0)}`;
  right.textContent = two ? `+${high} ${unit}: ${data.records[1].name} more` : `${high}${most} ${unit}`;
  const image = new ImageData(bar.width, 1), words = new Uint32Array(image.data.buffer);
  for (let n = 0; n < bar.width; n++) {
    const at = n / (bar.width - 1), part = log ? 10 ** (logDecades * (at - 1)) : at;
    const level = levelOf(two ? 2 * part - 1 : part, 1, two);
    if (kind === "cells") words[n] = table.cells[level];
    else image.data.set([...table[kind][level], 255], 4 * n);
  }
  bar.getContext("2d").putImageData(image, 0, 0);
}

// The strip follows the pinned tokens once they rest, one plane at a time.
const STRIP_WAIT = 150; // milliseconds
let stripKey = "";
function drawStripLater() {
  if (!strip || state.hover !== null) return;
  const key = JSON.stringify([state.pinned, state.show, state.look]);
  strip.choose(state.plane);
  if (key === stripKey) return;
  stripKey = key;
  clearTimeout(stripRun);
  stripRun = setTimeout(drawStrip, STRIP_WAIT, key);
}

async function drawStrip(key) {
  for (let n = 0; n < data.records[0].planes.length; n++) {
    const own = await Promise.all(recordsShown().map((r) => viewOf(r, n)));
    if (key !== stripKey) return;
    own.forEach((view) => view.hold(state.pinned));
    const { maps, end } = mapsOf(isTwo() ? own : own.slice(0, 1), "frame");
    strip.draw(n, Object.values(maps)[0], tableOf(1), end, isTwo());
    if (n % 4 === 3) await new Promise((go) => setTimeout(go));
  }
}
