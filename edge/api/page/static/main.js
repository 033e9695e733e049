// The page: the chat, its keys, and what belongs together of the other modules.

import { ApiFailure, answer, keepKey, status } from "./answer_stream.js";
import { Conversations, titleOf } from "./conversations.js";
import { byId, element } from "./elements.js";
import { Figures } from "./figures.js";
import { blocks } from "./markdown.js";
import { Settings } from "./settings.js";
import { sides, strip } from "./strip.js";
import { timeline } from "./timeline.js";

const THEMES = ["auto", "light", "dark"];
const NEAR_END = 80; // pixels: who has scrolled up further stays there

const notice = (text) => byId("notice").replaceChildren(text);
const conversations = new Conversations(notice);
const settings = new Settings();
let about = null; // what the server says of itself
let running = null; // the AbortController of the answer under way

function messageElement(message) {
  const body = element("div", { class: "body" });
  const who = message.role === "user" ? "You" : "Model";
  fillBody(body, message);
  return element("article", { class: `message ${message.role}`, "aria-label": who },
    element("p", { class: "who" }, who), body);
}

function fillBody(body, message) {
  if (message.role === "user") return body.replaceChildren(message.content);
  body.replaceChildren(...blocks(message.content));
  if (message.note) body.append(element("p", { class: "note" }, message.note));
}

function showConversation() {
  const { messages } = conversations.open;
  const log = byId("log");
  const empty = element("p", { class: "empty" },
    "The front of the model runs on this device, the rest on a server. Say something.");
  log.replaceChildren(...(messages.length ? messages.map(messageElement) : [empty]));
  log.scrollTop = log.scrollHeight;
  showList();
  showButtons();
}

function showList() {
  byId("conversation-list").replaceChildren(...conversations.all.map((one) => {
    const title = titleOf(one);
    const open = element("button", {
      type: "button", class: "open", "aria-current": one.id === conversations.openId && "true",
    }, title);
    open.addEventListener("click", () => changeConversation(() => { conversations.openId = one.id; }));
    const remove = element("button", { type: "button", class: "remove", "aria-label": `Delete: ${title}` }, "×");
    remove.addEventListener("click", () => changeConversation(() => conversations.remove(one.id)));
    return element("li", {}, open, remove);
  }));
}

function changeConversation(change) {
  running?.abort();
  change();
  notice("");
  showConversation();
  toggle("conversations", false);
  byId("prompt").focus();
}

function showButtons() {
  const last = conversations.open.messages.at(-1);
  byId("stop").disabled = running === null;
  byId("send").disabled = running !== null;
  byId("regenerate").disabled = running !== null || last === undefined;
}

function showFigures(figures) {
  byId("strip").replaceChildren(...strip(figures));
  const table = byId("timeline").querySelector("details");
  byId("timeline").replaceChildren(...timeline(figures));
  if (table?.open) byId("timeline").querySelector("details").open = true;
}

function send() {
  const text = byId("prompt").value.trim();
  if (!text || running) return;
  byId("prompt").value = "";
  conversations.open.messages.push({ role: "user", content: text });
  generate();
}

function regenerate() {
  if (running) return;
  const { messages } = conversations.open;
  if (messages.at(-1)?.role === "assistant") messages.pop();
  if (messages.length) generate();
}

function requestBody(conversation) {
  const { system } = settings.values;
  const said = conversation.messages.map(({ role, content }) => ({ role, content }));
  const messages = system ? [{ role: "system", content: system }, ...said] : said;
  return { model: about.model, messages, ...settings.asked() };
}

async function generate() {
  showConversation(); // what was said shows, even where the server does not answer
  if (!(await known())) return;
  const conversation = conversations.open;
  const body = requestBody(conversation);
  const message = { role: "assistant", content: "" };
  const controller = (running = new AbortController());
  conversation.messages.push(message);
  notice("");
  showConversation();
  byId("log").setAttribute("aria-busy", "true");
  const shown = byId("log").lastElementChild.querySelector(".body");
  const figures = new Figures(about.max_tokens);
  const draw = onceAFrame(() => {
    const log = byId("log");
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END;
    fillBody(shown, message);
    if (follows) log.scrollTop = log.scrollHeight;
    showFigures(figures);
  });
  try {
    for await (const chunk of answer(body, controller.signal)) {
      message.content += chunk.choices[0]?.delta.content ?? "";
      if (chunk.choices[0]?.finish_reason === "length") message.note = "Ended at its most tokens.";
      if (chunk.splitpoint?.finish_reason === "deadline") message.note = "Ended: the link was too slow.";
      figures.add(chunk.splitpoint);
      draw();
    }
  } catch (error) {
    ended(error, message);
  }
  if (!message.content && !message.note) {
    conversation.messages = conversation.messages.filter((one) => one !== message);
  }
  if (running === controller) running = null;
  conversations.save();
  byId("log").removeAttribute("aria-busy");
  draw();
  showList();
  showButtons();
}

/** Say why an answer ended early; what had come stays. */
function ended(error, message) {
  if (error.name === "AbortError") {
    message.note = "Stopped.";
    return;
  }
  message.note = message.content ? `Broke off: ${error.message}` : "";
  notice(error instanceof ApiFailure ? error.message : "The API on this device does not answer.");
  if (error.status === 401) askKey();
}

function onceAFrame(work) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => { waits = false; work(); });
  };
}

/** Whether the server has said what it is; asks for the key where that is missing. */
async function known() {
  if (about) return true;
  try {
    about = await status();
  } catch (error) {
    if (error.status === 401) askKey();
    else notice(error instanceof ApiFailure ? error.message : "The API on this device does not answer.");
    return false;
  }
  byId("model").replaceChildren(about.model);
  byId("sides").replaceChildren(...sides(about));
  settings.offer(about);
  showFigures(new Figures(about.max_tokens));
  return true;
}

function askKey() {
  about = null;
  keepKey("");
  if (!byId("ask-key").open) byId("ask-key").showModal();
}

function toggle(id, shown) {
  const is = byId(id).classList.toggle("shown", shown);
  byId(`show-${id}`).setAttribute("aria-expanded", String(is));
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").replaceChildren(`Theme: ${name}`);
  try {
    localStorage.setItem("splitpoint.theme", name);
  } catch {
    // It holds until the page closes.
  }
}

function kept(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // the browser keeps nothing for this page
  }
}

function listen() {
  byId("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    const shown = ["conversations", "figures"].find((id) => byId(id).classList.contains("shown"));
    if (!shown) return running?.abort();
    toggle(shown, false);
    byId(`show-${shown}`).focus();
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("regenerate").addEventListener("click", regenerate);
  byId("new-conversation").addEventListener("click", () => changeConversation(() => conversations.begin()));
  for (const id of ["conversations", "figures"]) {
    byId(`show-${id}`).addEventListener("click", () => toggle(id));
  }
  byId("open-settings").addEventListener("click", () => settings.show());
  byId("close-settings").addEventListener("click", () => byId("settings").close());
  byId("settings-form").addEventListener("submit", () => settings.take());
  byId("key-form").addEventListener("submit", () => {
    keepKey(byId("key").value.trim());
    byId("key").value = "";
    notice("");
    known();
  });
  byId("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme;
    setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
  });
}

setTheme(THEMES.find((name) => name === kept("splitpoint.theme")) ?? "auto");
listen();
showConversation();
known();
byId("prompt").focus();
