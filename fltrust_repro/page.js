// Where a table or chart tells what is pointed at; the first of each says how.
const announce = (told) => {
  const first = document.querySelector(`.told.${told.classList[1]}`) === told;
  if (!first) told.textContent = "";
  told.setAttribute("role", "status");
  told.hidden = false;
};

// ---- what a cell says when it is pointed at, tapped or reached by a key ----

for (const table of document.querySelectorAll("table.heat")) {
  const told = table.closest(".scroll").nextElementSibling;
  const details = new Map();
  for (const cell of table.querySelectorAll("td[title]")) {
    details.set(cell, cell.title);
    cell.removeAttribute("title"); // or it would be told twice
  }
  let shown = null;
  walkable(table, table.tBodies[0], (cell) => {
    if (!details.has(cell) || cell === shown) return;
    told.textContent = details.get(cell);
    told.classList.add("on");
    shown?.classList.remove("shown");
    shown = cell;
    shown.classList.add("shown");
  });
  table.closest(".scroll").tabIndex = -1; // the table itself is a stop of the tab key now
  announce(told);
}

// ---- the numbers of a chart where one points, or by the arrow keys ----

const [WIDTH, HEIGHT] = [1600, 1000]; // of a panel's box
const pointsOf = (path) => {
  const points = [];
  for (const part of path?.getAttribute("d").split("M").slice(1) ?? []) { // a band may have gaps
    const numbers = part.match(/-?\d+/g).map(Number);
    for (let k = 0, x = 0, y = 0; k + 1 < numbers.length; k += 2) {
      x += numbers[k];
      y += numbers[k + 1];
      points.push([x, y]);
    }
  }
  return points;
};

const readable = (svg, top, places, told) => {
  const rate = (y) => (top * (1 - y / HEIGHT)).toFixed(2);
  const lines = [...svg.querySelectorAll("g")].map((line) => [
    line.dataset.label, pointsOf(line.querySelector(".mean")), pointsOf(line.querySelector(".band")),
  ]);
  for (const title of svg.querySelectorAll("title")) title.remove(); // or it would be told twice
  const cursor = make("path", "", { class: "cursor" });
  svg.append(cursor);
  const name = svg.closest("figure").querySelector("figcaption").textContent;
  let at = places.length - 1;

  const show = () => {
    const [x, text] = places[at];
    cursor.setAttribute("d", `M${x} 0V${HEIGHT}`);
    const words = [];
    for (const [label, mean, band] of lines) {
      const [here, ends] = [mean, band].map((points) => points.filter(([place]) => place === x));
      if (!here.length) continue;
      const interval = ends.length ? ` (${rate(ends[ends.length - 1][1])} to ${rate(ends[0][1])})` : "";
      words.push(`${label} ${rate(here[0][1])}${interval}`);
    }
    told.textContent = `${name}, ${text}: ${words.join("; ")}`;
    told.classList.add("on");
  };
  svg.tabIndex = 0;
  svg.addEventListener("focus", show);
  svg.addEventListener("blur", () => cursor.setAttribute("d", ""));
  svg.addEventListener("pointerleave", () => cursor.setAttribute("d", ""));
  svg.addEventListener("pointermove", (event) => {
    const inside = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const far = places.map(([x]) => Math.abs(x - inside.x));
    at = far.indexOf(Math.min(...far));
    show();
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    at = Math.min(Math.max(at + step, 0), places.length - 1);
    show();
  });
};

for (const panels of document.querySelectorAll(".panels")) {
  const told = panels.nextElementSibling;
  const places = panels.dataset.places.split(";").map((place) => {
    const space = place.indexOf(" ");
    return [Number(place.slice(0, space)), place.slice(space + 1)];
  });
  for (const svg of panels.querySelectorAll("svg")) readable(svg, Number(panels.dataset.top), places, told);
  announce(told);
}

// ---- a button beside each command ----

const select = (element) => {
  const range = document.createRange();
  range.selectNodeContents(element);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
};

for (const code of document.querySelectorAll("code.command")) {
  const button = make("button", "Copy", { type: "button" });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      select(code); // to be copied by hand where the browser does not let a page do it
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  code.after(" ", button);
}
