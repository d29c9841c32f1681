// Choosing positions of a held canvas, and what can be done with them.
(function (DG) {
  "use strict";

  const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" };

  /**
   * The cursor, the selection and the popover. `host` has what they need of the widget:
   * `surface()` (`Tokens` or `Board`), `shot()`, `ids()` (those shown), `text(positions)`, `held()`, `send(command)`, `moved(at)`.
   */
  class Change {
    constructor(card, host) {
      this.card = card;
      this.host = host;
      this.cursor = this.anchor = -1;
      this._dragging = false;
      const canvas = card.canvas;
      canvas.addEventListener("pointerdown", (event) => this._press(event));
      canvas.addEventListener("pointermove", (event) => this._drag(event));
      canvas.addEventListener("pointerup", () => this._release());
      canvas.addEventListener("pointercancel", () => (this._dragging = false));
      canvas.addEventListener("keydown", (event) => this._key(event));
      card.popover.addEventListener("keydown", (event) => this._popoverKey(event));
      card.popover.addEventListener("click", (event) => {
        const action = event.target.closest("button")?.dataset.do;
        if (action) this._act(action);
      });
      card.words.addEventListener("input", () => this._enable());
    }

    /** Forget the cursor and the selection. */
    reset() {
      this.cursor = this.anchor = -1;
      this.close();
    }

    /** Draw cursor and selection, and close a popover that no longer applies. */
    paint() {
      const chosen = this.host.held() && this.anchor >= 0;
      const [from, to] = chosen ? this._span() : [-1, -2];
      this.host.surface().mark(this.cursor, from, to);
      if (!this.host.held()) this.close();
    }

    close() {
      const { popover, canvas } = this.card;
      if (popover.hidden) return;
      const had = popover.contains(document.activeElement);
      popover.hidden = true;
      this.anchor = -1;
      this.host.surface().mark(this.cursor, -1, -2);
      if (had) canvas.focus({ preventScroll: true });
    }

    _span() {
      return [Math.min(this.anchor, this.cursor), Math.max(this.anchor, this.cursor)];
    }

    _positions() {
      const [from, to] = this._span();
      const all = Array.from({ length: to - from + 1 }, (_, i) => from + i);
      return all.filter((at) => this.host.surface().visible(at));
    }

    _press(event) {
      const at = positionOf(event.target);
      if (at < 0 || event.button !== 0) return;
      this.card.popover.hidden = true;
      if (!this.host.held()) {
        this._move(at);
        return;
      }
      event.preventDefault();
      this.card.canvas.focus({ preventScroll: true });
      if (!event.shiftKey || this.anchor < 0) this.anchor = at;
      this._dragging = true;
      this._move(at);
    }

    _drag(event) {
      if (!this._dragging) return;
      const at = positionOf(document.elementFromPoint(event.clientX, event.clientY));
      if (at >= 0) this._move(at);
    }

    _release() {
      if (!this._dragging) return;
      this._dragging = false;
      this._open();
    }

    _key(event) {
      if (event.target !== this.card.canvas || event.altKey || event.ctrlKey || event.metaKey) return;
      const surface = this.host.surface();
      let at = -1;
      if (event.key in KEYS) at = surface.beside(this.cursor, KEYS[event.key]);
      else if (event.key === "Home") at = surface.first();
      else if (event.key === "End") at = surface.last();
      else if (event.key === "Enter" && this.host.held() && surface.visible(this.cursor)) {
        event.preventDefault();
        if (this.anchor < 0) this.anchor = this.cursor;
        this._open();
        return;
      } else if (event.key === "Escape") this.anchor = -1;
      else return;
      event.preventDefault();
      if (at < 0) return this.paint();
      if (!event.shiftKey) this.anchor = -1;
      else if (this.anchor < 0) this.anchor = this.cursor;
      this._move(at);
      surface.element(at).scrollIntoView({ block: "nearest", inline: "nearest" });
    }

    _move(at) {
      this.cursor = at;
      this.paint();
      this.host.moved(at);
    }

    _open() {
      const { popover, words, chosen, undo } = this.card;
      const positions = this._positions();
      if (!positions.length) return;
      const frozen = positions.filter((at) => DG.stateOf(this.host.shot().v[at]) === DG.STATE.frozen);
      undo.hidden = !frozen.length;
      words.value = this.host.text(positions);
      chosen.textContent =
        positions.length === 1 ? `Position ${positions[0]}` : `${positions.length} positions`;
      popover.hidden = false;
      this.place();
      this._enable();
      words.focus({ preventScroll: true });
      words.select();
    }

    /** Put the open popover beside what is chosen. */
    place() {
      const { popover, canvas } = this.card;
      if (popover.hidden) return;
      const [from] = this._positions();
      const mark = this.host.surface().element(from);
      beside(popover, mark ?? canvas, canvas);
    }

    _enable() {
      this.card.popover.querySelector("[data-do=pin]").disabled = this.card.words.value === "";
    }

    _popoverKey(event) {
      if (event.key === "Escape") {
        event.preventDefault();
        event.stopPropagation();
        this.close();
      } else if (event.key === "Enter" && event.target === this.card.words && !event.shiftKey) {
        event.preventDefault();
        if (this.card.words.value !== "") this._act("pin");
      }
    }

    _act(action) {
      const positions = this._positions();
      const { block, v } = this.host.shot();
      const { words } = this.card;
      if (action === "pin")
        this.host.send({ do: "pin", block, positions: positions.slice(0, 1), text: words.value });
      else if (action === "as-is") {
        const ids = this.host.ids();
        this.host.send({ do: "pin", block, positions, ids: positions.map((at) => ids[at]) });
      } else if (action === "noise") this.host.send({ do: "noise", block, positions });
      else if (action === "release") {
        const frozen = positions.filter((at) => DG.stateOf(v[at]) === DG.STATE.frozen);
        this.host.send({ do: "release", block, positions: frozen });
      }
      this.close();
    }
  }

  /** The position that an element on the canvas stands for, or -1. */
  function positionOf(element) {
    const at = element?.closest?.("[data-i]")?.dataset.i;
    return at === undefined ? -1 : Number(at);
  }

  /** Below an element, or above it where there is no room below; always inside the card. */
  function beside(popover, mark, canvas) {
    const card = popover.offsetParent.getBoundingClientRect();
    const at = mark.getClientRects()[0] ?? mark.getBoundingClientRect();
    const room = canvas.getBoundingClientRect();
    const left = Math.min(at.left - card.left, card.width - popover.offsetWidth - 8);
    let top = Math.min(at.bottom, room.bottom) - card.top + 6;
    if (top + popover.offsetHeight > card.height - 8)
      top = Math.max(at.top, room.top) - card.top - popover.offsetHeight - 6;
    popover.style.left = `${Math.max(left, 8)}px`;
    popover.style.top = `${Math.max(top, 8)}px`;
  }

  Object.assign(DG, { Change, positionOf });
})((globalThis.DGCanvas ??= {}));
