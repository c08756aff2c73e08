// What the page is made of: tokens, pictures, planes. Arrays come as base64 of deflated bytes, and are unpacked here.

const byId = (id) => document.getElementById(id);

// Let an element say something; where it says so already, nothing has to be laid out anew.
function say(id, words) {
  const element = byId(id);
  if (element.textContent !== words) element.textContent = words;
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

async function unpack(text, Kind) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Kind(await new Response(stream).arrayBuffer());
}

// One picture: where its tokens stand in the prompt, and the cells of its map.
async function readPicture(facts, number) {
  const [positions, boxes, cells, cellBoxes] = await Promise.all([
    unpack(facts.positions, Int32Array), unpack(facts.boxes, Float32Array),
    unpack(facts.cells, Int32Array), unpack(facts.cellBoxes, Float32Array),
  ]);
  const bitmap = await createImageBitmap(new Blob([bytesOf(facts.file)], { type: facts.kind }));
  const { name, width, height, spread, shades } = facts;
  return { number, name, width, height, positions, boxes, cells, cellBoxes, spread, shades, bitmap, ...gridOf(cellBoxes) };
}

// Column and row of each cell where the cells are one regular grid, else null.
function gridOf(boxes) {
  const lefts = new Map(), tops = new Map(), count = boxes.length / 4;
  for (let c = 0; c < count; c++) {
    lefts.set(boxes[4 * c], 0);
    tops.set(boxes[4 * c + 1], 0);
  }
  [lefts, tops].forEach((sides) => [...sides.keys()].sort((a, b) => a - b).forEach((side, n) => sides.set(side, n)));
  if (!count || lefts.size * tops.size !== count) return { grid: null };
  const column = [], row = [];
  for (let c = 0; c < count; c++) {
    column.push(lefts.get(boxes[4 * c]));
    row.push(tops.get(boxes[4 * c + 1]));
  }
  return { grid: { column, row, columns: lefts.size, rows: tops.size } };
}

// The cell in words, counted from the top left.
function cellName(picture, cell) {
  const several = data.pictures.length > 1 ? ` of ${picture.name}` : "";
  if (picture.grid) return `column ${picture.grid.column[cell] + 1}, row ${picture.grid.row[cell] + 1}${several}`;
  const [left, top, right, bottom] = picture.cellBoxes.subarray(4 * cell, 4 * cell + 4).map(Math.round);
  return `x ${left}\u2013${right}, y ${top}\u2013${bottom}${several}`;
}

// A plane: levels of its weights, (T, S), and the highest weight of each row's text and pictures, (T, 1 + pictures).
async function readPlane(facts) {
  const [rows, peaks, cellStrengths, textStrengths, median, neutral, ...shares] = await Promise.all([
    unpack(facts.rows, Uint8Array), unpack(facts.peaks, Float32Array),
    unpack(facts.cellStrengths, Float32Array), unpack(facts.textStrengths, Float32Array),
    unpack(facts.median, Float32Array), facts.neutral ? unpack(facts.neutral, Float32Array) : null,
    ...facts.shares.map((share) => unpack(share.weights, Float32Array)),
  ]);
  const named = facts.shares.map((share, n) => ({ ...share, weights: shares[n] }));
  return { ...facts, rows, peaks, cellStrengths, textStrengths, median, neutral, shares: named };
}

const data = {
  facts: null, pictures: [], records: [], // records[r].planes[n]: a promise of a plane, started when it is asked for
  T: 0, S: 0, P: 0, groups: 0, weightOf: null, groupOf: null, stepPiece: null,

  async read() {
    const facts = (this.facts = JSON.parse(byId("facts").textContent));
    [this.S, this.P, this.groups] = [facts.positions, facts.prompt, facts.images.length + 1];
    this.T = this.S - this.P;
    this.weightOf = Float32Array.from({ length: 256 }, (_, q) => (q ? Math.exp(((q - 255) / 254) * facts.logRange) : 0));
    this.pictures = await Promise.all(facts.images.map(readPicture));
    this.groupOf = new Uint8Array(this.S);
    this.pictures.forEach((picture, n) => picture.positions.forEach((p) => (this.groupOf[p] = n + 1)));
    this.records = facts.records.map((record) => ({ name: record.name, planes: record.planes.map(() => null) }));
    this.readPieces();
  },

  // pieces[i]: {start, end, text, kind}; stepPiece[t]: the piece of response token t.
  readPieces() {
    const starts = this.facts.pieces;
    this.pieces = starts.map(([start, text, kind], i) => ({ start, end: starts[i + 1]?.[0] ?? this.S, text, kind }));
    this.stepPiece = new Int32Array(this.T);
    this.pieces.forEach(({ start, end }, i) => {
      for (let p = Math.max(start, this.P); p < end; p++) this.stepPiece[p - this.P] = i;
    });
  },

  plane(record, number) {
    const planes = this.records[record].planes;
    planes[number] ??= readPlane(this.facts.records[record].planes[number]);
    return planes[number];
  },

  tokenText(step) {
    const text = this.pieces[this.stepPiece[step]].text.replace(/\n/g, "").trim();
    return text || "space";
  },
};
