// Draws the card: everything that is shown is said by one scene.
(function (DG) {
  "use strict";

  const FAST = 150; // milliseconds

  class Painter {
    constructor(card) {
      this.card = card;
      this._last = null;
      this._lastAt = -Infinity;
      this._wasFast = false;
      this.tokens = new DG.Tokens(card.tokens);
      this.board = new DG.Board(card.board);
      this.timeline = new DG.Timeline(card);
    }

    /** Draw a scene, as the widget gathers it. */
    paint(scene) {
      this._views(scene);
      this._buttons(scene);
      this._shot(scene);
      this._time(scene);
      this._words(scene);
      Object.assign(this.card.canvas.dataset, {
        k: scene.index,
        n: scene.shot ? scene.shot.n : "",
        frames: scene.frames.next,
        done: scene.state === "done" ? "1" : "",
        state: scene.state,
      });
    }

    _views({ frames, shot, view, givens, heat }) {
      const { card } = this;
      const rows = Math.ceil((frames.length || 256) / 16);
      for (const button of card.views) {
        const name = button.dataset.view;
        button.setAttribute("aria-pressed", name === view);
        if (name === "board") button.hidden = !givens;
        if (name === "cells") DG.put(button, `16×${rows}`);
      }
      card.tokens.style.setProperty("--rows", rows);
      card.heat.setAttribute("aria-pressed", heat);
      card.root.classList.toggle("shows-heat", heat);
      const pace = this._fast(shot) ? " fast" : "";
      card.tokens.className = `dg-tokens ${view}${heat ? " heat" : ""}${pace}`;
      card.tokens.hidden = view === "board" || !shot;
      card.board.hidden = view !== "board" || !shot;
    }

    /** Whether steps follow each other too fast for transitions. */
    _fast(shot) {
      if (shot === this._last) return this._wasFast;
      const now = performance.now();
      this._wasFast = now - this._lastAt < FAST;
      [this._last, this._lastAt] = [shot, now];
      return this._wasFast;
    }

    _buttons({ frames, shot, state, live, playing, controls, held }) {
      const { card } = this;
      const running = state === "live" || state === "paused";
      const paused = state === "paused";
      card.controls.hidden = !(controls && running);
      DG.put(card.pause, paused ? "Resume" : card.pause.dataset.asked ? "Pausing…" : "Pause");
      card.step.disabled = !paused;
      card.hint.hidden = !(paused && controls && shot);
      card.canvas.classList.toggle("held", held);
      card.live.hidden = !running;
      card.live.setAttribute("aria-pressed", live);
      card.play.dataset.playing = playing ? "1" : "";
      card.play.setAttribute("aria-label", playing ? "Hold the replay" : "Replay");
      for (const name of ["first", "play", "scrub"]) card[name].disabled = frames.shots.length < 2;
    }

    _shot({ frames, shot, index, view, givens, state, open, heat }) {
      if (!shot) return;
      const over = state === "done" && index === frames.shots.length - 1;
      const look = DG.look(shot, {
        view: view === "board" ? "cells" : view,
        known: frames.texts,
        before: index > shot.first ? frames.shots[index - 1] : null,
        open,
        heat,
        fresh: !over,
      });
      this.tokens.paint(look, open);
      if (view === "board") this.board.paint(givens, shot, look, frames.texts);
    }

    _time({ frames, shot, index, room }) {
      const { scrub } = this.card;
      const share = this.timeline.paint(index, room);
      scrub.max = Math.max(frames.shots.length - 1, 0);
      scrub.value = Math.max(index, 0);
      scrub.style.width = `max(${(100 * share).toFixed(2)}%, 28px)`;
      if (shot) scrub.setAttribute("aria-valuetext", DG.numbers(shot).slice(0, 3).join(", "));
    }

    _words({ frames, shot, state, empty, waiting }) {
      const { card } = this;
      DG.put(card.chip, DG.CHIPS[state]);
      card.chip.dataset.state = state;
      card.empty.hidden = Boolean(shot);
      DG.put(card.empty, shot || state === "live" ? "" : empty);
      if (shot) DG.line(card.stats, DG.numbers(shot));
      else DG.line(card.stats, waiting ? DG.waiting(frames, waiting) : []);
    }
  }

  Object.assign(DG, { Painter });
})((globalThis.DGCanvas ??= {}));
