"use strict";
// What a page can do beyond showing itself. Only textContent and attributes are set: text stays text. What is shown as
// HTML is a page of the same server, escaped there.

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

// Forms that are sent without loading the page: <form data-smooth>. What stands in main of the answer, a page of our own
// server, takes the place of what stands here. What was said is shown while it is on its way.
document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form[data-smooth]");
  if (!form) return;
  event.preventDefault();
  const told = form.querySelector("[data-told]");
  const body = new URLSearchParams(new FormData(form, event.submitter));
  const bubbles = ["supporter", "seeker"].map((role) => {
    const bubble = document.createElement("div");
    bubble.className = `said ${role}`;
    bubble.textContent = role === "seeker" ? "…" : body.get("said");
    return bubble;
  });
  if (body.has("said")) document.querySelector(".chat").append(...bubbles);
  bubbles[1].scrollIntoView({ block: "nearest" });
  const parts = [...form.elements];
  parts.forEach((part) => (part.disabled = true));
  try {
    const answer = await fetch(form.action, { method: "POST", body });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const main = page.querySelector("main");
    if (!main) throw new Error(page.body.textContent);
    document.querySelector("main").replaceWith(main);
    document.title = page.title;
    const { name, value } = event.submitter ?? {};
    const pressed = name && main.querySelector(`button[name="${CSS.escape(name)}"][value="${CSS.escape(value)}"]`);
    (pressed || main.querySelector("[data-focus]"))?.focus({ preventScroll: true });
    if (pressed) return;
    const heard = [...main.querySelectorAll(".said.seeker, [data-end]")].slice(-1)[0];
    document.querySelector("[data-heard]").textContent = main.querySelector("[role=alert]")?.textContent ?? heard?.textContent ?? "";
    heard?.scrollIntoView({ block: "nearest" });
  } catch (error) {
    bubbles.forEach((bubble) => bubble.remove());
    parts.forEach((part) => (part.disabled = false));
    form.querySelector("textarea")?.focus();
    (told ?? document.querySelector("[data-heard]")).textContent =
      error instanceof TypeError ? "No connection; your words are still here. Is it still served?" : error.message;
  }
});
document.addEventListener("keydown", (event) => {
  if (!event.target.matches("textarea[data-enter]") || event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  event.target.form.requestSubmit();
});

// A page that is loaded again when there is more, unless somebody has unfolded something: <p data-grows="URL">.
for (const told of document.querySelectorAll("[data-grows]")) {
  const source = new EventSource(told.dataset.grows);
  source.addEventListener("grown", () => {
    source.close();
    if (document.querySelector("main details[open]")) told.textContent = "There is more: load this page again.";
    else location.reload();
  });
}

// A run that is followed: <section data-events="URL">. The newest conversations stand first, fifty at most.
for (const section of document.querySelectorAll("[data-events]")) {
  const part = (name) => section.querySelector(`[data-${name}]`);
  const list = part("conversations");
  const count = (number) => number.toLocaleString("en");
  const is = (state, kind = "") => {
    part("state").textContent = state;
    part("state").className = `badge ${kind}`;
  };
  const shows = {
    begin() {
      list.replaceChildren();
      is("being made");
    },
    progress({ done, total, solved, errors, rate, interval, success, cost, failures }) {
      part("done").textContent = `${count(done)} of ${count(total)}`;
      part("whole").max = total;
      part("whole").value = done;
      part("errors").textContent = count(errors);
      part("errors").className = errors ? "failed" : "";
      part("cost").textContent = cost === null ? "unknown" : cost.toFixed(2);
      part("troubles").hidden = !failures.length;
      part("failures").replaceChildren(
        ...failures.map(([role, message, times]) => {
          const line = document.createElement("li");
          line.textContent = `${count(times)} × ${role}: ${message}`;
          return line;
        }),
      );
      part("rate").textContent = success[0];
      const [low, high] = interval ?? [0, 0];
      const told = interval ? `${count(solved)} solved; 95 % interval ${success[1]}` : "no outcome yet";
      part("interval").textContent = told;
      part("bar").setAttribute("aria-label", `Success rate so far: ${told}`);
      const draw = (kind, x, width) => {
        part("bar").querySelector(kind).setAttribute("x", x);
        part("bar").querySelector(kind).setAttribute("width", width);
      };
      draw(".band", 100 * low, 100 * (high - low));
      draw(".dot", 99 * (rate ?? 0), rate === null ? 0 : 1);
    },
    conversation({ number, scenario, trial, kind, outcome, turns, score }) {
      list.querySelector(`[data-number="${number}"]`)?.remove();
      const row = list.insertRow(0);
      row.dataset.number = number;
      const link = document.createElement("a");
      link.href = section.dataset.conversation + number;
      link.textContent = trial ? `${scenario}, trial ${trial + 1}` : scenario;
      const badge = document.createElement("span");
      badge.className = `badge ${kind}`;
      badge.textContent = outcome;
      const signed = score === null ? "–" : (score < 0 ? "" : "+") + score.toFixed(2).replace("-", "−");
      for (const value of [link, badge, turns, signed]) row.insertCell().append(value);
      row.cells[0].className = "name";
      list.rows[50]?.remove();
    },
    end: () => is("complete", "solved"),
    trouble: ({ message }) => is(message, "failed"),
  };
  const follow = () => {
    const source = new EventSource(section.dataset.events);
    for (const [kind, show] of Object.entries(shows)) {
      source.addEventListener(kind, (event) => {
        if (kind === "end" || kind === "trouble") source.close();
        if (kind === "trouble") setTimeout(follow, 5000);
        show(JSON.parse(event.data));
      });
    }
    source.addEventListener("error", () => {
      is("no connection; trying again", "failed");
      if (source.readyState === EventSource.CLOSED) setTimeout(follow, 5000); // else the browser does by itself
    });
  };
  follow();
}

// A long list: rows of JSON that are searched, narrowed, sorted and shown a hundred at a time, as copies of its first row.
for (const list of document.querySelectorAll("[data-list]")) {
  const { names, rows } = JSON.parse(list.querySelector("script").textContent);
  const body = list.querySelector("tbody"), first = body.rows[0];
  if (!first) continue;
  const place = Object.fromEntries(names.map((name, at) => [name, at]));
  const [told, narrow, steps] = ["[data-told]", "[data-narrow]", "[data-step]"].map((what) => [...list.querySelectorAll(what)]);
  const search = list.querySelector("[data-search]");
  const searched = search.dataset.search.split(" ").map((name) => place[name]);
  const signed = new Intl.NumberFormat("en", { signDisplay: "always", minimumFractionDigits: 2, maximumFractionDigits: 2 });
  const text = (value, cell) => (value === null ? "–" : "signed" in cell.dataset ? signed.format(value).replace("-", "−") : value);
  const whole = new Intl.NumberFormat("en");
  let chosen = rows, from = 0;
  const show = () => {
    body.replaceChildren(...chosen.slice(from, from + 100).map((values) => {
      const row = first.cloneNode(true);
      const each = (kind, does) => row.querySelectorAll(`[data-${kind}]`).forEach((cell) => does(cell, values[place[cell.dataset[kind]]]));
      each("text", (cell, value) => (cell.textContent = text(value, cell)));
      each("link", (cell, value) => cell.setAttribute("href", value));
      each("badge", (cell, value) => (cell.className = `badge ${value}`));
      return row;
    }));
    const last = Math.min(from + 100, chosen.length), [a, b, all] = [from + 1, last, chosen.length].map((n) => whole.format(n));
    told.forEach((place) => (place.textContent = last ? `${a} to ${b} of ${all}` : "none"));
    steps.forEach((step) => (step.disabled = step.dataset.step < 0 ? !from : last === chosen.length));
  };
  const choose = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    chosen = rows.filter((values) =>
      narrow.every(({ value, dataset }) => !value || values[place[dataset.narrow]] === value) &&
      words.every((word) => searched.some((at) => values[at].toLowerCase().includes(word))));
    from = 0;
    show();
  };
  search.addEventListener("input", choose);
  narrow.forEach((select) => select.addEventListener("change", choose));
  for (const step of steps) {
    step.addEventListener("click", () => {
      from += 100 * step.dataset.step;
      show();
      list.scrollIntoView();
    });
  }
  for (const button of list.querySelectorAll("[data-order]")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th"), at = place[button.dataset.order];
      const down = heading.getAttribute("aria-sort") === "ascending";
      list.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const { compare } = new Intl.Collator("en", { numeric: true });
      const order = (a, b) => (a === null || b === null ? (b === null) - (a === null) : typeof a === "string" ? compare(a, b) : a - b);
      rows.sort((a, b) => (down ? -1 : 1) * order(a[at], b[at]));
      choose();
    });
  }
  list.querySelectorAll("[data-controls]").forEach((controls) => (controls.hidden = false));
  show();
}
