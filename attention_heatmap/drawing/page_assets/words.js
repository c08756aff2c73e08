// What the page says: heading, shares, what is read off the map, notes, and the same for a screen reader.

const MOST_NAMED = 5; // tokens that looked at a place

// Heading, what is read off, notes.
function drawWords(steps, place) {
  const { T, pictures } = data, several = steps.length > 1, count = pictures.length;
  const names = spans(steps), shares = views.map((view) => meanShares(view.plane, steps));
  const shownWord = several ? wordsOf(steps) : data.tokenText(steps[0]);
  say("which", several ? `${steps.length} tokens, ${names.slice(0, 4).join(", ")}${names.length > 4 ? ", \u2026" : ""}` : `token ${steps[0] + 1} of ${T}`);
  byId("chip").firstElementChild.textContent = shownWord;
  const on = shares.map((list) => list.slice(0, count).reduce((sum, share) => sum + share.value, 0));
  const onPicture = on.map((value) => `${(100 * value).toFixed(1)}%`).join(" and ");
  say("looked", `${several ? "mean, " : ""}${onPicture} on the picture${count > 1 ? "s" : ""}`);
  say("plane-title", [...new Set(views.map(({ plane }) => plane.title))].join(" | "));
  timeline.showShares(shares, shares.length > 1 ? data.records.map((record) => record.name) : [""]);
  drawReadout(steps, place);
  drawNotes();
  announce(`${byId("which").textContent}: ${shownWord}, ${byId("looked").textContent}. ${byId("readout").textContent}`);
}

function meanShares(plane, steps) {
  return plane.shares.map(({ name, rgb, weights }) => ({ name, rgb, value: steps.reduce((sum, t) => sum + weights[t], 0) / steps.length }));
}

function wordsOf(steps) {
  const words = [...new Set(steps.map((t) => data.stepPiece[t]))].map((i) => data.pieces[i].text).join("").replace(/\s+/g, " ").trim();
  return words.length > 60 ? `${words.slice(0, 60)}\u2026` : words || "space";
}

function drawReadout(steps, place) {
  const lines = [], several = pictureViews.length > data.pictures.length;
  const amount = (map, picture, cell) => {
    const value = map[picture][cell], sign = value > 0 && isTwo() ? "+" : "";
    return Number.isNaN(value) ? "left out as a sink" : `${sign}${asAmount(value)}`;
  };
  const maps = Object.entries(state.map.maps), named = (side) => (several ? `${nameOf(side)} ` : "");
  const whose = steps.length > 1 ? "these tokens, mean" : `token ${steps[0] + 1}`;
  const name = ({ picture, cell }) => cellName(data.pictures[picture], cell);
  if (state.cursor) {
    const { picture, cell } = state.cursor, weights = maps.map(([side, map]) => named(side) + amount(map, picture, cell));
    lines.push([`${name(state.cursor)}: `, bold(weights.join(", ")), ` (${whose})`]);
  }
  for (const [side, map] of state.cursor ? [] : maps) { // of each its own
    const heights = map.map((cells) => (isTwo() ? cells.map(Math.abs) : cells));
    const best = heights.map((cells) => Math.max(0, cells[hottest(cells)] || 0)), picture = best.indexOf(Math.max(...best));
    const cell = hottest(heights[picture]), what = isTwo() ? "largest difference: " : `${named(side)}highest cell: `;
    if (heights[picture].length) lines.push([what, bold(amount(map, picture, cell)), ` at ${name({ picture, cell })}`]);
  }
  if (place) lines.push(placeLine(place));
  byId("readout").replaceChildren(...lines.map((parts) => make("p", {}, ...parts)));
}

const bold = (textContent) => make("b", { textContent });

function placeLine({ picture, cells }) {
  const ranked = [...looked.keys()].sort((a, b) => looked[b] - looked[a]).slice(0, MOST_NAMED).filter((t) => looked[t] > 0);
  const buttons = ranked.map((t) => {
    const word = data.tokenText(t), high = asAmount(looked[t]), ariaLabel = `token ${t + 1}, ${word}, ${high}`;
    const look = { type: "button", className: "word", ariaLabel, onclick: () => pin([t]) };
    return make("button", look, make("bdi", { textContent: word }), ` ${high}`);
  });
  const what = cells.length > 1 ? `${cells.length} cells` : cellName(data.pictures[picture], cells[0]);
  const parts = [`looked most at ${what}: `, ...buttons];
  if (state.place) {
    parts.push(make("button", { type: "button", className: "link", textContent: "let go", onclick: letGo }));
    parts.at(-1).dataset.unsaved = "";
  }
  return parts;
}

function drawNotes() {
  const { baseline, sinks, smooth } = state.look, { plane, isSink } = views[0];
  const count = isSink.reduce((sum, one) => sum + one, 0), percent = (100 * plane.leftOut).toFixed(1);
  const found = count ? `${count}, with ${percent}% of the attention on the pictures` : "none found";
  const wide = smooth && `smoothed over ${smooth} cell${smooth === 1 ? "" : "s"}`;
  const words = (sunk) => [data.facts.baselines[baseline][0], sinks && sunk, wide].filter(Boolean).join(", ");
  const view = words("sinks left out"), notes = view ? [`Map: ${words(`sinks left out (${found})`)}.`] : [];
  if (isTwo()) notes.push(`Difference: ${data.records[1].name} minus ${data.records[0].name}.`);
  if (state.show === "both") notes.push(`The text shows ${data.records[0].name}.`);
  notes.push(...plane.checks.map(({ text: said, view: of }) => `Check${of === view ? "" : ` of the map ${of || "as the model computed it"}`}: ${said}.`));
  say("notes", notes.join(" "));
}

let saying = 0;
function announce(words) {
  clearTimeout(saying);
  if (!state.timer) saying = setTimeout(() => (byId("live").textContent = words), 400);
}

function toast(words) {
  const box = byId("toast");
  box.textContent = byId("live").textContent = words;
  box.classList.add("seen");
  setTimeout(() => box.classList.remove("seen"), 2500);
}
