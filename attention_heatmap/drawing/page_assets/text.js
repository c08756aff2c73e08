// The text: a span for each piece, tinted by weights. Tokens of the answer can be pointed at.

const text = {
  spans: [], shades: [], // what each span shows now, so that only what changes is touched

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
  tint(values, end, { table, two, dark, style, last, chosen, outlined }) {
    const { colours } = data.facts, { pieces } = data, letters = style === "glyph";
    const shades = table[letters ? (dark ? "darkGlyph" : "glyph") : dark ? "darkGround" : "ground"];
    const paper = dark ? colours.dark.paper : colours.fixed.paper, plainShades = shades.map((rgb) => css(rgb));
    const kept = letters ? 0.7 : colours.special, specialShades = shades.map((rgb) => css(rgb.map((c, n) => paper[n] + (c - paper[n]) * kept)));
    for (let i = 0; i < pieces.length; i++) {
      const plain = i > last || Number.isNaN(values[i]);
      const special = pieces[i].kind === "special";
      const shade = chosen.has(i) && !outlined ? "chosen" : plain ? (i > last ? "later" : "plain") : levelOf(values[i], end, two);
      const key = outlined && chosen.has(i) ? `${shade} ringed` : shade;
      if (this.shades[i] === key && this.table === table) continue;
      this.shades[i] = key;
      const span = this.spans[i], coloured = typeof shade === "number";
      const colour = coloured ? (special ? specialShades : plainShades)[shade] : "";
      if (letters) span.style.color = colour;
      span.style.backgroundColor = letters ? "" : colour;
      span.className = `kind-${pieces[i].kind}${coloured ? "" : ` ${shade}`}${key === shade ? "" : " ringed"}`;
      if (pieces[i].end > data.P) span.ariaSelected = String(chosen.has(i));
    }
    this.table = table;
  },

  // When colours change altogether.
  forget() {
    this.shades.fill("");
    this.spans.forEach((span) => (span.style.color = ""));
  },

  scrollTo(piece) {
    const box = byId("scroll").getBoundingClientRect(), at = this.spans[piece].getBoundingClientRect();
    if (at.top < box.top + 8 || at.bottom > box.bottom - 8) {
      byId("scroll").scrollTop += at.top - box.top - box.height / 2;
    }
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
