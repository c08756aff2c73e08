// The foot of the page: where the attention of the shown tokens lies, and how much of it lay on the pictures over time.

const timeline = {
  build(onStep) {
    const slider = byId("slider"), { facts, T } = data;
    slider.setAttribute("aria-valuemax", T);
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
      const span = document.createElement("span");
      span.textContent = phase.name;
      span.style.left = `${(100 * phase.first) / T}%`;
      span.style.width = `${(100 * (phase.last - phase.first)) / T}%`;
      span.style.backgroundColor = css(phase.rgb);
      byId("phases").append(span);
    }
  },

  // The shares of the pictures as bars, one on the other; over them, where a place is asked for, its own curve.
  draw(plane, looked, dark) {
    const canvas = byId("curve"), scale = window.devicePixelRatio || 1, { T } = data, images = data.pictures.length;
    const width = Math.max(Math.round(canvas.clientWidth * scale), 1), height = Math.max(Math.round(canvas.clientHeight * scale), 1);
    Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d"), shares = plane.shares.slice(0, images);
    const totals = new Float32Array(T);
    shares.forEach(({ weights }) => weights.forEach((w, t) => (totals[t] += w)));
    const top = Math.max(...totals, TINY), gap = width >= 5 * T ? scale : 0;
    context.globalAlpha = looked ? 0.35 : 1;
    for (let t = 0; t < T; t++) {
      const [left, right] = [Math.round((t * width) / T), Math.max(Math.round(((t + 1) * width) / T) - gap, 1)];
      let base = height;
      for (const { rgb, weights } of shares) {
        const high = (weights[t] / top) * height;
        context.fillStyle = css(rgb);
        context.fillRect(left, base - high, Math.max(right - left, 1), high);
        base -= high;
      }
    }
    context.globalAlpha = 1;
    const percent = (value) => amount(value, false);
    let title = `attention on the picture${images > 1 ? "s" : ""} at each token, up to ${percent(top)}`;
    if (looked) {
      const most = Math.max(...looked, TINY);
      context.fillStyle = dark ? "#e8eaee" : css(data.facts.colours.fixed.ink);
      for (let t = 0; t < T; t++) {
        const [left, right] = [Math.floor((t * width) / T), Math.ceil(((t + 1) * width) / T)];
        const high = Math.max((looked[t] / most) * height, looked[t] > 0 ? scale : 0);
        context.fillRect(left, height - high, Math.max(right - left - gap, 1), high);
      }
      title = `in front: attention on the chosen place at each token, up to ${asAmount(most)}`;
    }
    byId("line-title").textContent = title;
  },

  move(steps, pinned) {
    const { T } = data, first = Math.min(...steps), last = Math.max(...steps), thumb = byId("thumb");
    thumb.style.left = `${(100 * first) / T}%`;
    thumb.style.width = `max(4px, ${(100 * (last + 1 - first)) / T}%)`;
    byId("slider").setAttribute("aria-valuenow", last + 1);
    byId("slider").setAttribute("aria-valuetext", `token ${last + 1} of ${T}, ${data.tokenText(last)}`);
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
    const row = document.createElement("div"), bar = document.createElement("div"), key = document.createElement("div");
    [row.className, bar.className, key.className] = ["sharerow", "stackbar", "key"];
    bar.setAttribute("aria-hidden", "true");
    if (name) row.append(Object.assign(document.createElement("b"), { textContent: name }));
    for (const share of list) {
      const part = document.createElement("span"), entry = document.createElement("span");
      part.style.backgroundColor = css(share.rgb);
      const swatch = Object.assign(document.createElement("i"), { className: "swatch" });
      swatch.style.backgroundColor = css(share.rgb);
      entry.append(swatch, `${share.name} `, Object.assign(document.createElement("b"), {}));
      bar.append(part);
      key.append(entry);
    }
    row.append(bar, key);
    return row;
  },
};
