// What the page is made of: tokens, pictures, planes. Arrays come as base64 of deflated bytes, and are unpacked here.

const byId = (id) => document.getElementById(id);
const range = (first, last) => Array.from({ length: last - first + 1 }, (_, n) => first + n);
const minus = (a, b) => a.map((value, n) => value - b[n]);

// A new element: its properties, and what stands in it.
function make(tag, properties = {}, ...contents) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...contents);
  return element;
}

// Let an element say something; where it says so already, nothing has to be laid out anew.
function say(id, words) {
  if (byId(id).textContent !== words) byId(id).textContent = words;
}

function bytesOf(base64) {
  return Uint8Array.fromBase64?.(base64) ?? Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

// An object with those of its arrays unpacked that `kinds` names; one that is null stays null.
async function unpacked(facts, kinds) {
  const arrays = Object.entries(kinds).map(async ([name, Kind]) => {
    if (facts[name] === null) return [name, null];
    const stream = new Blob([bytesOf(facts[name])]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return [name, new Kind(await new Response(stream).arrayBuffer())];
  });
  return { ...facts, ...Object.fromEntries(await Promise.all(arrays)) };
}

// One picture: where its tokens stand in the prompt, and the cells of its map; boxes are [left, top, right, bottom].
async function readPicture(facts, number) {
  const kinds = { positions: Int32Array, boxes: Float32Array, cells: Int32Array, cellBoxes: Float32Array };
  const picture = await unpacked(facts, kinds);
  const bitmap = await createImageBitmap(new Blob([bytesOf(facts.file)], { type: facts.kind }));
  const [boxes, cellBoxes] = [picture.boxes, picture.cellBoxes].map((sides) =>
    Array.from({ length: sides.length / 4 }, (_, n) => [...sides.subarray(4 * n, 4 * n + 4)]));
  return { ...picture, number, bitmap, boxes, cellBoxes, grid: gridOf(cellBoxes) };
}

// [column, row] of each cell where the cells are one regular grid, else null.
function gridOf(boxes) {
  const [lefts, tops] = [0, 1].map((side) => [...new Set(boxes.map((box) => box[side]))].sort((a, b) => a - b));
  if (lefts.length * tops.length !== boxes.length) return null;
  return boxes.map(([left, top]) => [lefts.indexOf(left), tops.indexOf(top)]);
}

// The cell in words, counted from the top left.
function cellName({ name, grid, cellBoxes }, cell) {
  const several = data.pictures.length > 1 ? ` of ${name}` : "";
  if (grid) return `column ${grid[cell][0] + 1}, row ${grid[cell][1] + 1}${several}`;
  const [left, top, right, bottom] = cellBoxes[cell].map(Math.round);
  return `x ${left}\u2013${right}, y ${top}\u2013${bottom}${several}`;
}

// A plane: levels of its weights, (T, S), and the highest weight of each row's text and pictures, (T, 1 + pictures).
async function readPlane(facts) {
  const floats = ["peaks", "cellStrengths", "textStrengths", "median", "neutral"].map((name) => [name, Float32Array]);
  const shares = await Promise.all(facts.shares.map((share) => unpacked(share, { weights: Float32Array })));
  return { ...(await unpacked(facts, { rows: Uint8Array, ...Object.fromEntries(floats) })), shares };
}

const data = {
  async read() {
    const facts = (this.facts = JSON.parse(byId("facts").textContent));
    [this.S, this.P, this.groups] = [facts.positions, facts.prompt, facts.images.length + 1];
    this.T = this.S - this.P;
    this.weightOf = Float32Array.from({ length: 256 }, (_, q) => (q ? Math.exp(((q - 255) / 254) * facts.logRange) : 0));
    this.pictures = await Promise.all(facts.images.map(readPicture));
    this.groupOf = new Uint8Array(this.S);
    this.pictures.forEach((picture, n) => picture.positions.forEach((p) => (this.groupOf[p] = n + 1)));
    // records[r].planes[n]: a promise of a plane, started when it is asked for
    this.records = facts.records.map(({ name, planes }) => ({ name, planes: planes.map(() => null) }));
    // pieces[i]: {start, end, text, kind}; stepPiece[t]: the piece of response token t
    this.pieces = facts.pieces.map(([start, text, kind], i, all) => ({ start, end: all[i + 1]?.[0] ?? this.S, text, kind }));
    this.stepPiece = new Int32Array(this.T);
    this.pieces.forEach((piece, i) => this.stepsOf(piece).forEach((t) => (this.stepPiece[t] = i)));
  },

  // The steps of the answer's tokens in a piece; none for a piece of the prompt.
  stepsOf({ start, end }) {
    return end > this.P ? range(Math.max(start - this.P, 0), end - this.P - 1) : [];
  },

  plane(record, number) {
    const { planes } = this.records[record];
    return (planes[number] ??= readPlane(this.facts.records[record].planes[number]));
  },

  tokenText(step) {
    return this.pieces[this.stepPiece[step]].text.replace(/\n/g, "").trim() || "space";
  },
};
