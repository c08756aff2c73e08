// What can be taken away: the view as a PNG, the map as a table.

const SAVED_SCALE = 2; // pixels of the PNG for one of the page

// Draw what the page shows on a canvas: grounds, canvases and text, where the browser has placed them.
function drawPage() {
  const { width, height } = document.body.getBoundingClientRect();
  const canvas = make("canvas", { width: Math.round(width * SAVED_SCALE), height: Math.round(height * SAVED_SCALE) });
  const context = canvas.getContext("2d");
  context.scale(SAVED_SCALE, SAVED_SCALE);
  drawElement(context, document.body, getComputedStyle(document.documentElement).backgroundColor);
  return canvas;
}

function drawElement(context, element, ground) {
  const style = getComputedStyle(element), box = element.getBoundingClientRect();
  const hidden = style.display === "none" || style.visibility === "hidden" || !box.width;
  if (hidden || element.matches("[data-unsaved], .unseen, .toast, script, [popover]")) return;
  context.save();
  context.globalAlpha *= Number(style.opacity);
  context.fillStyle = ground ?? style.backgroundColor;
  for (const part of element.getClientRects()) {
    context.beginPath();
    context.roundRect(part.left, part.top, part.width, part.height, parseFloat(style.borderRadius) || 0);
    context.fill();
  }
  if (element.matches(".ringed, .thumb, .plane[aria-selected=true]")) {
    context.strokeStyle = style.outlineStyle === "none" ? style.borderTopColor : style.outlineColor;
    context.lineWidth = 2;
    context.strokeRect(box.left + 1, box.top + 1, box.width - 2, box.height - 2);
  }
  if (style.overflow !== "visible") {
    context.beginPath();
    context.rect(box.left, box.top, box.width, box.height);
    context.clip();
  }
  if (element instanceof HTMLCanvasElement && element.width) {
    context.imageSmoothingEnabled = style.imageRendering !== "pixelated";
    context.drawImage(element, box.left, box.top, box.width, box.height);
  }
  for (const node of element.childNodes) {
    if (node.nodeType === Node.TEXT_NODE) drawText(context, node, style);
    if (node.nodeType === Node.ELEMENT_NODE) drawElement(context, node);
  }
  context.restore();
}

// A text, word by word; a word that is broken over lines, letter by letter.
function drawText(context, node, style) {
  const range = document.createRange(), seen = document.body.getBoundingClientRect();
  context.font = `${style.fontStyle} ${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
  context.fillStyle = style.color;
  const write = (start, part) => {
    range.setStart(node, start);
    range.setEnd(node, start + part.length);
    const boxes = range.getClientRects();
    if (boxes.length > 1 && part.length > 1) return [...part].reduce((at, letter) => (write(at, letter), at + letter.length), start);
    const box = boxes[0];
    if (!box || box.bottom < seen.top || box.top > seen.bottom || !part.trim()) return;
    const { fontBoundingBoxAscent: up, fontBoundingBoxDescent: down } = context.measureText(part);
    context.fillText(part, box.left, box.top + (box.height - up - down) / 2 + up);
  };
  for (const match of node.data.matchAll(/\S+/g)) write(match.index, match[0]);
}

function savePicture() {
  drawPage().toBlob((blob) => {
    const name = location.hash.slice(1).replace(/[^\w=.-]+/g, "_") || "view", href = URL.createObjectURL(blob);
    make("a", { href, download: `attention ${name}.png`.slice(0, 120) }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10000);
  });
}

// A cell of a table: quoted, and marked as text where a spreadsheet would run it.
function csvText(value) {
  const formula = /^\s*[=+\-@\uff1d\uff0b\uff0d\uff20]/.test(value) && !/^[+-]?[\d.]+$/.test(value);
  return `"${(formula ? "'" : "") + value.replace(/"/g, '""')}"`;
}

// The map, a line a cell; `maps`: {name of the column: (pictures)(cells) weights}.
function mapTable(maps) {
  const number = (value) => (Number.isNaN(value) ? "" : +value.toPrecision(6));
  const lines = data.pictures.flatMap(({ cellBoxes }, n) => cellBoxes.map((box, c) =>
    [n + 1, ...box.map((side) => +side.toFixed(2)), ...Object.values(maps).map((map) => number(map[n][c]))]));
  return [["image", "left", "top", "right", "bottom", ...Object.keys(maps).map(csvText)], ...lines];
}

// How much each token looked at a place, a line a token.
function placeTable(looked) {
  const lines = Array.from(looked, (value, t) => [t + 1, csvText(data.pieces[data.stepPiece[t]].text), +value.toPrecision(6)]);
  return [["token", "text", "weight"], ...lines];
}

async function copyText(words) {
  try {
    await navigator.clipboard.writeText(words);
    return true;
  } catch { // no leave, as from a file in some browsers, or in a notebook
    const area = make("textarea", { value: words, className: "unseen" });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

// Where a place is pinned, how much each token looked there; else the map.
async function copyTable() {
  const { maps } = state.map, sides = Object.keys(maps), ofPlace = looked && state.place;
  const named = Object.fromEntries(sides.map((side) => [sides.length > 1 || isTwo() ? nameOf(side) : "weight", maps[side]]));
  const table = ofPlace ? placeTable(looked) : mapTable(named), words = table.map((line) => `${line.join()}\n`).join("");
  toast((await copyText(words)) ? `copied ${table.length - 1} ${ofPlace ? "tokens" : "cells"}` : "this browser does not let the page copy");
}
