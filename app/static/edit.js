// Edit in place: the text, its selection, and what became of it. Event: rewrite.
(function () {
  "use strict";

  const { make, follow, host } = DGPage;
  const CANVAS = "dg-canvas-edit";
  const MOST_WORDS = 600;

  DGPage.editor = (element, props, trigger, watch) => {
    const text = make("textarea", {
      class: "dg-text", spellcheck: "false", rows: 12, "aria-label": "Text to edit",
      "data-testid": "text",
    });
    const instruction = make("input", {
      placeholder: "What is to be done? (may be empty)", "aria-label": "Instruction",
      "data-testid": "instruction",
    });
    const strength = make("input", {
      type: "range", min: 0.1, max: 1, step: 0.1, value: 1, "aria-label": "Strength",
      "data-testid": "strength",
    });
    const length = make("input", {
      type: "number", min: 1, placeholder: "found out", "aria-label": "Tokens",
      "data-testid": "length",
    });
    const button = (label, testid, onclick, hidden = false) =>
      make("button", { type: "button", "data-testid": testid, onclick, hidden }, label);
    const key = /Mac|iP/.test(navigator.platform) ? "⌘E" : "Ctrl-E";
    const go = button(`Rewrite the selection ${key}`, "rewrite", rewrite);
    const stop = button("Stop", "stop-edit", () => DGPage.stop(CANVAS), true);
    const undo = button("Undo", "undo-edit", back, true);
    const status = make("p", { class: "dg-quiet", role: "status", "data-testid": "edit-status" });
    const diff = make("div", { class: "dg-diff", "data-testid": "diff", hidden: true });
    const verdict = make(
      "div",
      { class: "dg-bar", hidden: true },
      button("Accept", "accept", accept),
      button("Reject", "reject", reject),
      button("Retry", "retry-edit", retry),
    );
    host(element).replaceChildren(
      text,
      make("div", { class: "dg-bar" }, instruction),
      make(
        "div",
        { class: "dg-bar dg-fields" },
        make("label", {}, "Strength ", strength),
        make("label", {}, "Tokens ", length),
      ),
      make("div", { class: "dg-bar" }, go, stop, undo),
      status,
      diff,
      verdict,
    );
    const earlier = [];
    let asked = null;
    let offered = null;

    text.onkeydown = (event) => {
      if ((event.metaKey || event.ctrlKey) && event.key.toLowerCase() === "e") {
        event.preventDefault();
        rewrite();
      }
    };
    document.addEventListener("dg-canvas", (event) => {
      const { id, name, detail } = event.detail;
      if (id === CANVAS && asked) take(name, detail);
    });
    follow(props, watch, (value) => {
      if (!text.value) text.value = value.text || "";
      status.textContent = "Select what may change: everything else stays as it is, to the letter.";
    });

    function rewrite() {
      const { selectionStart: start, selectionEnd: end, value } = text;
      if (start === end) {
        status.textContent = "Nothing is selected; select what may change.";
        return;
      }
      ask({ text: value, start, end });
    }

    function retry() {
      if (asked) ask(asked);
    }

    /** Places are in UTF-16 units here, and in characters for the server. */
    function ask(what) {
      asked = what;
      offered = null;
      busy(true);
      diff.hidden = verdict.hidden = true;
      status.textContent = "Finding how long the new text is, then writing it…";
      const at = (index) => [...what.text.slice(0, index)].length;
      trigger("rewrite", {
        text: what.text,
        start: at(what.start),
        end: at(what.end),
        instruction: instruction.value,
        strength: +strength.value,
        length: +length.value || null,
      });
      setTimeout(() => busy(DGPage.canvasOf(CANVAS).state === "live"), 4000); // it was refused
    }

    function busy(on) {
      go.disabled = on;
      stop.hidden = !on;
      text.readOnly = on;
    }

    function take(name, detail) {
      if (name === "state" && detail.state === "live") busy(true);
      if (name === "note" || name === "error") status.textContent = detail.text;
      if (name === "edited") offer(detail.fills[0]);
      if (name === "end") busy(false);
    }

    function offer(fill) {
      offered = fill;
      diff.replaceChildren(
        asked.text.slice(Math.max(0, asked.start - 200), asked.start),
        ...changes(asked.text.slice(asked.start, asked.end), fill),
        asked.text.slice(asked.end, asked.end + 200),
      );
      diff.hidden = verdict.hidden = false;
      status.textContent = "Here is the new text.";
    }

    function accept() {
      earlier.push(text.value);
      text.value = asked.text.slice(0, asked.start) + offered + asked.text.slice(asked.end);
      text.setSelectionRange(asked.start, asked.start + offered.length);
      done("Accepted.");
    }

    function reject() {
      done("Rejected: the text is as it was.");
      text.setSelectionRange(asked.start, asked.end);
    }

    function done(line) {
      diff.hidden = verdict.hidden = true;
      undo.hidden = !earlier.length;
      status.textContent = line;
      text.focus();
    }

    function back() {
      text.value = earlier.pop();
      done("Undone.");
    }
  };

  /** What was taken out and put in, word by word. */
  function changes(before, after) {
    const old = before.match(/\s+|[^\s]+/g) || [];
    const now = after.match(/\s+|[^\s]+/g) || [];
    if (old.length > MOST_WORDS || now.length > MOST_WORDS) return [make("del", {}, before), make("ins", {}, after)];
    const kept = common(old, now);
    const found = [];
    let i = 0;
    let j = 0;
    for (const [a, b] of [...kept, [old.length, now.length]]) {
      if (i < a) found.push(make("del", {}, old.slice(i, a).join("")));
      if (j < b) found.push(make("ins", {}, now.slice(j, b).join("")));
      if (a < old.length) found.push(old[a]);
      i = a + 1;
      j = b + 1;
    }
    return found;
  }

  /** Pairs of places of a longest common subsequence. */
  function common(old, now) {
    const longest = Array.from({ length: old.length + 1 }, () => new Uint16Array(now.length + 1));
    for (let i = old.length - 1; i >= 0; i--)
      for (let j = now.length - 1; j >= 0; j--)
        longest[i][j] =
          old[i] === now[j]
            ? longest[i + 1][j + 1] + 1
            : Math.max(longest[i + 1][j], longest[i][j + 1]);
    const pairs = [];
    for (let i = 0, j = 0; i < old.length && j < now.length; ) {
      if (old[i] === now[j]) pairs.push([i++, j++]);
      else if (longest[i + 1][j] >= longest[i][j + 1]) i++;
      else j++;
    }
    return pairs;
  }
})();
