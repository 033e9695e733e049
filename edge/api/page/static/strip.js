// The live strip beside an answer: its rate, where a token's time goes, bytes, drafts and KV.

import { bytes, element, milliseconds, shape } from "./elements.js";

const WIDTH = 300;

/** The strip's elements for these figures. */
export function strip(figures) {
  if (figures.timesS.length === 0) {
    return [element("p", { class: "hint" }, "The figures appear with the first token.")];
  }
  return [rate(figures), parts(figures), rest(figures), ...kv(figures)];
}

function rate(figures) {
  const shown = figures.tokensPerS ? figures.tokensPerS.toFixed(1) : "–";
  return element("p", { class: "headline" }, shown, " ", element("small", {}, "tokens a second"));
}

function parts(figures) {
  const all = figures.partsPerToken();
  const totalS = all.reduce((sum, part) => sum + part.s, 0);
  const caption = element("caption", {}, "Where a token's time goes", shares(all, totalS));
  const rows = all.map((part) =>
    row([element("span", { class: `swatch ${part.name}` }), part.label], milliseconds(part.s)),
  );
  return element("table", { class: "figures" }, caption, element("tbody", {}, ...rows));
}

function shares(all, totalS) {
  const drawn = shape("svg", {
    class: "shares", viewBox: `0 0 ${WIDTH} 10`, preserveAspectRatio: "none", "aria-hidden": "true",
  });
  let x = 0;
  for (const part of totalS > 0 ? all : []) {
    const width = (WIDTH * part.s) / totalS;
    drawn.append(shape("rect", { class: part.name, x, y: 0, width, height: 10 }));
    x += width;
  }
  return drawn;
}

function rest(figures) {
  const { sent, accepted } = figures.drafts;
  const rows = [
    row(["First token after"], milliseconds(figures.ttftS)),
    row(["Round trip, median"], milliseconds(figures.roundTripS)),
    row(["Tokens"], String(figures.timesS.length)),
    row(["Compression level"], figures.level),
    row(["Drafts accepted"], sent ? `${accepted} of ${sent}` : "none sent"),
    row(["Up"], bytes(figures.bytesUp)),
    row(["Down"], bytes(figures.bytesDown)),
  ];
  const caption = element("caption", {}, "The answer as a whole");
  return element("table", { class: "figures" }, caption, element("tbody", {}, ...rows));
}

function kv(figures) {
  const words = `${figures.kvTokens} of ${figures.maxTokens} tokens`;
  const meter = element("meter", {
    min: 0, max: figures.maxTokens, value: figures.kvTokens, "aria-label": "KV cache used",
  });
  const caption = element("caption", {}, "Memory of the conversation");
  const body = element("tbody", {}, row(["KV cache used"], words));
  return [element("table", { class: "figures" }, caption, body), meter];
}

function row(heading, value) {
  return element("tr", {}, element("th", { scope: "row" }, ...heading), element("td", {}, value));
}

/** Which side runs what, from the status. */
export function sides(status) {
  const { split, num_layers: count, front_bits: front, back_bits: back } = status;
  const first = split === 0 ? "the embedding" : `the embedding and layers 1 to ${split}`;
  const here = status.edge_is_whole
    ? `All ${count} layers with ${front}-bit weights, and the choice of tokens. No server is used.`
    : `Tokenizer, ${first} of ${count} with ${front}-bit weights, and the encoder.`;
  const there = `Layers ${split + 1} to ${count} with ${back}-bit weights, the head, and the choice of tokens.`;
  return [
    element("dt", {}, "This device"), element("dd", {}, here),
    ...(status.edge_is_whole ? [] : [element("dt", {}, "Server"), element("dd", {}, there)]),
  ];
}

