// Elements of text: nothing that came from elsewhere is ever read as HTML.

export function el(tag, attributes = {}, ...inner) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inner.map((one) => (one instanceof Node ? one : document.createTextNode(String(one)))));
  return made;
}

export function table(place, names, rows, empty) {
  const head = el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name))));
  const cells = rows.length ? rows.map((one) => el("tr", {}, ...one.map((cell) => el("td", {}, cell))))
    : [el("tr", {}, el("td", { colspan: names.length }, empty))];
  place.replaceChildren(head, el("tbody", {}, ...cells));
}
