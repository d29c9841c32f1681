// Tokens on the page: one span for each position, and only those that changed are touched.
(function (DG) {
  "use strict";

  const RTL = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

  const names = new Map();

  /** The class names of a mark. */
  function classOf(mark) {
    let name = names.get(mark);
    if (name === undefined) {
      const heat = mark >> DG.HEAT;
      name = [
        `s${mark & 7}`,
        mark & DG.FRESH && "fresh",
        mark & DG.PAST && "past",
        mark & DG.BADGE && "badge",
        mark & DG.OFF && "off",
        mark & DG.THOUGHT && "thought",
        heat && `h${heat - 1}`,
      ]
        .filter(Boolean)
        .join(" ");
      names.set(mark, name);
    }
    return name;
  }

  class Tokens {
    constructor(host) {
      this.host = host;
      this.spans = [];
      this.remark = document.createElement("span");
      this.remark.className = "dg-remark";
      this._rest = document.createTextNode("\n"); // between a thought and what follows it
      this._clear(0);
    }

    /** Draw what `DG.look` gives. */
    paint({ texts, marks, remark }, open) {
      if (marks.length !== this.spans.length) this._clear(marks.length);
      for (let i = 0; i < marks.length; i++) {
        const off = (marks[i] & DG.OFF) !== 0;
        const span = this.spans[i];
        this._put(i, off ? "" : texts[i]);
        if (this._marks[i] !== marks[i]) {
          this._marks[i] = marks[i];
          span.className = classOf(marks[i]);
        }
      }
      this._remark(remark, open);
    }

    /** Show a cursor and a selection; `from` and `to` are positions, -1: none. */
    mark(cursor, from, to) {
      const marked = `${cursor} ${from} ${to}`;
      if (this._marked === marked) return;
      this._marked = marked;
      this.spans.forEach((span, i) => {
        span.toggleAttribute("data-cursor", i === cursor);
        span.toggleAttribute("data-chosen", i >= from && i <= to);
      });
    }

    /** Whether a position is drawn. */
    visible(at) {
      return at >= 0 && at < this.spans.length && !(this._marks[at] & DG.OFF);
    }

    /** The first visible position, the last one, and the element of a position. */
    first() {
      return this.spans.findIndex((_, i) => this.visible(i));
    }

    last() {
      return this.spans.findLastIndex((_, i) => this.visible(i));
    }

    element(at) {
      return this.spans[at];
    }

    /** The nearest visible position in a direction: "left", "right", "up" or "down". */
    beside(at, direction) {
      if (!this.visible(at)) return this.first();
      const way = direction === "left" || direction === "up" ? -1 : 1;
      if (direction === "left" || direction === "right") {
        for (let i = at + way; i >= 0 && i < this.spans.length; i += way)
          if (this.visible(i)) return i;
        return at;
      }
      return this._row(at, way);
    }

    /** The position whose middle is nearest in the next row of text. */
    _row(at, way) {
      const middle = (i) => this.spans[i].offsetLeft + this.spans[i].offsetWidth / 2;
      const here = this.spans[at].offsetTop;
      let row = null;
      let best = at;
      let distance = Infinity;
      for (let i = at + way; i >= 0 && i < this.spans.length; i += way) {
        if (!this.visible(i)) continue;
        const top = this.spans[i].offsetTop;
        if (way * (top - here) <= 4) continue;
        row ??= top;
        if (Math.abs(top - row) > 4) break;
        const away = Math.abs(middle(i) - middle(at));
        if (away < distance) [best, distance] = [i, away];
      }
      return best;
    }

    /** A span's marks are on its word: the spaces before it stand before the span. */
    _put(i, text) {
      if (this._texts[i] === text) return;
      this._texts[i] = text;
      const [gap] = /^ *(?=[^ ])/.exec(text) ?? [""];
      if (this._gaps[i].data !== gap) this._gaps[i].data = gap;
      this.spans[i].firstChild.data = text.slice(gap.length);
      this.spans[i].toggleAttribute("data-rtl", RTL.test(text));
    }

    _remark(remark, open) {
      if (remark && open) before(this._gaps[remark.to], this._rest);
      else this._rest.remove();
      if (!remark) {
        this.remark.remove();
        return;
      }
      const tokens = `${remark.tokens} token${remark.tokens === 1 ? "" : "s"}`;
      const text = `(thought: ${tokens})\n`;
      if (this.remark.textContent !== text) this.remark.textContent = text;
      this.remark.dataset.open = open ? "1" : "";
      before(this._gaps[remark.at], this.remark);
    }

    _clear(length) {
      this._marked = "";
      this._texts = new Array(length).fill("");
      this._marks = new Int32Array(length).fill(-1);
      this.spans = Array.from({ length }, (_, i) => {
        const span = document.createElement("span");
        span.dataset.i = i;
        span.append("");
        return span;
      });
      this._gaps = Array.from({ length: length + 1 }, () => document.createTextNode(""));
      const nodes = this._gaps.flatMap((gap, i) => (i < length ? [gap, this.spans[i]] : [gap]));
      this.host.replaceChildren(...nodes);
    }
  }

  /** Have a node stand right before another. */
  function before(next, node) {
    if (node.nextSibling !== next) next.before(node);
  }

  Object.assign(DG, { Tokens, classOf });
})((globalThis.DGCanvas ??= {}));
