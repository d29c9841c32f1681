// What a shot looks like in each view: a text and a mark for every position. Draws nothing.
(function (DG) {
  "use strict";

  const { STATE, stateOf, acceptedIn, confidenceOf } = DG;

  /** A mark is a state, and these; the confidence from HEAT on. */
  const FRESH = 1 << 3; // settled in this step
  const PAST = 1 << 4; // behind the end of the answer
  const BADGE = 1 << 5; // a token that only structures the answer
  const OFF = 1 << 6; // not shown
  const THOUGHT = 1 << 7;
  const HEAT = 8; // bits to the confidence plus one; 0: do not show it

  const NAMES = ["noise", "candidate", "settled", "re-noised", "frozen"];
  const FIFTHS = ["0–19 %", "20–39 %", "40–59 %", "60–79 %", "80–100 %"];

  /** Text of each token. Bytes side by side are characters, which the last byte has. */
  function textsOf(ids, known, count = ids.length) {
    const texts = new Array(count);
    let decoder = null;
    for (let i = 0; i < count; i++) {
      const text = known.get(ids[i]);
      if (typeof text !== "number") {
        texts[i] = text ?? "\ufffd";
        continue;
      }
      decoder ??= new TextDecoder("utf-8", { ignoreBOM: true });
      const more = i + 1 < count && typeof known.get(ids[i + 1]) === "number";
      texts[i] = DG.harmless(decoder.decode(Uint8Array.of(text), { stream: more }));
    }
    return texts;
  }

  /** The part of the answer that each position belongs to; undefined: visible text. */
  function partsOf(shot) {
    const parts = new Array(shot.c.length);
    for (const [from, to, part] of shot.parts) parts.fill(part, from, Math.min(to, parts.length));
    return parts;
  }

  const unbroken = (text) => text.replace(/\r?\n/g, "↵").replace(/\t/g, "⇥");

  /** For a cell: line breaks and lone spaces as signs, no space before a word. */
  const inCell = (text) => (/^ +$/.test(text) ? "␣" : unbroken(text).replace(/^ +/, ""));

  /**
   * `texts` and `marks` of a shot; `remark`: where a thought is, and its tokens so far.
   * `before`: the shot before it in its block, or null.
   */
  function look(shot, { view, known, before = null, open = false, heat = false, fresh = true }) {
    const { c, g, v, count } = shot;
    const parts = partsOf(shot);
    const ids = view === "raw" ? c : g;
    const texts = textsOf(ids, known, view === "raw" ? ids.length : count);
    const marks = new Uint16Array(c.length);
    let thoughtAt = -1;
    let thoughtTo = -1;
    for (let i = 0; i < c.length; i++) {
      let state = stateOf(v[i]);
      let mark = 0;
      if (i >= count) {
        mark |= view === "guess" ? OFF : PAST;
        if (view === "cells" || shot.kind === "order") texts[i] = "·";
      } else if (parts[i] === "control" && (view !== "raw" || c[i] === g[i])) {
        mark |= view === "guess" ? OFF : BADGE;
      } else if (parts[i] === "thought") {
        if (thoughtAt < 0) thoughtAt = i;
        thoughtTo = i + 1;
        mark |= THOUGHT | (view === "guess" && !open ? OFF : 0);
      }
      if (view === "raw") {
        const noise = !acceptedIn(v[i]) && state !== STATE.frozen;
        if (noise && state === STATE.candidate) state = STATE.noise;
        if (noise || mark & (PAST | BADGE)) texts[i] = unbroken(texts[i]);
      } else if (view === "cells" && i < count) texts[i] = inCell(texts[i]);
      if (fresh && before && state === STATE.settled && stateOf(before.v[i]) !== state) mark |= FRESH;
      if (heat && !(mark & PAST)) mark |= (confidenceOf(v[i]) + 1) << HEAT;
      marks[i] = state | mark;
    }
    const tokens = shot.thoughtBefore + DG.thoughtIn(shot);
    const remark = view === "guess" && thoughtAt >= 0 ? { at: thoughtAt, to: thoughtTo, tokens } : null;
    return { texts, marks, remark };
  }

  /** One line about a position of shot `index`. */
  function facts(frames, index, at) {
    const shot = frames.shots[index];
    const text = (ids) => quote(textsOf(ids, frames.texts)[at]);
    if (shot.kind === "order") return at < shot.count ? `#${at} ${text(shot.g)}` : `#${at} not yet`;
    let changes = 0;
    let settled = null;
    for (let j = shot.first; j <= index; j++) {
      const now = frames.shots[j];
      if (j > shot.first && frames.shots[j - 1].g[at] !== now.g[at]) changes += 1;
      if (settled === null && stateOf(now.v[at]) === STATE.settled) settled = now.step;
    }
    const state = at < shot.count ? NAMES[stateOf(shot.v[at])] : "after the end";
    return [
      `#${at} canvas ${text(shot.c)}`,
      `guess ${text(shot.g)}`,
      `confidence ${FIFTHS[confidenceOf(shot.v[at])]}`,
      `changed ${changes}×`,
      settled === null ? "not settled yet" : `first settled at step ${settled}`,
      state,
    ].join(" · ");
  }

  const quote = (text) => `“${unbroken(text)}”`;

  Object.assign(DG, { FRESH, PAST, BADGE, OFF, THOUGHT, HEAT, FIFTHS });
  Object.assign(DG, { look, facts, textsOf, partsOf, unbroken });
})((globalThis.DGCanvas ??= {}));
