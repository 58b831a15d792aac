// A click on the head of a column sorts the rows of each group: numbers from the largest, text from A; a second click
// turns the order round, and a third brings back the first one.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  for (const group of table.tBodies) [...group.rows].forEach((row, place) => (row.place = place));
  heads.forEach((head, column) => {
    const number = column > 0;
    const orders = number ? ["descending", "ascending"] : ["ascending", "descending"];
    const value = (row) => {
      const cell = row.cells[column];
      return number ? Number.parseFloat(cell.dataset.value ?? "NaN") : cell.textContent;
    };
    const compare = (one, other, sign) => {
      const [a, b] = [value(one), value(other)];
      // What is no number stands last in both orders.
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b) || one.place - other.place;
      return sign * (number ? a - b : a.localeCompare(b)) || one.place - other.place;
    };
    const button = document.createElement("button");
    button.type = "button";
    if (!head.textContent) button.setAttribute("aria-label", "name");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = [...orders, null][(orders.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      if (order) head.setAttribute("aria-sort", order);
      for (const group of table.tBodies) {
        const rows = [...group.rows].filter((row) => row.cells.length === heads.length);
        const sign = order === "ascending" ? 1 : -1;
        rows.sort(order ? (one, other) => compare(one, other, sign) : (one, other) => one.place - other.place);
        group.append(...rows);
      }
    });
  });
}
