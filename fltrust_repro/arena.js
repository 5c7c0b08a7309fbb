// ---- a click on the head of a column sorts by it, a second one backwards ----

// What a row is sorted by in a column: words, or a number; null where there is none.
const valueOf = (row, column, words) => {
  const cell = row.cells[column];
  const text = cell.dataset.by ?? cell.textContent.trim();
  if (words) return text === "" ? null : text;
  const number = parseFloat(text);
  return Number.isNaN(number) ? null : number;
};

const compare = (one, other) =>
  typeof one === "string" ? one.localeCompare(other) : one - other;

const sortBy = (table, head, rowsAtFirst) => {
  const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const words = "words" in head.dataset;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
  for (const [body, rows] of rowsAtFirst) {
    const keyed = rows.map((row) => [valueOf(row, head.cellIndex, words), row]);
    keyed.sort(([one], [other]) => {
      // What is missing comes last either way.
      if (one === null || other === null) return (one === null) - (other === null);
      return direction * compare(one, other);
    });
    body.append(...keyed.map(([, row]) => row));
  }
};

for (const table of document.querySelectorAll("table.sortable")) {
  const rowsAtFirst = [...table.tBodies].map((body) => [
    body,
    [...body.rows].filter((row) => !row.matches(".group")),
  ]);
  for (const head of table.tHead.querySelectorAll("th")) {
    const button = make("button", "", { type: "button" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sortBy(table, head, rowsAtFirst));
  }
}

// ---- one league alone ----

const chosen = document.querySelector("#league");
chosen.closest("[hidden]").hidden = false;
const showLeague = () => {
  document.body.classList.toggle("by-league", chosen.value !== "");
  for (const row of document.querySelectorAll("tr[data-league]"))
    row.hidden = chosen.value !== "" && row.dataset.league !== chosen.value;
  for (const title of document.querySelectorAll("tr.group")) title.hidden = chosen.value !== "";
  for (const table of document.querySelectorAll("table.ranking")) {
    const shown = table.querySelectorAll("tr[data-league]:not([hidden])").length;
    table.closest("section").querySelector(".shown-rules").textContent = shown;
  }
};
chosen.addEventListener("change", showLeague);
showLeague(); // a browser that goes back keeps what was chosen

// ---- a cell's details: by pointing, a tap, or the arrow keys ----

const percent = (share) => `${Math.round(100 * share)}%`;
const plus = (half) => (half === null ? "" : ` ±${half.toFixed(3)}`);

const cellOf = (data, row, column) => {
  const found = data.rows[row][column];
  if (!found) return null;
  const [mean, half, reported, undone, noEffect, sameAsMean, diverged, count, seeds, at, errors] = found;
  const points = errors.map((error, k) => [data.iterations[at][k], error / 1000]);
  return { mean, half, reported, undone, noEffect, sameAsMean, diverged, count, seeds, points };
};

const signed = (number) => `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(3)}`;

// Each a line of text, and how its curve is drawn where it has one.
const facts = (cell, clean) => {
  const lines = [[`${cell.mean.toFixed(3)}${plus(cell.half)}, the mean of ${cell.count} ` +
    `seed${cell.count === 1 ? "" : "s"}: ${cell.seeds}`, "own"]];
  if (clean && cell !== clean) {
    lines.push([`${clean.mean.toFixed(3)}${plus(clean.half)} without attack, ` +
      `${signed(cell.mean - clean.mean)} under it`, "clean"]);
    if (cell.undone === null) lines.push(["What it undoes of a step is not known"]);
    else lines.push([`It undoes ${percent(cell.undone)} of a step on average` +
      (cell.undone > 1 ? ": the model goes back" : "")]);
    if (cell.noEffect !== null) lines.push([`It has no effect in ${percent(cell.noEffect)} of the steps`]);
  }
  if (cell.sameAsMean !== null) lines.push([`The rule gives the mean in ${percent(cell.sameAsMean)} of the steps`]);
  if (cell.reported !== null) lines.push([`A paper prints ${cell.reported.toFixed(2)}`]);
  if (cell.diverged) lines.push(["A trial diverged"]);
  return lines.map(([text, curve]) => {
    const line = make("li");
    if (curve) {
      line.append(make("svg", "", { viewBox: "0 0 32 8", "aria-hidden": "true" }));
      line.firstChild.append(make("polyline", "", { points: "0,4 32,4", class: curve }));
    }
    line.append(text);
    return line;
  });
};

// Error rate upwards, in steps of equal ratio as the colours are; iterations to the right.
const WIDTH = 300, HEIGHT = 96;
const picture = (title, cell, clean, least) => {
  const curves = [...new Set([clean, cell])].filter((one) => one?.points.length);
  if (!curves.length) return make("p", "No curve is known.", { class: "quiet" });
  const last = Math.max(...curves.map((one) => one.points.at(-1)[0]));
  const y = (error) => HEIGHT * Math.log(Math.max(error, least)) / Math.log(least);
  const ends = curves.map((one) => one.points.at(-1)[1].toFixed(3));
  const svg = make("svg", "", { viewBox: `-28 -8 ${WIDTH + 40} ${HEIGHT + 26}`, role: "img",
    "aria-label": `${title}: mean error rate over the iterations, at the end ${ends.pop()}` +
      (ends.length ? `, without attack ${ends[0]}` : "") });
  for (const tick of [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1].filter((one) => one >= least)) {
    svg.append(make("path", "", { class: "rule", d: `M0 ${y(tick)}H${WIDTH}` }));
    svg.append(make("text", tick, { x: -5, y: y(tick) + 3, "text-anchor": "end" }));
  }
  for (const part of [0, 0.5, 1])
    svg.append(make("text", Math.round(last * part), { x: WIDTH * part, y: HEIGHT + 13, "text-anchor": "middle" }));
  for (const one of curves) {
    const points = one.points.map(([at, error]) => `${(WIDTH * at / last).toFixed(1)},${y(error).toFixed(1)}`);
    svg.append(make("polyline", "", { points: points.join(" "), class: one === cell ? "own" : "clean" }));
  }
  return svg;
};

for (const section of document.querySelectorAll("main > section")) {
  const table = section.querySelector("table.grid");
  const detail = section.querySelector(".detail");
  const data = JSON.parse(section.querySelector("script").textContent);
  let shown = null;

  const names = [...table.tHead.rows[0].cells].map((head) => head.textContent);
  const places = new Map([...table.querySelectorAll("tbody tr")].map((row, k) => [row, k]));
  const BEFORE = 2; // a rule's name and its score come before its cells

  const show = (target) => {
    const cell = target.matches(".score") ? target.parentNode.querySelector(".worst") : target;
    if (!cell || cell === shown) return;
    const row = places.get(cell.parentNode), column = cell.cellIndex - BEFORE;
    const found = cellOf(data, row, column);
    if (!found) return;
    const clean = column === data.clean ? found : cellOf(data, row, data.clean);
    const title = `${cell.parentNode.cells[0].textContent}, ${names[cell.cellIndex]}`;
    const words = make("div");
    words.append(make("strong", title), make("ul"));
    words.lastChild.append(...facts(found, clean));
    detail.replaceChildren(words, picture(title, found, clean, data.least));
    detail.hidden = false;
    shown?.classList.remove("shown");
    shown = cell;
    shown.classList.add("shown");
  };
  const best = table.querySelector(".worst");
  if (best) show(best);

  const home = walkable(table, table, show);
  chosen.addEventListener("change", home); // the cell last reached may be hidden now
}
