// The foot of the page: where the attention of the shown tokens lies, and how much of it lay on the pictures over time.

const timeline = {
  build(onStep) {
    const slider = byId("slider"), { facts, T } = data;
    slider.ariaValueMax = T;
    const stepAt = (event) => {
      const box = slider.getBoundingClientRect();
      return Math.min(Math.max(Math.floor(((event.clientX - box.left) / box.width) * T), 0), T - 1);
    };
    slider.addEventListener("pointerdown", (event) => {
      slider.setPointerCapture(event.pointerId);
      onStep(stepAt(event));
    });
    slider.addEventListener("pointermove", (event) => event.buttons && onStep(stepAt(event)));
    for (const phase of facts.phases) {
      const span = make("span", { textContent: phase.name });
      span.style.left = `${(100 * phase.first) / T}%`;
      span.style.width = `${(100 * (phase.last - phase.first)) / T}%`;
      span.style.backgroundColor = css(phase.rgb);
      byId("phases").append(span);
    }
  },

  resize() {
    const { clientWidth, clientHeight } = byId("slider"), scale = window.devicePixelRatio || 1;
    [this.width, this.height] = [clientWidth, clientHeight].map((side) => Math.max(Math.round(side * scale), 1));
    this.gap = this.width >= 5 * data.T ? scale : 0;
    for (const id of ["curve", "place-curve"]) Object.assign(byId(id), { width: this.width, height: this.height });
    [this.plane, this.looked] = [null, null];
  },

  // The bar of a step, a part of the whole height, on what is drawn of it so far.
  drawBar(context, step, part, base = []) {
    const [left, right] = [step, step + 1].map((t) => Math.round((t * this.width) / data.T)), high = part * this.height;
    base[step] = (base[step] ?? 0) + high;
    context.fillRect(left, this.height - base[step], Math.max(right - left - this.gap, 1), high);
  },

  // The shares of the pictures, one on the other; over them, where a place is asked for, its own curve.
  draw(plane, looked) {
    if (plane !== this.plane) this.drawShares(plane);
    if (looked !== this.looked) this.drawPlace(looked);
    const images = data.pictures.length > 1 ? "s" : "";
    say("line-title", looked ? `in front: attention on the chosen place at each token, up to ${asAmount(this.most)}`
      : `attention on the picture${images} at each token, up to ${amount(this.top, false)}`);
  },

  drawShares(plane) {
    this.plane = plane;
    const context = byId("curve").getContext("2d"), shares = plane.shares.slice(0, data.pictures.length);
    const totals = shares.map(({ weights }) => weights).reduce((a, b) => a.map((value, t) => value + b[t]));
    this.top = Math.max(...totals, TINY);
    context.clearRect(0, 0, this.width, this.height);
    const base = new Float32Array(data.T);
    for (const { rgb, weights } of shares) {
      context.fillStyle = css(rgb);
      weights.forEach((weight, t) => this.drawBar(context, t, weight / this.top, base));
    }
  },

  drawPlace(looked) {
    this.looked = looked;
    byId("slider").classList.toggle("asked", Boolean(looked));
    const context = byId("place-curve").getContext("2d"), { fixed, dark } = data.facts.colours;
    context.clearRect(0, 0, this.width, this.height);
    if (!looked) return;
    this.most = Math.max(...looked.map(Math.abs), TINY);
    context.fillStyle = css(isDark() ? dark.ink : fixed.ink);
    looked.forEach((value, t) => value && this.drawBar(context, t, Math.max(Math.abs(value) / this.most, 1 / this.height)));
  },

  move(steps) {
    const { T } = data, first = Math.min(...steps), last = Math.max(...steps), thumb = byId("thumb");
    thumb.style.left = `${(100 * first) / T}%`;
    thumb.style.width = `max(4px, ${(100 * (last + 1 - first)) / T}%)`;
    const said = `token ${last + 1} of ${T}, ${data.tokenText(last)}`;
    Object.assign(byId("slider"), { ariaValueNow: last + 1, ariaValueText: said });
  },

  // The bar of shares and its key: [{name, rgb, value}], one list a record.
  showShares(lists, names) {
    const box = byId("shares");
    if (box.childElementCount !== lists.length || box.dataset.parts !== String(lists[0].length)) {
      box.dataset.parts = lists[0].length;
      box.replaceChildren(...lists.map((list, n) => this.shareRow(list, names[n])));
    }
    lists.forEach((list, n) => {
      const [bar, key] = box.children[n].querySelectorAll(".stackbar, .key");
      list.forEach(({ value }, i) => {
        bar.children[i].style.width = `${100 * value}%`;
        key.children[i].lastChild.textContent = `${(100 * value).toFixed(1)}%`;
      });
    });
  },

  shareRow(list, name) {
    const bar = make("div", { className: "stackbar", ariaHidden: "true" }), key = make("div", { className: "key" });
    for (const share of list) {
      const part = make("span"), swatch = make("i", { className: "swatch" });
      part.style.backgroundColor = swatch.style.backgroundColor = css(share.rgb);
      bar.append(part);
      key.append(make("span", {}, swatch, `${share.name} `, make("b")));
    }
    return make("div", { className: "sharerow" }, ...(name ? [make("b", { textContent: name })] : []), bar, key);
  },
};
