// Two canvases in step, and what their answers cost.
(function () {
  "use strict";

  const { make, follow, host } = DGPage;
  const SIDES = ["dg-canvas-a", "dg-canvas-b"];
  const CONFIDENT = 4; // the last fifth

  DGPage.comparison = (element, props, trigger, watch) => {
    const table = make("div", { "data-testid": "comparison", role: "status" });
    host(element).replaceChildren(table);
    let value = {};
    let over = new Set();
    follow(props, watch, (given) => {
      value = given;
      over = new Set();
      table.replaceChildren();
    });
    document.addEventListener("dg-canvas", async (event) => {
      const { id, name } = event.detail;
      if (name !== "end" || !SIDES.includes(id) || !value.paths) return;
      over.add(id);
      if (over.size < value.paths.length) return;
      const [a, b] = SIDES.map(DGPage.canvasOf);
      if (value.order) b.load({ frames: a.frames }, { order: "autoregressive" });
      DGCanvas.sync([a, b]);
      table.replaceChildren(summary(value.order ? [a.frames] : [a.frames, b.frames]));
    });
  };

  function summary(sides) {
    const costs = sides.map(cost);
    const rows = [
      ["Answer over", (c) => c.reason],
      ["Steps", (c) => `${c.steps} in ${c.blocks} block${c.blocks === 1 ? "" : "s"}`],
      ["Tokens", (c) => `${c.tokens}, ${c.perStep} a step`],
      ["Time", (c) => `${c.seconds} s for the answer, ${c.prefill} s for the prompt`],
      ["Tokens with 80 % confidence or more", (c) => c.confident],
    ];
    const head = make("tr", {}, make("th"), ...costs.map((_, i) => make("th", {}, "AB"[i])));
    const body = rows.map(([label, of]) =>
      make("tr", {}, make("th", { scope: "row" }, label), ...costs.map((c) => make("td", {}, of(c)))),
    );
    const same =
      costs.length < 2
        ? "B shows the order in which a model that writes one token at a time would have written A."
        : costs[0].text === costs[1].text
          ? "Both answers are the same."
          : "The answers differ.";
    const note = "Both ran on one device, taking turns step by step: compare steps before seconds.";
    return make("div", {}, make("table", {}, head, ...body), make("p", {}, same),
      costs.length < 2 ? "" : make("p", { class: "dg-quiet" }, note));
  }

  /** What one run took, from its frames. */
  function cost(frames) {
    const done = frames.filter((f) => f.kind === "done").at(-1);
    const stats = done ? done.stats : {};
    const steps = (stats.steps_per_block || []).reduce((a, b) => a + b, 0);
    return {
      reason: done ? done.reason : "failed",
      text: frames.filter((f) => f.kind === "commit").map((f) => f.text).join(""),
      steps,
      blocks: (stats.steps_per_block || []).length,
      tokens: stats.tokens || 0,
      perStep: steps ? (stats.tokens / steps).toFixed(1) : "–",
      seconds: ((stats.denoise_s || 0) + (stats.commit_s || 0)).toFixed(2),
      prefill: (stats.prefill_s || 0).toFixed(2),
      confident: confident(frames),
    };
  }

  /** The share of final tokens whose guess had the last fifth of confidence. */
  function confident(frames) {
    let values = [];
    let count = 0;
    let sure = 0;
    let all = 0;
    for (const frame of frames) {
      if (frame.kind === "draft") {
        if (frame.key) values = [...frame.v];
        else frame.i.forEach((at, j) => (values[at] = frame.v[j]));
        count = frame.count;
      }
      if (frame.kind === "commit") {
        all += count;
        sure += values.slice(0, count).filter((v) => v >> 4 >= CONFIDENT).length;
      }
    }
    return all ? `${Math.round((100 * sure) / all)} %` : "–";
  }
})();
