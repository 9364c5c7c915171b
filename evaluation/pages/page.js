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
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=radio]), select, textarea")) return;
  const shown = document.querySelector("article:target") ?? document;
  shown.querySelector(`a[data-key="${CSS.escape(event.key)}"]`)?.click();
});

// Questions that keys answer: <form data-keys>. What an answer has as data-pick answers the question at hand (the one
// with the focus, else the first without an answer), and the focus goes on to the next, at last to the button.
for (const form of document.querySelectorAll("form[data-keys]")) {
  const questions = [...form.querySelectorAll("fieldset")];
  const goal = (question) => question.querySelector("input:checked") ?? question.querySelector("input");
  let unsaved = false;
  form.addEventListener("change", () => (unsaved = true));
  document.addEventListener("submit", () => (unsaved = false));
  addEventListener("beforeunload", (event) => unsaved && event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=radio])")) return;
    const open = questions.find((question) => !question.querySelector("input:checked"));
    const question = event.target.closest("fieldset") ?? open ?? questions[0];
    const answer = question?.querySelector(`[data-pick="${CSS.escape(event.key)}"]`);
    if (!answer) return;
    answer.click();
    const following = questions[questions.indexOf(question) + 1];
    (following ? goal(following) : form.querySelector("button")).focus();
  });
}

// A run that is followed: <section data-events="URL">. The newest conversations stand first, fifty at most.
for (const section of document.querySelectorAll("[data-events]")) {
  const source = new EventSource(section.dataset.events);
  const told = section.querySelector("[data-progress]");
  const list = section.querySelector("[data-conversations]");
  const on = (kind, does) => source.addEventListener(kind, (event) => does(JSON.parse(event.data)));
  on("begin", () => list.replaceChildren());
  on("progress", ({ done, total, solved, errors, cost }) => {
    const price = cost === null ? "cost unknown" : `${cost.toFixed(2)} USD`;
    told.textContent = `${done} of ${total} conversations, ${solved} solved, ${errors} errors, ${price}`;
  });
  on("conversation", ({ scenario, trial, outcome, turns, score, solved }) => {
    const row = list.insertRow(0);
    for (const value of [scenario, trial + 1, outcome.replaceAll("_", " "), turns, score.toFixed(2).replace("-", "−")]) {
      row.insertCell().textContent = value;
    }
    row.cells[0].className = "name";
    if (solved) row.cells[2].className = "solved";
    list.rows[50]?.remove();
  });
  on("end", () => {
    source.close();
    told.textContent += ". The run is complete.";
  });
  on("trouble", ({ message }) => {
    source.close();
    told.textContent = message;
  });
}
