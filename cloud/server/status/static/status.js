// The server's status page: reads status.json at intervals and shows it. It changes nothing.

const SVG = "http://www.w3.org/2000/svg";
const EVERY_MS = 5000;
const WIDTH = 300;
const HEIGHT = 60;

const seconds = (value) => (value >= 1 ? `${value.toFixed(2)} s` : `${(1000 * value).toFixed(1)} ms`);
const number = (value) => (value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1));
const CURVES = [
  ["tokens_per_s", "Tokens a second", number],
  ["sessions", "Sessions", number],
  ["batch_sessions", "Sessions in a batch, mean", number],
  ["step_s", "One batch, mean", seconds],
  ["queue_s", "Wait for a batch, mean", seconds],
  ["tbt_s", "Between answers, mean", seconds],
  ["ttft_s", "To the first token, mean", seconds],
  ["kv_blocks_used", "KV blocks used", number],
  ["sessions_waiting", "Sessions that wait", number],
  ["bytes_up_per_s", "Up, a second", (value) => bytes(value)],
  ["bytes_down_per_s", "Down, a second", (value) => bytes(value)],
  ["errors_per_min", "Errors a minute", number],
];

function bytes(count) {
  if (count < 1000) return `${count.toFixed(0)} B`;
  if (count < 1e6) return `${(count / 1e3).toFixed(1)} kB`;
  return `${(count / 1e6).toFixed(1)} MB`;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const fill = (id, ...children) => document.getElementById(id).replaceChildren(...children);

function duration(s) {
  if (s < 120) return `${s.toFixed(0)} s`;
  if (s < 7200) return `${(s / 60).toFixed(0)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(0)} h` : `${(s / 86400).toFixed(0)} days`;
}

/** A table; the first `words` columns are words, the others figures. */
function table(heads, rows, words, empty) {
  if (rows.length === 0) return element("p", { class: "none" }, empty);
  const kind = (index) => (index < words ? { class: "word" } : {});
  const head = heads.map((name, index) => element("th", { scope: "col", ...kind(index) }, name));
  const body = rows.map((row) => element("tr", {}, ...row.map((cell, index) =>
    element(index ? "td" : "th", index ? kind(index) : { scope: "row" }, String(cell)))));
  return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}

function showNow(status) {
  const running = status.sessions.filter((one) => one.state === "running").length;
  const last = (name) => status.curves[name].at(-1) ?? 0;
  const share = status.kv.blocks ? (100 * status.kv.used) / status.kv.blocks : 0;
  const tiles = [
    ["Sessions on a stream", running, `of ${status.max_sessions}`],
    ["Waiting", status.sessions.filter((one) => one.state === "waiting").length, ""],
    ["Kept for a return", status.sessions.filter((one) => one.state === "resumable").length, ""],
    ["Tokens a second", number(last("tokens_per_s")), ""],
    ["Sessions in a batch", number(last("batch_sessions")), "mean"],
    ["KV blocks used", `${share.toFixed(0)} %`, `${status.kv.used} of ${status.kv.blocks}`],
    ["KV blocks for reuse", status.kv.cached, ""],
    ["Frames in memory", bytes(status.frame_bytes), ""],
  ];
  fill("now", ...tiles.map(([name, value, more]) => element("div", {},
    element("dt", {}, name), element("dd", {}, `${value} `, element("small", {}, more)))));
}

function curve(values, everyS, name, format) {
  const known = values.filter((value) => value !== null);
  const most = Math.max(...known, 0);
  const x = (index) => (WIDTH * index) / Math.max(values.length - 1, 1);
  const y = (value) => HEIGHT - 2 - ((HEIGHT - 6) * value) / (most || 1);
  let line = "";
  let area = "";
  let begun = null;
  values.forEach((value, index) => {
    if (value === null) {
      if (begun !== null) area += ` L${x(index - 1)} ${HEIGHT} L${begun} ${HEIGHT} Z `;
      begun = null;
      return;
    }
    const move = begun === null ? "M" : "L";
    const dot = begun === null ? "h.01 " : ""; // so that a point without neighbours shows
    begun ??= x(index);
    line += `${move}${x(index).toFixed(1)} ${y(value).toFixed(1)} ${dot}`;
    area += `${move}${x(index).toFixed(1)} ${y(value).toFixed(1)} `;
  });
  if (begun !== null) area += ` L${x(values.length - 1)} ${HEIGHT} L${begun} ${HEIGHT} Z`;
  const now = values.at(-1);
  const shown = now === null || now === undefined ? "none now" : format(now);
  const words = known.length
    ? `${name}: now ${shown}, at most ${format(most)}, at least ${format(Math.min(...known))}`
    : `${name}: nothing yet`;
  const drawn = shape("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": words,
  }, shape("path", { class: "area", d: area }), shape("path", { d: line }));
  return element("figure", {},
    element("figcaption", {}, name, element("span", {}, shown)), drawn,
    element("p", {}, element("span", {}, `${duration(values.length * everyS)} ago`),
      element("span", {}, known.length ? `at most ${format(most)}` : "")));
}

function showModels(status) {
  const models = status.models ?? [];
  document.getElementById("models").hidden = models.length < 2; // one stands in the heading
  const heads = ["Model", "Sessions", "Waiting", "KV blocks used", "KV blocks", "Tokens answered"];
  const rows = models.map((one) => [
    one.name, one.sessions, one.waiting, one.used, one.blocks, one.tokens]);
  fill("model-table", table(heads, rows, 1, "No model."));
}

function showTables(status) {
  showModels(status);
  const heads = ["Session", "Model", "Tenant", "State", "From layer", "Tokens in KV", "Frames", "Tokens answered", "Age"];
  const rows = status.sessions.map((one) => [
    "replica" in one ? `${one.id} on ${one.replica}` : one.id, one.model ?? "", one.tenant, one.state,
    ...("split" in one
      ? [one.split + 1, `${one.kv_tokens} of ${one.max_tokens}`, one.num_frames, one.num_tokens, duration(one.age_s)]
      : ["–", "–", "–", "–", "–"]),
  ]);
  fill("session-table", table(heads, rows, 4, "No session is here."));
  const limit = (value) => value ?? "no limit";
  fill("tenant-table", table(["Tenant", "Sessions", "Most", "Most tokens a second"],
    status.tenants.map((one) => [one.name, one.sessions, limit(one.most_sessions), limit(one.most_tokens_per_s)]),
    1, "No tenant is here."));
  fill("error-table", table(["Kind", "Streams"], Object.entries(status.errors), 1, "None since the start."));
  const { totals } = status;
  fill("total-table", table(["What", "Count"], [
    ["Sessions opened", totals.opened], ["Sessions resumed", totals.resumed],
    ["Tokens answered", totals.tokens], ["Rows received", totals.rows],
    ["Up", bytes(totals.bytes_up)], ["Down", bytes(totals.bytes_down)],
  ], 1, ""));
}

function show(status) {
  const count = "replicas" in status ? `${status.replicas.length} × ` : "";
  const place = `layers ${status.first_layer + 1} to ${status.num_layers} on ${count}${status.device}`;
  fill("about", `${status.model}, ${place}, up for ${duration(status.uptime_s)}`);
  fill("trouble");
  showNow(status);
  fill("curves", ...CURVES.map(([key, name, format]) =>
    curve(status.curves[key], status.curves.every_s, name, format)));
  showTables(status);
}

async function read() {
  try {
    const response = await fetch("status.json");
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    show(await response.json());
  } catch (error) {
    fill("trouble", `No news since ${new Date().toLocaleTimeString()}: ${error.message}.`);
  }
}

/** Read, wait, and so on; a tab that nobody sees asks for nothing. */
async function watch() {
  for (;;) {
    if (!document.hidden) await read();
    await new Promise((done) => setTimeout(done, EVERY_MS));
  }
}

watch();
