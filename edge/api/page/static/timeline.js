// The last answer on a time axis: one lane for the device, one for the link, one for the server.

import { element, milliseconds, shape } from "./elements.js";
import { PARTS } from "./figures.js";

const MOST_STEPS = 120;
const WIDTH = 320;
const LEFT = 44;
const LANES = [["device", 6], ["link", 26], ["server", 46]];
const LANE_HEIGHT = 14;
const AXIS = 68;

/** The picture, and the same as a table. */
export function timeline(figures) {
  const arrivals = figures.arrivals(MOST_STEPS);
  if (arrivals.length === 0) return [element("p", { class: "hint" }, "No token has come yet.")];
  return [picture(figures, arrivals), legend(arrivals), table(arrivals)];
}

function picture(figures, arrivals) {
  const [first, last] = [arrivals[0], arrivals.at(-1)];
  const beginS = first.step.phase === "prefill" ? 0 : first.endS - spanS(first.step);
  const scale = (WIDTH - LEFT - 6) / Math.max(last.endS - beginS, 1e-6);
  const xOf = (atS) => LEFT + scale * (atS - beginS);
  const count = figures.timesS.length;
  const words = `${count} tokens in ${milliseconds(last.endS)}, the first after ${milliseconds(figures.ttftS)}`;
  const drawn = shape("svg", {
    class: "timeline", viewBox: `0 0 ${WIDTH} 92`, role: "img", "aria-label": `Timeline: ${words}`,
  });
  for (const [name, y] of LANES) drawn.append(shape("text", { x: 0, y: y + 11 }, name));
  for (const { step, endS } of arrivals) {
    drawn.append(...(step.phase === "prefill" ? prompt(xOf, endS) : bars(xOf, step, endS)));
    drawn.append(shape("line", { class: "token", x1: xOf(endS), x2: xOf(endS), y1: AXIS - 4, y2: AXIS }));
  }
  drawn.append(shape("line", { x1: LEFT, x2: WIDTH - 6, y1: AXIS, y2: AXIS }));
  drawn.append(...axis(xOf, beginS, last.endS));
  return drawn;
}

function spanS(step) {
  return step.front_s + step.encode_s + step.round_trip_s;
}

function prompt(xOf, endS) {
  return LANES.map(([, y]) => bar("prompt", xOf(0), xOf(endS), y));
}

/** The parts of one step. The link's time is drawn as half each way: only its sum is known. */
function bars(xOf, step, endS) {
  const cloudS = step.cloud_codec_s + step.cloud_queue_s + step.cloud_compute_s + step.cloud_sample_s;
  const sentS = endS - step.round_trip_s;
  const encodeS = sentS - step.encode_s;
  const frontS = encodeS - step.front_s;
  const comeS = sentS + Math.max(0, step.round_trip_s - cloudS) / 2;
  const queuedS = comeS + step.cloud_queue_s;
  const [device, link, server] = LANES.map(([, y]) => y);
  const drawn = [bar("front", xOf(frontS), xOf(encodeS), device), bar("encode", xOf(encodeS), xOf(sentS), device)];
  if (step.round_trip_s > 0) {
    drawn.push(
      bar("link", xOf(sentS), xOf(comeS), link), bar("link", xOf(comeS + cloudS), xOf(endS), link),
      bar("queue", xOf(comeS), xOf(queuedS), server), bar("compute", xOf(queuedS), xOf(comeS + cloudS), server),
    );
  }
  return drawn;
}

function bar(name, x1, x2, y) {
  const x = Math.max(x1, LEFT);
  return shape("rect", { class: name, x, y, width: Math.max(x2 - x, 0), height: LANE_HEIGHT });
}

function axis(xOf, beginS, endS) {
  return [beginS, (beginS + endS) / 2, endS].map((atS, index) =>
    shape("text", { x: xOf(atS), y: AXIS + 14, "text-anchor": ["start", "middle", "end"][index] },
      milliseconds(atS)),
  );
}

function legend(arrivals) {
  const grey = arrivals[0].step.phase === "prefill" ? "Grey at the start: the prompt. " : "";
  return element("p", { class: "hint" }, `${grey}Marks below: tokens. Colours as in the table above.`);
}

function table(arrivals) {
  const head = ["Arrived", "Tokens", ...PARTS.map((part) => part.label.split(",")[0])];
  const rows = arrivals.map(({ step, endS, tokens }) =>
    element("tr", {},
      element("th", { scope: "row" }, milliseconds(endS)),
      element("td", {}, String(tokens)),
      ...PARTS.map((part) => element("td", {}, milliseconds(part.of(step)))),
    ),
  );
  const header = element("thead", {}, element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name))));
  const made = element("table", { class: "figures" }, header, element("tbody", {}, ...rows));
  const box = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Timeline as a table" }, made);
  return element("details", {}, element("summary", {}, "As a table"), box);
}
