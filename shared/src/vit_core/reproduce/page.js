// The page works without this script, which adds sorting, filtering, enlarging pictures and choosing a theme.
"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// ---- theme: the system's, unless the user chooses the other one
const system = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const nameTheme = () => { themeButton.textContent = isDark() ? "Light theme" : "Dark theme"; };
themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  const wanted = isDark() ? "light" : "dark";
  if ((wanted === "dark") === system.matches) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = wanted;
  nameTheme();
});
system.addEventListener("change", nameTheme);
nameTheme();

// ---- sorting: ascending, descending, original order
// A cell sorts by the number in its data-value, or by its text; a dash means no value.
const sortKey = (row, column) => {
  const cell = row.cells[column];
  if (cell?.dataset.value) return Number(cell.dataset.value);
  const text = cell?.textContent.trim() ?? "";
  return text === "" || text === "—" ? null : text;
};
const compare = (a, b) => {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
};

for (const table of all("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      const rows = original.map((row) => [sortKey(row, column), row]);
      const sign = order === "descending" ? -1 : 1;
      // Cells without a value are last in both directions.
      if (order !== "none") rows.sort(([a], [b]) => (a === null) - (b === null) || sign * compare(a, b));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// ---- claims: filter by verdict, show or hide how they are checked
for (const claims of all(".claims")) {
  claims.querySelector(".controls").hidden = false;
  const buttons = all("[data-show]", claims);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      const wanted = button.dataset.show;
      for (const row of all("tr[data-verdict]", claims)) row.hidden = wanted !== "" && row.dataset.verdict !== wanted;
    });
  }
  const unfold = claims.querySelector(".unfold");
  unfold.addEventListener("click", () => {
    const open = unfold.getAttribute("aria-pressed") !== "true";
    unfold.setAttribute("aria-pressed", String(open));
    for (const details of all("details", claims)) details.open = open;
  });
}

// ---- enlarged pictures; Escape, Enter or a click closes them
const dialog = document.getElementById("enlarged");
for (const button of all(".enlarge")) {
  button.addEventListener("click", () => {
    dialog.firstElementChild.replaceChildren(button.querySelector("img").cloneNode());
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
