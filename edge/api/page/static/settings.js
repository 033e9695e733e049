// The settings of answers, kept in localStorage, and their dialog.

import { byId, element } from "./elements.js";

const PLACE = "splitpoint.settings";
const FIRST = { system: "", temperature: "0.7", top_p: "1", max_tokens: "", level: "", draft: "" };

/** The settings. Values are the fields' texts, and an empty one asks for the server's choice. */
export class Settings {
  constructor() {
    this.values = { ...FIRST, ...readValues() };
  }

  /** Offer the server's levels and drafters, and let the dialog save. */
  offer(status) {
    fill(byId("level"), status.levels, this.values.level || status.default.level);
    fill(byId("draft"), status.drafters, this.values.draft || status.default.draft);
    byId("max_tokens").max = status.max_tokens;
  }

  show() {
    for (const [name, value] of Object.entries(this.values)) {
      if (value !== "") byId(name).value = value;
    }
    byId("settings").showModal();
  }

  /** Take what the dialog's fields say. */
  take() {
    for (const name of Object.keys(FIRST)) this.values[name] = byId(name).value;
    try {
      localStorage.setItem(PLACE, JSON.stringify(this.values));
    } catch {
      // They hold until the page closes.
    }
  }

  /** The fields of a request's body. */
  asked() {
    const { temperature, top_p, max_tokens, level, draft } = this.values;
    return {
      temperature: Number(temperature),
      top_p: Number(top_p),
      ...(max_tokens ? { max_tokens: Number(max_tokens) } : {}),
      ...(level ? { level } : {}),
      ...(draft ? { draft } : {}),
    };
  }
}

function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  if (names.includes(chosen)) select.value = chosen;
}

function readValues() {
  try {
    const found = JSON.parse(localStorage.getItem(PLACE) ?? "{}");
    return Object.fromEntries(
      Object.entries(found).filter(([name, value]) => name in FIRST && typeof value === "string"),
    );
  } catch {
    return {};
  }
}
