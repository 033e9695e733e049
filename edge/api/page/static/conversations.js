// The conversations, kept in this browser's localStorage.

const PLACE = "splitpoint.conversations";
const TITLE_CHARS = 48;

/** All conversations, and which one is open. Each: id, and messages of role, content, note. */
export class Conversations {
  constructor(onFailure) {
    this.onFailure = onFailure;
    this.all = readAll();
    if (this.all.length === 0) this.begin();
    else this.openId = this.all[0].id;
  }

  get open() {
    return this.all.find((one) => one.id === this.openId);
  }

  /** Begin an empty conversation, or open the empty one that there is. */
  begin() {
    const empty = this.all.find((one) => one.messages.length === 0);
    const fresh = empty ?? { id: crypto.randomUUID?.() ?? String(Math.random()), messages: [] };
    if (!empty) this.all.unshift(fresh);
    this.openId = fresh.id;
  }

  remove(id) {
    this.all = this.all.filter((one) => one.id !== id);
    if (this.all.length === 0) this.begin();
    if (!this.open) this.openId = this.all[0].id;
    this.save();
  }

  /** Write everything. A full store loses nothing here: the page says so and goes on. */
  save() {
    try {
      localStorage.setItem(PLACE, JSON.stringify(this.all.filter((one) => one.messages.length)));
    } catch {
      this.onFailure("The browser's store is full: delete a conversation to keep new ones.");
    }
  }
}

/** What a conversation is called: the beginning of its first message. */
export function titleOf(conversation) {
  const first = conversation.messages[0]?.content.trim().replace(/\s+/g, " ");
  if (!first) return "New conversation";
  return first.length > TITLE_CHARS ? `${first.slice(0, TITLE_CHARS)}…` : first;
}

function readAll() {
  try {
    const found = JSON.parse(localStorage.getItem(PLACE) ?? "[]");
    return Array.isArray(found) ? found.filter(isConversation) : [];
  } catch {
    return [];
  }
}

function isConversation(value) {
  return (
    typeof value?.id === "string" &&
    Array.isArray(value.messages) &&
    value.messages.every(
      (one) => ["user", "assistant"].includes(one?.role) && typeof one.content === "string",
    )
  );
}
