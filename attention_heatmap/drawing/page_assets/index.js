// The index: rows found by a word or by right and wrong, sorted by a column.

const body = document.querySelector("tbody"), rows = [...body.rows], heads = [...document.querySelectorAll("thead th")];
const find = document.getElementById("find"), show = document.getElementById("show"), count = document.getElementById("count");
const VERDICT = 5; // the column of right and wrong

function filter() {
  const word = find.value.trim().toLowerCase();
  let shown = 0;
  for (const row of rows) {
    row.hidden = !row.textContent.toLowerCase().includes(word) || Boolean(show.value && row.cells[VERDICT].textContent !== show.value);
    shown += !row.hidden;
  }
  count.textContent = `${shown} of ${rows.length} samples`;
}

const number = (text) => (/^-?[\d.]+%?$/.test(text) ? parseFloat(text) : NaN);

function sort(column) {
  const down = heads[column].getAttribute("aria-sort") === "ascending", sign = down ? -1 : 1;
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = (row) => row.cells[column].textContent;
  rows.sort((a, b) => {
    const [x, y] = [number(key(a)), number(key(b))];
    return sign * (Number.isNaN(x - y) ? key(a).localeCompare(key(b)) : x - y);
  });
  body.append(...rows);
}

heads.forEach((head, column) => {
  if (head.firstElementChild) return; // the picture
  const button = document.createElement("button");
  Object.assign(button, { type: "button", textContent: head.textContent, onclick: () => sort(column) });
  head.replaceChildren(button);
});
find.addEventListener("input", filter);
show.addEventListener("input", filter);
