// The text: a span for each piece, tinted by weights. Tokens of the answer can be pointed at.

const REST_WAIT = 120; // milliseconds until what is out of view is painted too

const text = {
  spans: [], shades: [], tops: [], // what each span shows now, so that only what changes is touched

  build() {
    const { pieces, facts, P } = data, early = byId("early");
    this.spans = pieces.map((piece, i) => {
      const span = document.createElement("span");
      const shown = piece.kind === "image" ? piece.text.replace(/[[\]]/g, "") : piece.text;
      span.textContent = shown;
      span.className = `kind-${piece.kind}`;
      span.dataset.piece = i;
      if (piece.end > P) {
        Object.assign(span, { id: `token-${i}` });
        span.setAttribute("role", "option");
        span.setAttribute("aria-label", data.tokenText(Math.max(piece.start - P, 0)));
        byId("answer").append(span);
      } else {
        if (piece.start < facts.shownFrom) early.append(span);
        else byId("prompt").append(span);
      }
      return span;
    });
    this.shades = new Array(pieces.length).fill("");
    byId("more").hidden = !early.childElementCount;
    this.showAll(!early.childElementCount);
  },

  showAll(all) {
    byId("early").hidden = !all;
    byId("more").setAttribute("aria-expanded", String(all));
    byId("more").textContent = all ? "Hide the beginning of the prompt" : "Show the whole prompt";
  },

  // The step that a piece of the answer begins with, or -1.
  stepOf(piece) {
    return data.pieces[piece].end > data.P ? Math.max(data.pieces[piece].start - data.P, 0) : -1;
  },

  // values: (pieces,), NaN for what is left out; pieces after `last` have none. chosen: pieces shown in blue.
  // What is in view is painted at once, the rest when it is scrolled to, or soon after.
  tint(values, end, look) {
    this.wanted = { values, end, ...look };
    this.paint(this.inView());
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.paint(null), REST_WAIT);
  },

  // The first and last y of what is in view, in pixels from the top of the text.
  inView() {
    const { scrollTop, clientHeight } = byId("scroll");
    return [scrollTop - 40, scrollTop + clientHeight];
  },

  measure() {
    const box = byId("scroll"), start = box.getBoundingClientRect().top - box.scrollTop;
    this.tops = this.spans.map((span) => span.getBoundingClientRect().top - start);
  },

  paint(view) {
    if (!this.wanted) return;
    const { values, end, table, two, dark, style, last, chosen, outlined } = this.wanted;
    const { colours } = data.facts, { pieces } = data, letters = style === "glyph";
    const kind = letters ? (dark ? "darkGlyph" : "glyph") : dark ? "darkGround" : "ground";
    const [plain, special] = this.colours(table, kind, dark ? colours.dark.paper : colours.fixed.paper);
    for (let i = 0; i < pieces.length; i++) {
      if (view && !(this.tops[i] >= view[0] && this.tops[i] <= view[1])) continue;
      const shade = chosen.has(i) && !outlined ? "chosen" : i > last ? "later" : Number.isNaN(values[i]) ? "plain" : levelOf(values[i], end, two);
      const colour = typeof shade === "number" ? (pieces[i].kind === "special" ? special : plain)[shade] : "";
      const name = `kind-${pieces[i].kind} ${colour ? "" : shade}${outlined && chosen.has(i) ? " ringed" : ""}`;
      if (this.shades[i] === name + colour) continue;
      this.shades[i] = name + colour;
      const span = this.spans[i];
      if (span.className !== name) span.className = name;
      if (letters) span.style.color = colour;
      else span.style.backgroundColor = colour;
      if (pieces[i].end > data.P) span.ariaSelected = String(chosen.has(i));
    }
  },

  // CSS colours of each level, of words and of special tokens.
  colours(table, kind, paper) {
    if (table[`${kind} css`]) return table[`${kind} css`];
    const kept = kind.endsWith("lyph") ? 0.7 : data.facts.colours.special;
    const special = table[kind].map((rgb) => css(rgb.map((c, n) => paper[n] + (c - paper[n]) * kept)));
    return (table[`${kind} css`] = [table[kind].map((rgb) => css(rgb)), special]);
  },

  // When colours change altogether.
  forget() {
    this.shades.fill("");
    this.spans.forEach((span) => (span.style.color = span.style.backgroundColor = ""));
  },

  scrollTo(piece) {
    const { scrollTop, clientHeight } = byId("scroll"), at = this.tops[piece];
    if (at < scrollTop + 8 || at > scrollTop + clientHeight - 40) byId("scroll").scrollTop = at - clientHeight / 2;
  },

  // The steps whose tokens touch a stretch of the answer that reads like a word, whatever its case.
  find(word) {
    const wanted = word.trim().toLowerCase(), found = new Set();
    if (!wanted) return { steps: [], places: 0 };
    const starts = [], { pieces, P, T, S } = data;
    let whole = "";
    pieces.forEach((piece, i) => {
      starts.push(whole.length);
      if (piece.end > P) whole += piece.text.replace(/\u21b5\n/g, "\n").toLowerCase();
    });
    let places = 0;
    for (let at = whole.indexOf(wanted); at >= 0; at = whole.indexOf(wanted, at + wanted.length)) {
      places++;
      const end = at + wanted.length;
      pieces.forEach((piece, i) => {
        const next = starts[i + 1] ?? whole.length;
        if (piece.end <= P || next <= at || starts[i] >= end) return;
        for (let t = Math.max(piece.start - P, 0); t < piece.end - P; t++) found.add(t);
      });
    }
    return { steps: [...found].sort((a, b) => a - b), places };
  },
};
