"use strict";

const DRAWN = ["svg", "path", "polyline", "text"];
const make = (name, text = "", attributes = {}) => {
  const kind = DRAWN.includes(name) ? "2000/svg" : "1999/xhtml";
  const element = document.createElementNS(`http://www.w3.org/${kind}`, name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

// ---- a table that is one stop of the tab key; arrows lead on from there ----

// `part` is the table, or its body; `show` is called with each cell that is reached or pointed at.
// Returns a function that leads the tab key back to the first cell.
const walkable = (table, part, show) => {
  table.setAttribute("role", "grid");
  const reach = (cell) => cell.querySelector("button") ?? cell;
  const all = () => [...part.rows].filter((row) => !row.hidden);
  for (const row of part.rows)
    for (const cell of row.cells) reach(cell).tabIndex = -1;
  const first = reach(part.rows[0].cells[0]);
  let stop = first;
  const stopAt = (element) => {
    stop.tabIndex = -1;
    stop = element;
    stop.tabIndex = 0;
  };
  stopAt(first);

  part.addEventListener("focusin", ({ target }) => {
    stopAt(target);
    if (target.matches("td")) show(target);
  });
  part.addEventListener("mouseover", ({ target }) => {
    const cell = target.closest("td");
    if (cell) show(cell);
  });
  part.addEventListener("keydown", (event) => {
    const rows = all();
    const at = event.target.closest("th, td");
    let row = rows.indexOf(at.parentNode), column = at.cellIndex;
    const last = at.parentNode.cells.length - 1;
    switch (event.key) {
      case "ArrowUp": row -= 1; break;
      case "ArrowDown": row += 1; break;
      case "ArrowLeft": column -= 1; break;
      case "ArrowRight": column += 1; break;
      case "Home": column = 0; row = event.ctrlKey ? 0 : row; break;
      case "End": column = last; row = event.ctrlKey ? rows.length - 1 : row; break;
      default: return;
    }
    event.preventDefault();
    const next = rows[row]?.cells[column];
    if (next) reach(next).focus();
  });
  return () => stopAt(first);
};

