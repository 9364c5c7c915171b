"use strict";
// What a page can do beyond showing itself. Only textContent and attributes are ever set: text stays text.

// Tables whose headings hold buttons can be sorted: by the cells' data-value, or their text.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, place) => {
    heading.querySelector("button")?.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") !== "descending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent.trim();
      const order = (a, b) => (isNaN(a) || isNaN(b) || a === "" || b === "" ? a.localeCompare(b) : a - b);
      const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? -1 : 1) * order(value(a), value(b)));
      table.tBodies[0].append(...rows);
    });
  });
}

// A choice that hides what has another data-NAME, be it a row, an item or a section: <select data-filters="NAME">.
const choices = [...document.querySelectorAll("select[data-filters]")];
const filter = () => {
  for (const row of document.querySelectorAll("[data-row]")) {
    row.hidden = choices.some(
      ({ value, dataset: { filters } }) => value && filters in row.dataset && row.dataset[filters] !== value,
    );
  }
};
choices.forEach((choice) => choice.addEventListener("change", filter));

// Keys: whatever names one with data-key is followed (n: next, p: previous, f: next failure).
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const shown = document.querySelector("article:target") ?? document;
  shown.querySelector(`a[data-key="${CSS.escape(event.key)}"]`)?.click();
});
