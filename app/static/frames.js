// A run's frames (docs/recordings.md), folded into shots: the whole canvas after each step.
(function (DG) {
  "use strict";

  const STATE = { noise: 0, candidate: 1, settled: 2, renoised: 3, frozen: 4 };
  const ACCEPTED = 8;
  const SURE = 4 << 4;
  const BY_HAND = 0.25; // seconds a step by hand takes in a replay

  /** The state, whether the sample was accepted, and the fifth of the confidence in a `v`. */
  const stateOf = (v) => v & 7;
  const acceptedIn = (v) => (v & ACCEPTED) !== 0;
  const confidenceOf = (v) => v >> 4;

  // U+061C, the marks and embeddings, and the isolates: those that change the order of text.
  const HARM = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

  /** Control characters and bidi marks as visible signs. */
  function harmless(text) {
    return text.replace(HARM, (char) => {
      const code = char.charCodeAt(0);
      if (code < 32) return String.fromCharCode(0x2400 + code);
      if (code === 127) return "␡";
      return `<U+${code.toString(16).toUpperCase().padStart(4, "0")}>`;
    });
  }

  /** Keeps every frame. `shots` are the steps that can be shown; one knows nothing of the others. */
  class Frames {
    constructor() {
      this.all = [];
      this.shots = [];
      this.texts = new Map(); // token id → its text, or the value of its byte
      this.blocks = []; // the first shot of each block
      this.begin = this.reading = this.end = this.done = null;
      this.paused = false;
      this.tokens = this.steps = 0; // of the run, as committed
      this._base = null; // the draft that the next one is a change of
      this._over = true; // the next draft begins a block
      this._answer = -1;
      this._thought = 0; // tokens of the thought in earlier blocks of the answer
      this._held = 0; // seconds that somebody held the run, up to the last resume
      this._pausedAt = 0;
      this._readAt = 0;
      this._byHand = false; // the answer has steps whose duration nobody knows
    }

    /** Number of the frame that is wanted next. */
    get next() {
      return this.all.length;
    }

    get length() {
      return this.begin?.length ?? this._base?.c.length ?? 0;
    }

    /** Keep a frame; the shot it made, or null. Frames come in order. */
    add(frame) {
      this.all.push(frame);
      for (const [id, text] of Object.entries(frame.new ?? {}))
        this.texts.set(Number(id), typeof text === "number" ? text : harmless(String(text)));
      switch (frame.kind) {
        case "begin":
          this.begin = frame;
          return null;
        case "read":
          this._read(frame);
          return null;
        case "draft":
          return this._put(this._fold(frame));
        case "touch":
          return this._touch(frame);
        case "commit":
          this._commit(frame);
          return null;
        case "done":
          this.done = frame;
          return null;
        case "pause":
          if (!this.paused) this._pausedAt = frame.at;
          this.paused = true;
          return null;
        case "resume":
          if (this.paused) this._held += frame.at - this._pausedAt;
          this.paused = false;
          return null;
        case "end":
          this.end = frame;
          return null;
        default:
          return null;
      }
    }

    _read(frame) {
      this.reading = frame;
      this.done = null;
      this._answer += 1;
      this._over = true;
      this._thought = 0;
      this._readAt = this._clock(frame);
      this._byHand = false;
    }

    _commit(frame) {
      const last = this.shots.at(-1);
      if (last) this._thought = last.thoughtBefore + thoughtIn(last);
      this._over = true;
      this.tokens += frame.tokens ?? 0;
    }

    /** Seconds since the run began, without those in which somebody held it. */
    _clock(frame) {
      return (this.paused ? this._pausedAt : frame.at) - this._held;
    }

    _fold(frame) {
      const base = this._base;
      const begins = this._over || base === null || frame.block !== base.block;
      const whole = frame.key === true;
      if (!whole && base === null) throw new Error("a step came before the first whole one");
      const length = whole ? frame.c.length : base.c.length;
      if (frame.c.length !== frame.v.length || frame.g.length !== frame.v.length)
        throw new Error("a step has parts of different lengths");
      const c = whole ? Int32Array.from(frame.c) : base.c.slice();
      const g = whole ? Int32Array.from(frame.g) : base.g.slice();
      const v = whole ? Uint8Array.from(frame.v) : base.v.slice();
      if (!whole)
        frame.i.forEach((at, j) => {
          if (!(at >= 0 && at < length)) throw new Error(`a step changes position ${at}`);
          c[at] = frame.c[j];
          g[at] = frame.g[j];
          v[at] = frame.v[j];
        });
      if (begins) this.blocks.push(this.shots.length);
      this._over = false;
      this.steps += 1;
      const { block, step, max, count, settled, entropy, tokens, steps } = frame;
      const parts = frame.parts ?? [];
      const shot = { kind: "draft", n: frame.n, answer: Math.max(this._answer, 0) };
      Object.assign(shot, { block, step, max, c, g, v, count, parts, settled, entropy, tokens, steps });
      shot.first = this.blocks.at(-1);
      shot.thoughtBefore = this._thought;
      Object.assign(shot, this._times(frame));
      this._base = shot;
      return shot;
    }

    /** `time`: when a replay shows it. `seconds`: since the prompt was read; null: unknown. */
    _times(frame) {
      if (this.paused) {
        this._held -= BY_HAND;
        if (frame.kind === "draft") this._byHand = true;
      }
      const time = this._clock(frame);
      return { time, seconds: this._byHand ? null : time - this._readAt };
    }

    /** What somebody changed shows at once; the next draft is not told as a change of it. */
    _touch(frame) {
      const last = this.shots.at(-1);
      if (!last || this._over || last.block !== frame.block) return null;
      const shot = { ...last, kind: "touch", n: frame.n, c: last.c.slice(), v: last.v.slice() };
      shot.g = last.g.slice();
      frame.positions.forEach((at, j) => {
        if (!(at >= 0 && at < shot.v.length)) return;
        if (frame.what === "pin") {
          shot.c[at] = shot.g[at] = frame.ids[j];
          shot.v[at] = STATE.frozen | ACCEPTED | SURE;
        } else if (frame.what === "noise") shot.v[at] = STATE.renoised | (shot.v[at] & 0xf0);
        else shot.v[at] = STATE.candidate | (shot.v[at] & 0xf8);
      });
      return this._put(Object.assign(shot, this._times(frame)));
    }

    _put(shot) {
      this.shots.push(shot);
      return shot;
    }
  }

  /** Positions of a shot that are part of a thought. */
  function thoughtIn(shot) {
    let count = 0;
    for (const [from, to, part] of shot.parts)
      if (part === "thought") count += Math.min(to, shot.count) - from;
    return count;
  }

  /** Frames from a recording document, or a list of frames. */
  function readFrames(recording) {
    const frames = new Frames();
    for (const frame of Array.isArray(recording) ? recording : recording.frames) frames.add(frame);
    return frames;
  }

  /**
   * The same final tokens, one more in every shot, from left to right.
   * A shot lasts as long as the recording's mean step, so that both can play side by side.
   */
  function inOrder(frames) {
    const ordered = new Frames();
    for (const name of ["all", "texts", "begin", "reading", "end", "done", "tokens"])
      ordered[name] = frames[name];
    const time = frames.shots.at(-1)?.time ?? 0;
    const pace = (time - (frames.shots[0]?.time ?? 0)) / Math.max(frames.shots.length - 1, 1);
    frames.blocks.forEach((first, k) => {
      const last = frames.shots[(frames.blocks[k + 1] ?? frames.shots.length) - 1];
      const begin = ordered.shots.length;
      ordered.blocks.push(begin);
      for (let step = 1; step <= last.count; step++) {
        const v = new Uint8Array(last.v.length);
        v.fill(STATE.settled | ACCEPTED | SURE, 0, step);
        ordered.shots.push({
          ...last,
          kind: "order",
          v,
          c: last.g,
          step,
          first: begin,
          max: last.count,
          count: step,
          settled: step,
          entropy: null,
          seconds: null,
          time: ordered.shots.length * pace,
        });
      }
    });
    ordered.steps = ordered.shots.length;
    return ordered;
  }

  Object.assign(DG, { Frames, STATE, stateOf, acceptedIn, confidenceOf, harmless });
  Object.assign(DG, { readFrames, inOrder, thoughtIn });
})((globalThis.DGCanvas ??= {}));
