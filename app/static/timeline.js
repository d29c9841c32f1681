// The commit map and the entropy of all steps: a column each, drawn once into a growing buffer.
(function (DG) {
  "use strict";

  const WIDEST = 8192; // columns of a buffer; from there on a column stands for 2, 4, … shots

  /** Columns of pixels, added at the right at a cost that does not depend on how many there are. */
  class Strip {
    constructor(height) {
      this.height = height;
      this.count = 0;
      this.stride = 1;
      this.fitted = null;
      this.fits = 0; // columns that are in `fitted`
      this.context = sheet(64, height);
    }

    /** Draw shot number `this.count` with `draw(context, x)`. */
    add(draw) {
      if (this.count / this.stride >= this.context.canvas.width) this._grow();
      draw(this.context, Math.floor(this.count / this.stride));
      this.count += 1;
    }

    /** Show all columns on a canvas, `width` pixels wide. */
    blit(context, width, height) {
      const columns = this.count / this.stride;
      this._fit(Math.ceil(columns), height);
      context.imageSmoothingEnabled = columns > width;
      context.drawImage(this.fitted.canvas, 0, 0, columns, height, 0, 0, width, height);
    }

    /** Bring the columns to the height in which they are shown: the last one, and new ones. */
    _fit(columns, height) {
      const { canvas } = this.context;
      if (this.fitted?.canvas.width !== canvas.width || this.fitted.canvas.height !== height) {
        this.fitted = sheet(canvas.width, height);
        this.fits = 0;
      }
      const from = Math.max(this.fits - 1, 0);
      const width = columns - from;
      this.fitted.clearRect(from, 0, width, height);
      this.fitted.drawImage(canvas, from, 0, width, this.height, from, 0, width, height);
      this.fits = columns;
    }

    _grow() {
      const old = this.context.canvas;
      const wide = old.width * 2 > WIDEST;
      this.context = sheet(wide ? old.width : old.width * 2, this.height);
      this.context.drawImage(old, 0, 0, wide ? old.width / 2 : old.width, this.height);
      if (wide) this.stride *= 2;
      this.fitted = null;
    }
  }

  function sheet(width, height) {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = Math.max(height, 1);
    return canvas.getContext("2d");
  }

  /** The bytes of a computed colour, for a pixel. */
  function pixel(colour) {
    const [red, green, blue] = colour.match(/[\d.]+/g).map(Number);
    return (0xff << 24) | (blue << 16) | (green << 8) | red;
  }

  const ENTROPY_ROWS = 64;

  /** Both strips. `card.swatches`: elements whose background is the colour of each state. */
  class Timeline {
    constructor(card) {
      this.card = card;
      this.shots = [];
      this.blocks = [];
      this.theme();
    }

    /** Another run. */
    use(frames) {
      this.shots = frames.shots;
      this.blocks = frames.blocks;
      this._redraw();
    }

    /** Take the colours anew, and draw everything with them. */
    theme() {
      const styles = this.card.swatches.map((swatch) => getComputedStyle(swatch).backgroundColor);
      this.palette = styles.map(pixel);
      const style = getComputedStyle(this.card.entropy);
      this.line = style.color;
      this.area = style.outlineColor;
      this.ink = getComputedStyle(this.card.map).color;
      this._redraw();
    }

    /** Add the shots that came since. */
    grow() {
      if (!this.map || this.map.height !== (this.shots[0]?.c.length ?? 1)) this._redraw();
      while (this.map.count < this.shots.length) {
        const shot = this.shots[this.map.count];
        this.map.add((context, x) => this._column(context, x, shot));
      }
      this._entropies();
    }

    /**
     * Show all, with a cursor at shot `index`. While more is to come, `room` is for how many.
     * The share of the width that the shots fill.
     */
    paint(index, room) {
      this.grow();
      const count = this.shots.length;
      const share = count ? count / Math.max(count, room) : 1;
      this._onto(this.card.map, (context, width, height) => {
        if (!count) return;
        const step = (width * share) / count;
        this.map.blit(context, width * share, height);
        this._blocks(context, step, height);
        this._cursor(context, index * step, Math.max(step, 2), height);
      });
      this._onto(this.card.entropy, (context, width, height) => {
        if (!count || !this.entropy) return;
        this.entropy.blit(context, width * share, height);
        const step = (width * share) / count;
        this._cursor(context, index * step, Math.max(step, 2), height);
      });
      return share;
    }

    /** The shot at a share of the map's width. */
    at(x, room) {
      const count = this.shots.length;
      return Math.min(Math.max(Math.floor(x * Math.max(count, room)), 0), count - 1);
    }

    _redraw() {
      this.map = new Strip(this.shots[0]?.c.length ?? 1);
      this.entropy = null;
      this.most = 0;
      this.grow();
    }

    _column(context, x, { v, count }) {
      const image = context.createImageData(1, v.length);
      const pixels = new Uint32Array(image.data.buffer);
      for (let i = 0; i < count; i++) pixels[i] = this.palette[DG.stateOf(v[i])];
      context.putImageData(image, x, 0);
    }

    /** The scale is the highest so far, which comes early: all are drawn again when it grows. */
    _entropies() {
      for (let i = this.entropy?.count ?? 0; i < this.shots.length; i++)
        if (this.shots[i].entropy > this.most) {
          this.most = this.shots[i].entropy * 1.1;
          this.entropy = null;
        }
      this.entropy ??= new Strip(ENTROPY_ROWS);
      while (this.entropy.count < this.shots.length) {
        const share = (this.shots[this.entropy.count].entropy ?? 0) / (this.most || 1);
        const high = Math.round(share * (ENTROPY_ROWS - 4));
        this.entropy.add((context, x) => {
          context.clearRect(x, 0, 1, ENTROPY_ROWS);
          context.fillStyle = this.area;
          context.fillRect(x, ENTROPY_ROWS - high, 1, high);
          context.fillStyle = this.line;
          context.fillRect(x, ENTROPY_ROWS - high - 4, 1, 4);
        });
      }
    }

    _blocks(context, step, height) {
      context.fillStyle = this.ink;
      for (const first of this.blocks.slice(1)) context.fillRect(Math.round(first * step), 0, 1, height);
    }

    _cursor(context, x, width, height) {
      const scale = devicePixelRatio || 1;
      context.globalAlpha = 0.14;
      context.fillStyle = this.ink;
      context.fillRect(x, 0, width, height);
      context.globalAlpha = 1;
      context.fillRect(x + width / 2 - scale / 2, 0, scale, height);
    }

    /** Make both canvases as large as they are shown; asking while drawing would be slow. */
    resize() {
      const scale = devicePixelRatio || 1;
      for (const canvas of [this.card.map, this.card.entropy]) {
        canvas.width = Math.round(canvas.clientWidth * scale);
        canvas.height = Math.round(canvas.clientHeight * scale);
      }
    }

    _onto(canvas, draw) {
      const { width, height } = canvas;
      if (!width || !height) return;
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, width, height);
      draw(context, width, height);
    }
  }

  Object.assign(DG, { Timeline });
})((globalThis.DGCanvas ??= {}));
