// Hands on the page: pointer, keys, menus.

const sorted = (a, b) => (a < b ? [a, b] : [b, a]);

// The cells of a picture that touch the rectangle between two points in parts of it.
function cellsIn(picture, [x0, y0], [x1, y1]) {
  const [left, right] = sorted(x0 * picture.width, x1 * picture.width), [top, bottom] = sorted(y0 * picture.height, y1 * picture.height);
  return [...picture.cells.keys()].filter((cell) => {
    const [l, t, r, b] = picture.cellBoxes[cell];
    return l < right && r > left && t < bottom && b > top;
  });
}

function listenToPicture(view) {
  const canvas = view.over, picture = view.picture.number;
  let from = null, moved = false;
  canvas.onpointermove = (event) => {
    const cell = view.cellAt(event);
    state.cursor = cell >= 0 ? { picture, cell } : null;
    moved ||= from && Math.hypot(event.clientX - from.clientX, event.clientY - from.clientY) > 4;
    const cells = from && moved ? cellsIn(view.picture, view.partAt(from), view.partAt(event)) : [];
    update(cells.length ? { place: { picture, cells } } : {});
  };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    [from, moved] = [event, false];
  };
  canvas.onpointerup = (event) => {
    if (from && !moved) pinCell(picture, view.cellAt(event));
    from = null;
    update(event.pointerType === "mouse" ? {} : { cursor: null });
  };
  canvas.onpointercancel = () => (from = null);
  canvas.onpointerleave = canvas.onblur = () => update({ cursor: null });
  canvas.onkeydown = (event) => moveOverCells(event, view);
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
    const cell = here < 0 ? hottest(view.values) : neighbour(picture, here, way), from = state.place?.from ?? here;
    state.cursor = { picture: picture.number, cell };
    const cells = event.shiftKey && here >= 0 && cellsIn(picture, middle(picture, from), middle(picture, cell));
    if (cells) state.place = { picture: picture.number, cells, from };
  }
  changed();
}

const hottest = (values) => values.reduce((best, value, c) => (value > (values[best] || 0) ? c : best), 0);

// The middle of a cell in parts of its picture.
function middle(picture, cell) {
  const [l, t, r, b] = picture.cellBoxes[cell];
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

function letGo() {
  byId("search").value = "";
  update({ place: null, cursor: null, hover: null });
}

function listenToText() {
  const answer = byId("answer"), pieceAt = (event) => Number(event.target.closest("[data-piece]")?.dataset.piece ?? -1);
  const stepAt = (event) => (pieceAt(event) < 0 ? -1 : text.stepOf(pieceAt(event)));
  const pinAt = (step, more) => pin(more || state.several ? upTo(step) : [step], { scroll: false });
  answer.onpointerover = (event) => {
    const step = stepAt(event);
    if (event.pointerType === "touch" || step < 0) return;
    if (state.drag !== null && event.buttons) pin(range(...sorted(state.drag, step)), { scroll: false });
    else update({ hover: step });
  };
  answer.onpointerleave = () => update({ hover: null });
  answer.onpointerdown = (event) => {
    const step = stepAt(event);
    if (step < 0 || event.pointerType === "touch") return;
    play(false);
    pinAt(step, event.shiftKey);
    state.drag = step;
  };
  addEventListener("pointerup", () => (state.drag = null));
  answer.onclick = (event) => {
    if (event.pointerType === "touch" && stepAt(event) >= 0) pinAt(stepAt(event), false);
  };
  byId("prompt").onpointerover = (event) => {
    const piece = pieceAt(event);
    if (piece < 0 || looked || !state.texts) return;
    const word = make("bdi", { textContent: data.pieces[piece].text.trim() || "space" });
    const share = bold(amount(state.texts.values[piece], false));
    byId("readout").replaceChildren(make("p", {}, word, ": ", share, " of the attention"));
  };
  byId("prompt").onpointerleave = changed;
  byId("several").onclick = () => {
    state.several = !state.several;
    byId("several").ariaPressed = String(state.several);
  };
  byId("scroll").onscroll = () => text.paint(text.inView());
  byId("more").onclick = () => text.showAll(byId("more").ariaExpanded !== "true");
  byId("search").oninput = (event) => {
    const { steps, places } = text.find(event.target.value);
    if (steps.length) pin(steps);
    toast(event.target.value.trim() ? `${places || "no"} place${places === 1 ? "" : "s"}` : "");
  };
}

function listenToKeys() {
  addEventListener("keydown", (event) => {
    const { target, shiftKey } = event, plane = (by) => choosePlane(state.plane + by);
    if (event.ctrlKey || event.metaKey || event.altKey || target.closest?.("[popover]")) return;
    if (event.key === "Escape") {
      document.activeElement?.blur();
      return letGo();
    }
    if (target.matches?.("input, select, textarea")) return;
    const keys = {
      ArrowLeft: () => stepBy(-1, shiftKey), ArrowRight: () => stepBy(1, shiftKey), Home: () => pin([0]), End: () => pin([data.T - 1]),
      j: () => plane(1), k: () => plane(-1), "/": () => byId("search").focus(), "?": () => byId("help").showPopover(),
      " ": target.matches?.("button") ? null : () => play(!state.timer),
    };
    if (["answer", "slider"].includes(target.id)) Object.assign(keys, { ArrowUp: () => stepBy(-1), ArrowDown: () => stepBy(1) });
    if (target.id === "strip") {
      keys.ArrowUp = keys.ArrowLeft = () => plane(-1);
      keys.ArrowDown = keys.ArrowRight = () => plane(1);
    }
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    if (event.key !== " ") play(false);
    act();
  });
}

// Fill a menu: [value, label] of each of its options, the value that is chosen, what a choice does.
function fillMenu(id, options, value, onChoice) {
  byId(id).replaceChildren(...options.map(([own, label = own]) => new Option(label, own)));
  byId(id).value = value;
  if (onChoice) byId(id).onchange = (event) => onChoice(event.target.value);
}

function buildMenus() {
  const { records, facts } = data, sides = records.map(({ name }, n) => [["first", "second"][n], name]);
  const two = [["both", "both, side by side"], ["difference", "their difference"]];
  fillMenu("show", records.length > 1 ? [...sides, ...two] : sides, state.show, setShow);
  byId("show-field").hidden = records.length < 2;
  const baselines = Object.entries(facts.baselines).map(([name, [words]]) => [name, `${name}: ${words || "the model's weights"}`]);
  fillMenu("colours", Object.keys(facts.colours.maps).map((name) => [name, name.replaceAll("_", " ")]), facts.look.colours);
  fillMenu("baseline", baselines, facts.look.baseline);
  const speeds = [...new Set([...SPEEDS, facts.look.fps])].sort((a, b) => a - b).map((speed) => [speed, `${speed} a second`]);
  fillMenu("speed", speeds, facts.look.fps, () => state.timer && play(true));
}

// The menus of layers and heads, at the plane that is shown.
function showPlane() {
  const { planes } = data.facts.records[0], { layer } = planes[state.plane];
  const layers = [...new Set(planes.map((plane) => plane.layer))], own = planes.filter((plane) => plane.layer === layer);
  fillMenu("layer", layers.map((number) => [number]), layer, (wanted) => choosePlane(planes.findIndex((p) => String(p.layer) === wanted)));
  fillMenu("head", own.map((plane) => [planes.indexOf(plane), plane.head]), state.plane, (number) => choosePlane(Number(number)));
  byId("layer-field").hidden = layers.length < 2;
  byId("head-field").hidden = planes.length === layers.length;
}

// The controls of the sheet are named as the parts of the look.
function buildLook() {
  for (const name of Object.keys(firstLook)) {
    const control = byId(name);
    control.oninput = () => setLook(name, { checkbox: control.checked, range: Number(control.value) }[control.type] ?? control.value);
  }
}

function showLook() {
  document.documentElement.dataset.theme = state.look.theme;
  byId("pictures").style.setProperty("--opacity", state.look.opacity);
  text.forget();
  for (const [name, value] of Object.entries(state.look)) {
    const control = byId(name);
    control[control.type === "checkbox" ? "checked" : "value"] = value;
    if (control.type === "range") control.nextElementSibling.textContent = value;
  }
  byId("show").value = state.show;
}
