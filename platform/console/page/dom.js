// Makes and changes elements; whoever sets what is there already touches nothing.

export const byId = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function setText(element, text) {
  if (element.firstChild?.nodeValue !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// A table whose rows are made once for each key, and whose cells change only where they differ.
export class Table {
  constructor(place, columns) {
    this.columns = columns;
    this.rows = new Map();
    const heads = columns.map((column) =>
      make("th", { scope: "col", class: column.class, text: column.title }),
    );
    this.body = make("tbody");
    place.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...heads)), this.body));
  }

  show(items, keyOf) {
    const before = this.rows;
    this.rows = new Map();
    let at = this.body.firstChild;
    for (const item of items) {
      const key = keyOf(item);
      const row = before.get(key) ?? this.makeRow();
      before.delete(key);
      this.rows.set(key, row);
      this.columns.forEach((column, i) => this.fill(row.cells[i], column.show(item)));
      if (row === at) at = at.nextSibling;
      else this.body.insertBefore(row, at);
    }
    for (const row of before.values()) row.remove();
  }

  makeRow() {
    const cells = this.columns.map((column) => make("td", { class: column.class }));
    return make("tr", {}, ...cells);
  }

  fill(cell, shown) {
    if (shown instanceof Node) {
      if (cell.firstChild !== shown) cell.replaceChildren(shown);
    } else {
      setText(cell, String(shown));
    }
  }
}
