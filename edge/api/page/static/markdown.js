// A model's Markdown as elements. Only text nodes carry its words: no HTML of its own is ever read.

import { element } from "./elements.js";

const INLINE = /(`+)([^`]|[^`].*?[^`])\1(?!`)|\*\*(?=\S)(.+?)\*\*|\*(?=\S)([^*]+?)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/;
const ITEM = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const STARTS = /^(?:\s*(?:[-*+]|\d{1,9}[.)])\s|#{1,6}\s|>|\s*```)/;

/** The blocks of a text: paragraphs, headings, lists, quotes and code. */
export function blocks(text) {
  const lines = text.split("\n");
  const made = [];
  let at = 0;
  while (at < lines.length) {
    const fence = lines[at].match(/^\s*(```+)\s*([\w+#.-]*)/);
    if (fence) {
      const begin = at + 1;
      at = begin;
      while (at < lines.length && !lines[at].trim().startsWith(fence[1])) at += 1;
      made.push(code(lines.slice(begin, at).join("\n"), fence[2]));
      at += 1;
    } else if (lines[at].trim() === "") {
      at += 1;
    } else {
      const taken = block(lines, at);
      made.push(taken.made);
      at = taken.next;
    }
  }
  return made;
}

function block(lines, at) {
  const heading = lines[at].match(/^#{1,6}\s+(.*)$/);
  if (heading) return { made: element("h3", {}, ...inline(heading[1])), next: at + 1 };
  if (ITEM.test(lines[at])) return list(lines, at);
  if (lines[at].startsWith(">")) {
    const end = endOf(lines, at, (line) => line.startsWith(">"));
    const words = lines.slice(at, end).map((line) => line.replace(/^>\s?/, ""));
    return { made: element("blockquote", {}, ...inline(words.join(" "))), next: end };
  }
  const end = endOf(lines, at + 1, (line) => line.trim() !== "" && !STARTS.test(line));
  return { made: element("p", {}, ...inline(lines.slice(at, end).join("\n"))), next: end };
}

function list(lines, at) {
  const end = endOf(lines, at, (line) => ITEM.test(line));
  const items = lines.slice(at, end).map((line) => line.match(ITEM));
  const first = items[0][1];
  const entries = items.map((item) => element("li", {}, ...inline(item[2])));
  const made = first ? element("ol", { start: first }, ...entries) : element("ul", {}, ...entries);
  return { made, next: end };
}

function endOf(lines, at, belongs) {
  let end = at;
  while (end < lines.length && belongs(lines[end])) end += 1;
  return end;
}

function code(text, language) {
  const label = language ? `Code in ${language}` : "Code";
  const inner = element("code", {}, text);
  return element("pre", { tabindex: 0, role: "region", "aria-label": label }, inner);
}

/** A line's parts: text, code, bold, italics, and links to http and https. */
export function inline(text) {
  const parts = [];
  let rest = text;
  for (let found = rest.match(INLINE); found; found = rest.match(INLINE)) {
    if (found.index > 0) parts.push(rest.slice(0, found.index));
    const [all, ticks, coded, bold, italic, words, address] = found;
    if (ticks) parts.push(element("code", {}, coded));
    else if (bold) parts.push(element("strong", {}, ...inline(bold)));
    else if (italic) parts.push(element("em", {}, ...inline(italic)));
    else parts.push(link(words, address));
    rest = rest.slice(found.index + all.length);
  }
  if (rest) parts.push(rest);
  return parts;
}

function link(words, address) {
  return element("a", { href: address, rel: "noopener noreferrer", target: "_blank" }, words);
}
