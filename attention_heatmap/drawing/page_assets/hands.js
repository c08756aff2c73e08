// Hands on the page: pointer, keys, menus.

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
  byId("scroll").addEventListener("scroll", () => text.paint(text.inView()));
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

const option = (value, label) => new Option(label, value);

function buildMenus() {
  const { planes } = data.facts.records[0], { records, facts } = data;
  byId("layer").addEventListener("change", (event) => choosePlane(planes.findIndex((p) => String(p.layer) === event.target.value)));
  byId("head").addEventListener("change", (event) => choosePlane(Number(event.target.value)));
  byId("show").replaceChildren(...records.map(({ name }, n) => option(["first", "second"][n], name)));
  if (records.length > 1) byId("show").append(option("both", "both, side by side"), option("difference", "their difference"));
  byId("show-field").hidden = records.length < 2;
  byId("show").addEventListener("change", (event) => setShow(event.target.value));
  byId("colours").replaceChildren(...Object.keys(facts.colours.maps).map((name) => option(name, name.replaceAll("_", " "))));
  const said = (name, words) => (words ? `${name}: ${words}` : "off: the model's weights");
  byId("baseline").replaceChildren(...Object.entries(facts.baselines).map(([name, [words]]) => option(name, said(name, words))));
  const speeds = [...new Set([...SPEEDS, facts.look.fps])].sort((a, b) => a - b);
  byId("speed").replaceChildren(...speeds.map((speed) => option(speed, `${speed} a second`)));
  byId("speed").value = facts.look.fps;
  byId("speed").addEventListener("change", () => state.timer && play(true));
}

// The menus of layers and heads, at the plane that is shown.
function showPlane() {
  const { planes } = data.facts.records[0], { layer } = planes[state.plane];
  const layers = [...new Set(planes.map((plane) => plane.layer))], own = planes.filter((plane) => plane.layer === layer);
  byId("layer").replaceChildren(...layers.map((number) => option(number, number)));
  byId("head").replaceChildren(...own.map((plane) => option(planes.indexOf(plane), plane.head)));
  byId("layer").value = layer;
  byId("head").value = state.plane;
  byId("layer-field").hidden = layers.length < 2;
  byId("head-field").hidden = planes.length === layers.length;
}

// The controls of the sheet are named as the parts of the look.
function buildLook() {
  for (const name of Object.keys(firstLook)) {
    const control = byId(name);
    control.addEventListener("input", () => {
      const value = { checkbox: control.checked, range: Number(control.value) }[control.type] ?? control.value;
      setLook(name, value);
    });
  }
}

function showLook() {
  document.documentElement.dataset.theme = state.look.theme;
  byId("pictures").style.setProperty("--opacity", state.look.opacity);
  text.forget();
  for (const [name, value] of Object.entries(state.look)) {
    const control = byId(name);
    if (control.type === "checkbox") control.checked = value;
    else control.value = value;
    if (control.type === "range") control.nextElementSibling.textContent = value;
  }
  byId("show").value = state.show;
}
