// The widget's elements.
(function (DG) {
  "use strict";

  const LEGEND = [
    ["noise", "0", "s0"],
    ["candidate", "1", "s1"],
    ["just settled", "", "s2 fresh"],
    ["settled", "2", "s2"],
    ["re-noised", "3", "s3"],
    ["frozen", "4", "s4"],
  ];

  const swatch = ([name, state, mark]) =>
    `<span class="dg-key">${state && `<i data-state="${state}"></i>`}<span class="dg-tokens"><span
      class="${mark}">${name}</span></span></span>`;

  const heat = () =>
    DG.FIFTHS.map((name, i) => `<span class="dg-tokens heat"><span class="h${i}">${name}</span></span>`);

  const button = (id, text, label = "") =>
    `<button type="button" data-testid="${id}"${label && ` aria-label="${label}" title="${label}"`}>${text}</button>`;

  const view = (name, text) =>
    `<button type="button" data-testid="view-${name}" data-view="${name}" aria-pressed="false">${text}</button>`;

  const ICONS = {
    first: '<path d="M4 3h2v10H4zM13 3v10L6.5 8z"/>',
    play: '<path d="M4 2.5v11l9-5.5z"/>',
    hold: '<path d="M4 3h3v10H4zM9 3h3v10H9z"/>',
  };
  const icon = (name) =>
    `<svg viewBox="0 0 16 16" width="12" height="12" aria-hidden="true" class="dg-${name}">${ICONS[name]}</svg>`;

  const HTML = () => `
    <div class="dg-head">
      <b class="dg-title"></b>
      <span class="dg-chip"></span>
      <div class="dg-stats" data-testid="stats"></div>
    </div>
    <div class="dg-order" hidden>Illustration of order: one token per step, left to right. Not a measurement.</div>
    <div class="dg-bar">
      <div class="dg-views" role="group" aria-label="View">
        ${view("guess", "Best guess")}${view("raw", "Raw canvas")}${view("cells", "16×16")}${view("board", "Board")}
      </div>
      <button type="button" class="dg-heat" data-testid="heat" aria-pressed="false"
        title="Shade tokens by the model's confidence">Confidence</button>
    </div>
    <div class="dg-said" data-testid="said" hidden></div>
    <div class="dg-canvas" data-testid="canvas" tabindex="0" role="group">
      <div class="dg-tokens" aria-hidden="true"></div>
      <div class="dg-board" aria-hidden="true" hidden></div>
      <div class="dg-empty"></div>
    </div>
    <div class="dg-inspector" data-testid="inspector"></div>
    <div class="dg-time">
      <canvas class="dg-map" data-testid="map" aria-hidden="true"
        title="Positions from top to bottom, steps from left to right"></canvas>
      <canvas class="dg-entropy" data-testid="entropy" aria-hidden="true" title="Mean entropy of each step"></canvas>
      <input class="dg-scrub" data-testid="scrub" type="range" min="0" max="0" value="0" step="1"
        aria-label="Denoising step">
    </div>
    <div class="dg-foot">
      <div class="dg-transport">
        ${button("first", icon("first"), "To the first step")}
        ${button("play", icon("play") + icon("hold"), "Replay")}
        <select data-testid="speed" aria-label="Replay speed">
          <option value="0.25">¼×</option><option value="1" selected>1×</option>
          <option value="4">4×</option><option value="even">even</option>
        </select>
        ${button("live", "Live")}
      </div>
      <div class="dg-controls" hidden>
        ${button("pause", "Pause")}${button("step", "Step")}${button("stop", "Stop")}
      </div>
    </div>
    <div class="dg-hint" hidden>Held. Choose tokens to pin, re-noise or release them: click, drag, or arrow keys and Enter.</div>
    <div class="dg-legend" aria-hidden="true">
      ${LEGEND.map(swatch).join("")}
      <span class="dg-scale">${heat().join("")}</span>
    </div>
    <div class="dg-popover" data-testid="popover" role="dialog" aria-label="Change the canvas" hidden>
      <div class="dg-chosen"></div>
      <textarea rows="2" aria-label="Text to pin" spellcheck="false"></textarea>
      <div class="dg-actions">
        <button type="button" data-testid="pin" data-do="pin" class="dg-main">Pin</button>
        <button type="button" data-testid="pin-as-is" data-do="as-is">Pin as it is</button>
        <button type="button" data-testid="noise" data-do="noise">Re-noise</button>
        <button type="button" data-testid="release" data-do="release">Release</button>
        <button type="button" data-testid="cancel" data-do="cancel">Cancel</button>
      </div>
    </div>
    <span class="dg-sr" role="status" aria-live="polite" data-testid="status"></span>`;

  /** The elements of a new card, by what they are. */
  function build(label) {
    const root = document.createElement("section");
    root.className = "dg";
    root.setAttribute("aria-label", label || "Canvas");
    root.innerHTML = HTML();
    const $ = (selector) => root.querySelector(selector);
    const id = (name) => $(`[data-testid="${name}"]`);
    const card = { root };
    for (const name of ["chip", "stats", "order", "heat", "said", "canvas", "board", "empty"])
      card[name] = $(`.dg-${name}`);
    for (const name of ["inspector", "map", "entropy", "scrub", "controls", "hint", "popover", "chosen"])
      card[name] = $(`.dg-${name}`);
    for (const name of ["first", "play", "speed", "live", "pause", "step", "stop", "status"])
      card[name] = id(name);
    card.tokens = $(".dg-canvas > .dg-tokens");
    card.words = $("textarea");
    card.undo = id("release");
    card.views = [...root.querySelectorAll("[data-view]")];
    card.swatches = [...root.querySelectorAll(".dg-key i")];
    $(".dg-title").textContent = label ?? "";
    card.canvas.setAttribute(
      "aria-label",
      "Tokens: arrow keys move between them, T shows or hides a thought",
    );
    return card;
  }

  /** Change a text only if it differs. */
  function put(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  Object.assign(DG, { build, put });
})((globalThis.DGCanvas ??= {}));
