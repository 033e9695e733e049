// What the chunks say of one answer, added up. Names and units are those of the stream: seconds.

/** The parts of a token's time, in the order in which they happen. */
export const PARTS = [
  { name: "front", label: "Front, on this device", of: (step) => step.front_s },
  { name: "encode", label: "Encode, on this device", of: (step) => step.encode_s },
  { name: "link", label: "Link, both ways", of: (step) => step.wire_s },
  { name: "queue", label: "Queue, on the server", of: (step) => step.cloud_queue_s },
  {
    name: "compute",
    label: "Compute, on the server",
    of: (step) => step.cloud_codec_s + step.cloud_compute_s + step.cloud_sample_s,
  },
];

/** One answer's figures so far. */
export class Figures {
  constructor(maxTokens) {
    this.maxTokens = maxTokens;
    this.steps = [];
    this.timesS = [];
    this.kvTokens = 0;
  }

  /** Take the `splitpoint` field of one chunk. */
  add(field) {
    this.steps.push(...(field?.steps ?? []));
    this.timesS.push(...(field?.token_times_s ?? []));
    this.kvTokens = field?.kv_tokens ?? this.kvTokens;
  }

  /** Decode steps that brought tokens. */
  get decoded() {
    return this.steps.filter((step) => step.phase === "decode" && step.num_new_tokens > 0);
  }

  get tokensPerS() {
    const spanS = (this.timesS.at(-1) ?? 0) - (this.timesS[0] ?? 0);
    return spanS > 0 ? (this.timesS.length - 1) / spanS : 0;
  }

  get ttftS() {
    return this.timesS[0] ?? 0;
  }

  /** Seconds of every part, for one token after the first. */
  partsPerToken() {
    const steps = this.decoded;
    const count = sum(steps, (step) => step.num_new_tokens);
    return PARTS.map((part) => ({ ...part, s: count ? sum(steps, part.of) / count : 0 }));
  }

  get roundTripS() {
    const sorted = this.decoded.map((step) => step.round_trip_s).sort((a, b) => a - b);
    return sorted[Math.floor(sorted.length / 2)] ?? 0;
  }

  get level() {
    return this.steps.at(-1)?.level ?? "";
  }

  /** Guesses sent and accepted; a frame that was sent ahead begins with one. */
  get drafts() {
    const steps = this.decoded;
    return {
      sent: sum(steps, (step) => step.num_drafts + (step.ahead ? 1 : 0)),
      accepted: sum(steps, (step) => step.num_new_tokens - 1 + (step.ahead ? 1 : 0)),
    };
  }

  get bytesUp() {
    return sum(this.steps, (step) => step.uplink_bytes);
  }

  get bytesDown() {
    return sum(this.steps, (step) => step.downlink_bytes);
  }

  /** Steps that brought tokens, each with when its last token came. Bounded by `most`. */
  arrivals(most) {
    let count = 0;
    const found = [];
    for (const step of this.steps.filter((one) => one.num_new_tokens > 0)) {
      const before = count;
      count = Math.min(count + step.num_new_tokens, this.timesS.length);
      if (count > before) found.push({ step, endS: this.timesS[count - 1], tokens: count - before });
    }
    return found.slice(-most);
  }
}

function sum(items, of) {
  return items.reduce((total, item) => total + of(item), 0);
}
