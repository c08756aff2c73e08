// From rows to what is drawn, as attention_heatmap/maps.py does it: baselines, sinks, smoothing, cells, scales.

const TINY = 1.1754944e-38;

// Cells as sums over tokens, a sparse matrix: cell c takes parts[i] of the token at positions[i], i from at[c] to at[c + 1].
function cellMatrix(picture, smooth, isSink) {
  const alone = new Set(picture.cells);
  picture.spread.forEach(([position]) => alone.delete(position));
  const lists = Array.from(picture.cells, (p) => (alone.has(p) ? [[p, 1]] : []));
  picture.spread.forEach(([p, on, parts]) => on.forEach((cell, n) => lists[cell].push([p, parts[n]])));
  if (!smooth) return packMatrix(lists);
  const near = neighbours(picture, smooth, isSink);
  return packMatrix(lists.map((list) => {
    const sum = new Map();
    for (const [p, part] of list) for (const [q, w] of near.get(p)) sum.set(q, (sum.get(q) ?? 0) + part * w);
    return [...sum];
  }));
}

function packMatrix(lists) {
  const at = new Int32Array(lists.length + 1);
  lists.forEach((list, n) => (at[n + 1] = at[n] + list.length));
  const entries = lists.flat();
  return { at, positions: Int32Array.from(entries, (e) => e[0]), parts: Float32Array.from(entries, (e) => e[1]) };
}

// Of each token: [position, part] of the tokens whose Gaussian mean it is; those as fine as it, and no sink.
function neighbours({ positions, boxes }, width, isSink) {
  const found = new Map(), reach = 4 * width; // in cells; further away there is nothing
  const middles = boxes.map(([l, t, r, b]) => [(l + r) / 2, (t + b) / 2, r - l, b - t]);
  positions.forEach((p, i) => {
    const [x, y, wide, high] = middles[i], near = [];
    if (!Number.isFinite(wide) || isSink(p)) return found.set(p, [[p, 1]]);
    middles.forEach(([x1, y1, wide1, high1], j) => {
      const dx = (x1 - x) / wide, dy = (y1 - y) / high;
      if (!(Math.abs(dx) <= reach && Math.abs(dy) <= reach) || isSink(positions[j])) return;
      if (Math.abs(Math.log((wide1 * high1) / (wide * high))) >= Math.LN2) return;
      near.push([positions[j], Math.exp(-(dx * dx + dy * dy) / (2 * width * width))]);
    });
    const total = near.reduce((sum, [, part]) => sum + part, 0);
    found.set(p, near.map(([q, part]) => [q, part / total]));
  });
  return found;
}

// One plane with one choice of baseline, sinks and smoothing.
class View {
  constructor(plane, look) {
    const { S, pictures } = data;
    this.plane = plane;
    this.muted = look.baseline !== "off" || look.sinks;
    this.isSink = new Uint8Array(S);
    if (look.sinks) plane.sinks.forEach((p) => (this.isSink[p] = 1));
    this.less = new Float32Array(S); // what is taken off an image token, and what it is then multiplied by
    this.times = new Float32Array(S).fill(1);
    this.setBaseline(look.baseline);
    this.matrices = pictures.map((picture) => cellMatrix(picture, look.smooth, (p) => this.isSink[p]));
    this.raw = new Float64Array(S); // sums over the steps that are held
    this.sum = this.muted ? new Float64Array(S) : this.raw;
    this.held = [];
  }

  setBaseline(name) {
    const { median, neutral } = this.plane, at = data.pictures.flatMap((picture) => [...picture.positions]);
    const mean = neutral ? neutral.reduce((a, b) => a + b, 0) / neutral.length : 0;
    at.forEach((p, n) => {
      if (name === "median") this.less[p] = median[n];
      if (name === "neutral") this.less[p] = neutral[n];
      if (name === "relative") this.times[p] = 1 / Math.max(neutral[n], 0.1 * mean, TINY); // maps.LEAST_BASELINE
      if (this.isSink[p]) this.times[p] = 0;
    });
  }

  // Hold the rows of these steps: their sums.
  hold(steps) {
    if (steps.join() === this.held.join()) return;
    const { S, P, groups, groupOf, weightOf } = data, { rows, peaks } = this.plane, { raw, sum, less, times } = this;
    this.held = steps;
    raw.fill(0);
    sum.fill(0);
    for (const step of steps) {
      const end = P + step, row = step * S, high = peaks.subarray(step * groups, (step + 1) * groups);
      for (let p = 0; p < end; p++) {
        const level = rows[row + p];
        if (!level) continue;
        const weight = high[groupOf[p]] * weightOf[level];
        raw[p] += weight;
        if (this.muted && groupOf[p] && weight > less[p]) sum[p] += (weight - less[p]) * times[p];
      }
    }
  }

  // The mean map of the steps held, an array a picture; NaN for a sink.
  cells() {
    return data.pictures.map((picture, n) => {
      const { at, positions, parts } = this.matrices[n];
      return Float32Array.from(picture.cells, (p, c) => {
        let value = 0;
        for (let i = at[c]; i < at[c + 1]; i++) value += parts[i] * this.sum[positions[i]];
        return this.isSink[p] ? NaN : value / this.held.length;
      });
    });
  }

  // The mean weight of each piece of text in the steps held; NaN for a sink.
  pieces() {
    return Float32Array.from(data.pieces, ({ start, end, kind }) => {
      let value = 0, sink = false;
      for (let p = start; p < end; p++) {
        value += this.raw[p];
        sink ||= this.isSink[p] && kind !== "image";
      }
      return sink ? NaN : value / this.held.length;
    });
  }

  // How much each step looked at some cells of a picture, (T,).
  lookedAt(picture, cells) {
    const { S, groups, weightOf } = data, { rows, peaks } = this.plane, { less, times } = this;
    const { at, positions, parts } = this.matrices[picture], sum = new Map();
    for (const c of cells) {
      if (this.isSink[data.pictures[picture].cells[c]]) continue;
      for (let i = at[c]; i < at[c + 1]; i++) sum.set(positions[i], (sum.get(positions[i]) ?? 0) + parts[i]);
    }
    const from = Int32Array.from(sum.keys()), part = Float32Array.from(sum, ([p, own]) => own * times[p]);
    return Float32Array.from({ length: data.T }, (_, t) => {
      const high = peaks[t * groups + picture + 1], row = t * S;
      let value = 0;
      for (let i = 0; i < from.length; i++) {
        const weight = high * weightOf[rows[row + from[i]]] - less[from[i]];
        if (weight > 0) value += part[i] * weight;
      }
      return value;
    });
  }

  // The ends of the scales of the whole answer.
  wholeEnds() {
    if (this.ends) return this.ends;
    const cells = [], texts = [], before = this.held, { quantiles } = data.facts;
    for (const t of range(0, data.T - 1)) {
      this.hold([t]);
      cells.push(...this.cells());
      texts.push(shownTexts(this.pieces()));
    }
    this.hold(before);
    return (this.ends = { cells: scaleEnd(joined(cells), quantiles.cells), text: scaleEnd(joined(texts), quantiles.text) });
  }
}

// The weights of pieces that are words, from where the text is shown.
function shownTexts(values) {
  const { pieces, facts } = data;
  return values.filter((_, i) => pieces[i].kind === "text" && pieces[i].start >= facts.shownFrom);
}

// The weight drawn as the highest: a quantile of those above 0, as drawing/colour.py's scale_ends.
function scaleEnd(values, quantile) {
  const shown = values.filter((value) => value > 0).sort();
  return shown.length ? shown[Math.ceil(quantile * (shown.length - 1))] : 1;
}

// Several arrays as one.
function joined(arrays) {
  const whole = new Float32Array(arrays.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const array of arrays) {
    whole.set(array, at);
    at += array.length;
  }
  return whole;
}
