// Elements of the document, made without any markup text: a model's words stay words.

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id; every id used here is in index.html. */
export function byId(id) {
  return document.getElementById(id);
}

/** An element with attributes and children. Texts become text nodes. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function shape(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(name, String(value));
  }
  made.append(...children);
  return made;
}

/** Milliseconds for people: two figures where they say something. */
export function milliseconds(seconds) {
  const ms = 1000 * seconds;
  if (ms === 0) return "0 ms";
  if (ms >= 1000) return `${seconds.toFixed(2)} s`;
  return `${ms >= 10 ? ms.toFixed(0) : ms.toFixed(1)} ms`;
}

/** Bytes for people, in powers of 1000. */
export function bytes(count) {
  if (count < 1000) return `${count.toFixed(0)} B`;
  if (count < 1e6) return `${(count / 1e3).toFixed(1)} kB`;
  return `${(count / 1e6).toFixed(2)} MB`;
}
