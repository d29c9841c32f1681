// The line of numbers, and what is said in words.
(function (DG) {
  "use strict";

  const CHIPS = { idle: "", live: "live", paused: "held", done: "done", lost: "no connection" };

  const many = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

  /** The numbers of a shot, up to that shot. */
  function numbers(shot) {
    if (shot.kind === "order") return [`block ${shot.block + 1}`, `token ${shot.step} of ${shot.max}`];
    const parts = [
      `block ${shot.block + 1}`,
      `step ${shot.step}/≤${shot.max}`,
      `settled ${shot.settled}/${shot.count}`,
      `entropy ${shot.entropy.toFixed(2)}`,
    ];
    if (shot.seconds > 0) {
      parts.push(`${rate(shot.tokens / shot.seconds)} tok/s`);
      parts.push(`${(shot.steps / shot.seconds).toFixed(1)} steps/s`);
    }
    parts.push(`${(shot.tokens / shot.steps).toFixed(1)} tok/step`);
    return parts;
  }

  const rate = (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0));

  /** What a run without steps waits for, and since when. */
  function waiting(frames, { connected, seconds }) {
    const what = frames.reading
      ? `prompt read: ${many(frames.reading.tokens, "token")} · first step`
      : frames.begin
        ? "reading the prompt"
        : connected
          ? "waiting for another run"
          : "connecting";
    return [`${what} · ${Math.floor(seconds)} s`];
  }

  /** Show parts on the line, each in its own element so that it can wrap between them. */
  function line(element, parts) {
    while (element.children.length > parts.length) element.lastChild.remove();
    parts.forEach((part, i) => {
      const text = i + 1 < parts.length ? `${part} · ` : part;
      const item = element.children[i] ?? element.appendChild(document.createElement("span"));
      DG.put(item, text);
    });
  }

  /** The sentence at the end of a run. */
  function ended(frames) {
    const size = `${many(frames.tokens, "token")} in ${many(frames.steps, "step")}`;
    if (frames.done?.reason === "cancelled") return `Stopped, ${size}.`;
    return `Response complete, ${size}.`;
  }

  Object.assign(DG, { CHIPS, numbers, waiting, line, ended });
})((globalThis.DGCanvas ??= {}));
