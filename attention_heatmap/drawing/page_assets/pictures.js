// The pictures: each a stack of three canvases, the picture, the heat, and what lies over it.

const HATCH = 4; // pixels, width of a stripe over a sink

// Tables of colours by name and strength, unpacked once. Entries of `cells` are words of RGBA, of the others CSS colours.
const tables = {};

// strength: of the tint, 0..1; it follows the share of the attention that is shown, as in the video.
function colourTable(name, strength) {
  const { colours } = data.facts, { strengths, levels } = colours;
  const near = strengths.reduce((best, s, n) => (Math.abs(s - strength) < Math.abs(strengths[best] - strength) ? n : best), 0);
  const key = `${name} ${near}`;
  if (tables[key]) return tables[key];
  const packed = name === "difference" ? colours.difference : colours.maps[name], part = (kind, channels) =>
    bytesOf(packed[kind]).slice(near * levels * channels, (near + 1) * levels * channels);
  const table = { cells: new Uint32Array(part("cells", 4).buffer) };
  for (const kind of ["ground", "glyph", "darkGround", "darkGlyph"]) {
    const bytes = part(kind, 3);
    table[kind] = Array.from({ length: levels }, (_, i) => [...bytes.subarray(3 * i, 3 * i + 3)]);
  }
  return (tables[key] = table);
}

const css = (rgb, alpha = 1) => `rgb(${rgb.map(Math.round).join(" ")} / ${alpha})`;

// Where a part of the scale's end is on the colours, 0..1, as drawing/colour.py's scaled.
function drawnPart(part, two) {
  const { scale, power } = state.look;
  if (scale !== "log" || two) return part ** power;
  return Math.max(1 + Math.log10(Math.max(part, TINY)) / data.facts.logDecades, 0) ** power;
}

// The level of a weight: 0..levels - 1 from 0 to `end`; where there are two sides, from -end to end.
function levelOf(value, end, two) {
  const last = data.facts.colours.levels - 1, part = drawnPart(Math.min(Math.abs(value) / end, 1), two);
  return Math.round(two ? (1 + Math.sign(value) * part) * (last / 2) : value > 0 ? part * last : 0);
}

// The sides of a cell in pixels of a canvas: rounding edges, not sizes, lets uneven cells still reach the last pixel.
function sidesOf({ cellBoxes, width, height }, cell, canvas) {
  return cellBoxes[cell].map((side, n) => Math.round(n % 2 ? (side * canvas.height) / height : (side * canvas.width) / width));
}

// The cell under each pixel of a canvas, 0 where there is none, else 1 + the cell.
function cellIndex(picture, width, height) {
  const index = new Uint32Array(width * height);
  picture.cellBoxes.forEach((_, c) => {
    const [left, top, right, bottom] = sidesOf(picture, c, { width, height });
    for (let row = top; row < bottom; row++) index.fill(c + 1, row * width + left, row * width + right);
  });
  return index;
}

// Tint the pixels of an ImageData by the weights of the cells under them; `shades` are words of RGBA by level.
function tint(image, index, values, end, shades, two) {
  const words = new Uint32Array(image.data.buffer), palette = new Uint32Array(values.length + 1);
  values.forEach((value, c) => (palette[c + 1] = Number.isNaN(value) ? 0 : shades[levelOf(value, end, two)]));
  for (let i = 0; i < index.length; i++) words[i] = palette[index[i]];
}

// One picture of one record, or of the difference of two.
class PictureView {
  constructor(picture, side, title) {
    this.picture = picture;
    this.side = side; // "first", "second" or "difference"
    [this.ground, this.heat, this.over] = ["ground", "heat", "over"].map((className) => make("canvas", { className }));
    Object.assign(this.over, { tabIndex: 0, role: "application", ariaRoleDescription: "picture of cells" });
    this.stack = make("div", { className: "stack" }, this.ground, this.heat, this.over);
    this.figure = make("figure", {}, ...(title ? [make("figcaption", { textContent: title })] : []), this.stack);
  }

  resize(width, height) {
    const scale = window.devicePixelRatio || 1;
    this.stack.style.width = `${width}px`;
    this.stack.style.height = `${height}px`;
    this.scale = scale;
    [this.width, this.height] = [width, height].map((side) => Math.max(Math.round(side * scale), 1));
    for (const canvas of this.stack.children) Object.assign(canvas, { width: this.width, height: this.height });
    this.index = cellIndex(this.picture, this.width, this.height);
    this.image = new ImageData(this.width, this.height);
    this.shown = null;
  }

  // The picture as it stands under the heat: part of its colour gone, its shades others; the grid, and stripes over sinks.
  drawGround(look, isSink) {
    const context = this.ground.getContext("2d", { willReadFrequently: true }), { width, height, index, scale } = this;
    const { greyed, grid } = data.facts, grey = { colour: 0, muted: greyed, grey: 1 }[look.picture], { shades, cells } = this.picture;
    const hasGrid = look.grid && Math.sqrt((width * height) / (cells.length || 1)) / scale >= grid.smallest;
    const stripe = Math.max(Math.round(HATCH * scale), 2);
    context.imageSmoothingQuality = "high";
    context.drawImage(this.picture.bitmap, 0, 0, width, height);
    const image = context.getImageData(0, 0, width, height), pixels = image.data;
    for (let i = 0; i < index.length; i++) {
      const x = i % width, y = (i - x) / width, at = 4 * i;
      const light = 0.299 * pixels[at] + 0.587 * pixels[at + 1] + 0.114 * pixels[at + 2];
      const isLine = hasGrid && index[i] && this.isEdge(i, x, y), isHatched = index[i] && isSink[index[i] - 1];
      const shade = Math.floor((x + y) / stripe) % 2 ? 255 : 24;
      for (let c = 0; c < 3; c++) {
        if (grey) pixels[at + c] = shades[Math.round(pixels[at + c] + (light - pixels[at + c]) * grey)];
        if (isLine) pixels[at + c] += (grid.rgb[c] - pixels[at + c]) * grid.alpha;
        if (isHatched) pixels[at + c] += (shade - pixels[at + c]) * 0.6;
      }
    }
    context.putImageData(image, 0, 0);
  }

  // Whether a pixel is the first of its cell, or the last before none.
  isEdge(i, x, y) {
    const { index, width, height } = this;
    const starts = index[i] !== (x ? index[i - 1] : 0) || index[i] !== (y ? index[i - width] : 0);
    return starts || x === width - 1 || y === height - 1 || !index[i + 1] || !index[i + width];
  }

  drawHeat(values, end, table, two) {
    this.values = values;
    tint(this.image, this.index, values, end, table.cells, two);
    this.heat.getContext("2d").putImageData(this.image, 0, 0);
  }

  // What lies over the heat: named places, the cell under the pointer, the cells that are pinned.
  drawOver(marks, place, cursor) {
    const shown = JSON.stringify([marks.map(({ number, age }) => [number, age]), place, cursor, this.width]);
    if (shown === this.shown) return;
    this.shown = shown;
    const context = this.over.getContext("2d");
    context.clearRect(0, 0, this.width, this.height);
    if (place) this.outline(context, place, true);
    if (marks.length) drawMarks(context, marks, this.width, this.height, this.scale);
    context.globalAlpha = 1;
    if (cursor !== null) this.outline(context, [cursor], false);
  }

  // The outline of some cells: their rim, light round dark, or blue where they are pinned.
  outline(context, cells, pinned) {
    const path = new Path2D(), rim = new Map();
    for (const c of new Set(cells)) {
      const [l, t, r, b] = sidesOf(this.picture, c, this);
      for (const side of [[l, t, r, t], [l, b, r, b], [l, t, l, b], [r, t, r, b]]) {
        if (!rim.delete(side.join())) rim.set(side.join(), side); // a side that two cells share is no rim
      }
    }
    for (const [x0, y0, x1, y1] of rim.values()) {
      path.moveTo(x0, y0);
      path.lineTo(x1, y1);
    }
    context.lineCap = "square";
    strokeTwice(context, path, pinned ? css(data.facts.colours.fixed.current) : "black", 2 * this.scale, this.scale);
  }

  // The cell under a pointer, or -1.
  cellAt(event) {
    const [x, y] = this.partAt(event);
    if (x < 0 || y < 0 || x >= 1 || y >= 1) return -1;
    return this.index[Math.floor(y * this.height) * this.width + Math.floor(x * this.width)] - 1;
  }

  // The place of a pointer in parts of the picture: 0..1 where it is on it.
  partAt({ clientX, clientY }) {
    const box = this.over.getBoundingClientRect();
    return [(clientX - box.left) / box.width, (clientY - box.top) / box.height];
  }
}

// A path in a colour, within a wider white one: seen on any picture.
function strokeTwice(context, path, colour, thickness, scale) {
  for (const [shade, wide] of [["white", thickness + 2 * scale], [colour, thickness]]) {
    [context.strokeStyle, context.lineWidth] = [shade, wide];
    context.stroke(path);
  }
}

// Places that the answer names: rings with numbers, the last one blue, the ones before ever fainter, old ones dots.
// marks: {corners: [x, y] or [x, y, right, bottom] in parts of the picture, number, age}; rings in a row are joined.
function drawMarks(context, marks, width, height, scale) {
  const { opacity, old, radius: full } = data.facts.markLook, current = css(data.facts.colours.fixed.current);
  const radius = Math.min(Math.max(width / scale / 45, 7), full) * scale, ink = css(data.facts.colours.fixed.ink);
  const at = marks.map(({ corners }) => corners.map((part, n) => part * (n % 2 ? height : width)));
  marks.forEach(({ age }, n) => {
    const [x, y, right = x, bottom = y] = at[n], isRing = at[n].length === 2, path = new Path2D();
    context.globalAlpha = opacity[age] ?? old;
    if (age >= opacity.length) {
      path.arc((x + right) / 2, (y + bottom) / 2, 1.5 * scale, 0, 7);
      return strokeTwice(context, path, ink, 2 * scale, scale);
    }
    if (isRing && at[n - 1]?.length === 2) strokeTwice(context, between(at[n - 1], at[n], radius, scale), ink, 2 * scale, scale);
    if (isRing) path.arc(x, y, radius, 0, 7);
    else path.rect(x, y, right - x, bottom - y);
    strokeTwice(context, path, age ? ink : current, 2.5 * scale, scale);
  });
  context.globalAlpha = 1;
  marks.forEach((mark, n) => mark.age < opacity.length && tagMark(context, mark, at[n], radius, scale, height));
}

// A line between two rings, not through them; none where they are near.
function between([x0, y0], [x1, y1], radius, scale) {
  const length = Math.hypot(x1 - x0, y1 - y0), edge = (radius + 4 * scale) / length, path = new Path2D();
  if (length > 3 * radius) {
    path.moveTo(x0 + (x1 - x0) * edge, y0 + (y1 - y0) * edge);
    path.lineTo(x1 - (x1 - x0) * edge, y1 - (y1 - y0) * edge);
  }
  return path;
}

// A small tag with a mark's number at the upper left of its ring, or of its box.
function tagMark(context, { number, age, corners }, [x, y], radius, scale, height) {
  const { opacity } = data.facts.markLook, { current, ink } = data.facts.colours.fixed, size = 12 * scale;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const wide = context.measureText(number).width + size * 0.6, high = size * 1.2, away = corners.length === 2 ? radius : 0;
  const left = Math.max(x - away - wide, 0), top = Math.min(Math.max(y - away - high, 0), height - high);
  context.fillStyle = css((age ? ink : current).map((c) => 255 - (255 - c) * (0.5 + 0.5 * opacity[age])));
  context.beginPath();
  context.roundRect(left, top, wide, high, 3 * scale);
  context.fill();
  [context.textAlign, context.textBaseline, context.fillStyle] = ["center", "middle", "white"];
  context.fillText(number, left + wide / 2, top + high / 2 + scale / 2);
}

// Columns and sizes that let the smallest of some pictures be largest in an area, as image_panel.picture_slots.
function slots(sizes, width, height, label, gap) {
  const fit = (columns) => {
    const rows = Math.ceil(sizes.length / columns);
    const wide = (width - (columns - 1) * gap) / columns, high = (height - (rows - 1) * gap) / rows - label;
    return { columns, scales: sizes.map(([w, h]) => Math.max(Math.min(wide / w, high / h), 0.01)) };
  };
  const least = ({ scales }) => Math.min(...scales);
  return range(1, sizes.length).map(fit).reduce((best, other) => (least(other) > least(best) + 1e-6 ? other : best));
}

// The strip: a small map of every plane, each on its own scale.
class Strip {
  constructor(box, names, choose) {
    this.box = box;
    this.items = names.map((name, n) => {
      const label = name.replace("layer ", "").replace(", mean of the heads", "").replace(", ", " \u00b7 ");
      const canvas = make("canvas"), look = { className: "plane", id: `plane-${n}`, role: "option", ariaLabel: name };
      const item = make("div", { ...look, onclick: () => choose(n) }, canvas, make("span", { textContent: label }));
      box.append(item);
      return { item, canvas };
    });
  }

  // The size of the maps, all pictures side by side, `height` pixels high.
  resize(height) {
    const scale = window.devicePixelRatio || 1, high = Math.round(height * scale);
    this.parts = data.pictures.map((picture) => {
      const width = Math.max(Math.round((high * picture.width) / picture.height), 1);
      return { width, index: cellIndex(picture, width, high), image: new ImageData(width, high) };
    });
    const width = this.parts.reduce((sum, part) => sum + part.width + 2, -2);
    for (const { canvas } of this.items) {
      Object.assign(canvas, { width, height: high });
      canvas.style.width = `${width / scale}px`;
      canvas.style.height = `${height}px`;
    }
  }

  draw(number, values, table, end, two) {
    const context = this.items[number].canvas.getContext("2d");
    let x = 0;
    this.parts.forEach(({ width, index, image }, n) => {
      tint(image, index, values[n], end, table.cells, two); // on white, no picture below it
      context.putImageData(image, x, 0);
      x += width + 2;
    });
  }

  choose(number) {
    if (number === this.chosen) return;
    this.chosen = number;
    this.items.forEach(({ item }, n) => (item.ariaSelected = String(n === number)));
    this.box.setAttribute("aria-activedescendant", `plane-${number}`);
    const { item } = this.items[number], { box } = this, from = item.offsetLeft - box.offsetLeft;
    const isSeen = from >= box.scrollLeft && from + item.offsetWidth <= box.scrollLeft + box.clientWidth;
    if (!isSeen) box.scrollLeft = from - box.clientWidth / 3; // only the strip itself is scrolled
  }
}
