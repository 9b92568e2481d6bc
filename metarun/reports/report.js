// Sorts the rows of a table by the column whose heading is clicked. Numbers start with the largest.
"use strict";
function value(row, column) {
  const text = row.cells[column].textContent.trim();
  const clock = text.match(/^(?:(\d+):)?(\d+):(\d\d)$/);
  if (clock) return 3600 * (clock[1] || 0) + 60 * clock[2] + +clock[3];
  const number = parseFloat(text.replace(/(\d),(?=\d{3})/g, "$1").replace("\u2212", "-"));
  return /^[-\u2212\d.]/.test(text) && !Number.isNaN(number) ? number : text.toLowerCase();
}
function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");  // empty cells come last in both orders
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b);
}
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  if (table.tBodies[0].rows.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : head.classList.contains("number");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
      rows.sort(([a], [b]) => (a === "" || b === "" || !down ? compare(a, b) : compare(b, a)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}
