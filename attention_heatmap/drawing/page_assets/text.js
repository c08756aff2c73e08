// The text: a span for each piece, tinted by weights. Tokens of the answer can be pointed at.

const REST_WAIT = 120; // milliseconds until what is out of view is painted too

const text = {
  tops: [], // of each span, in pixels from the top of the text

  build() {
    const { pieces, facts, P } = data, early = byId("early");
    this.spans = pieces.map((piece, i) => {
      const textContent = piece.kind === "image" ? piece.text.replace(/[[\]]/g, "") : piece.text;
      const span = make("span", { textContent, className: `kind-${piece.kind}` }), step = this.stepOf(i);
      span.dataset.piece = i;
      if (step >= 0) Object.assign(span, { id: `token-${i}`, role: "option", ariaLabel: data.tokenText(step) });
      const box = step >= 0 ? byId("answer") : piece.start < facts.shownFrom ? early : byId("prompt");
      box.append(span);
      return span;
    });
    this.shades = new Array(pieces.length).fill(""); // what each span shows now: only what changes is touched
    byId("more").hidden = !early.childElementCount;
    this.showAll(!early.childElementCount);
  },

  showAll(all) {
    byId("early").hidden = !all;
    const textContent = all ? "Hide the beginning of the prompt" : "Show the whole prompt";
    Object.assign(byId("more"), { ariaExpanded: String(all), textContent });
  },

  // The step that a piece of the answer begins with, or -1.
  stepOf(piece) {
    return data.stepsOf(data.pieces[piece])[0] ?? -1;
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
    const { values, end, table, two, last, chosen, outlined } = this.wanted;
    const { pieces } = data, letters = state.look.style === "glyph", [plain, special] = this.colours(table, textKind());
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
  colours(table, kind) {
    if (table[`${kind} css`]) return table[`${kind} css`];
    const { paper } = data.facts.colours[kind.startsWith("dark") ? "dark" : "fixed"];
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
    const wanted = word.trim().toLowerCase(), found = new Set(), answer = data.pieces.filter(({ end }) => end > data.P);
    const texts = answer.map((piece) => piece.text.replace(/\u21b5\n/g, "\n").toLowerCase()), whole = texts.join("");
    const pieceAt = texts.flatMap((own, i) => new Array(own.length).fill(answer[i])); // of each letter
    let places = 0;
    for (let at = whole.indexOf(wanted); wanted && at >= 0; at = whole.indexOf(wanted, at + wanted.length)) {
      places++;
      new Set(pieceAt.slice(at, at + wanted.length)).forEach((piece) => data.stepsOf(piece).forEach((t) => found.add(t)));
    }
    return { steps: [...found], places };
  },
};
