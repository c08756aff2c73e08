// The address names the view: what is chosen stands behind its #, and a link leads back to it.

let written = null, writing = 0;
function writeHash() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    const { look, place, plane, show, pinned } = state, { planes } = data.facts.records[0];
    const parts = new URLSearchParams({ tokens: spans(pinned).join("_").replaceAll("\u2013", "-") });
    if (planes.length > 1) parts.set("plane", planes[plane].key);
    if (show !== "first") parts.set("show", show);
    if (place) parts.set("place", placeName(place));
    for (const [name, value] of Object.entries(look)) if (value !== firstLook[name]) parts.set(name, value);
    written = `#${parts}`;
    try {
      if (written !== location.hash) history.replaceState(null, "", written);
    } catch { /* a page inside a notebook has no address of its own */ }
  }, 150);
}

function placeName({ picture, cells }) {
  const middles = cells.map((cell) => middle(data.pictures[picture], cell)), [xs, ys] = [0, 1].map((n) => middles.map((m) => m[n]));
  const ends = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  return [picture + 1, ...ends.map((end) => Math.round(end * 1e4))].join("_");
}

function readHash() {
  const parts = new URLSearchParams(location.hash.slice(1)), { T, facts, records, pictures } = data;
  const steps = (parts.get("tokens") ?? "").split("_").flatMap((span) => {
    const [a, b = a] = span.split("-").map((n) => Number(n) - 1);
    return a >= 0 && b < T && a <= b ? range(a, b) : [];
  });
  state.pinned = steps.length ? steps : [facts.start];
  const plane = facts.records[0].planes.findIndex(({ key }) => key === parts.get("plane"));
  state.plane = plane >= 0 ? plane : facts.plane;
  state.show = records.length > 1 && SIDES[parts.get("show")] ? parts.get("show") : "first";
  for (const [name, first] of Object.entries(firstLook)) {
    const given = parts.get(name), { options } = byId(name), known = !options || [...options].some(({ value }) => value === given);
    const value = { boolean: given === "true", number: Number(given) }[typeof first] ?? given;
    state.look[name] = given === null || !known || Number.isNaN(value) ? first : value;
  }
  const [number, ...ends] = (parts.get("place") ?? "").split("_").map(Number), picture = pictures[number - 1];
  const [x0, y0, x1, y1] = ends.map((end) => end / 1e4), a = 1e-5;
  const cells = picture && ends.length === 4 ? cellsIn(picture, [x0 - a, y0 - a], [x1 + a, y1 + a]) : [];
  state.place = cells.length ? { picture: number - 1, cells } : null;
}
