// Shows shots one after the other, at the times they had or evenly.
(function (DG) {
  "use strict";

  const EVEN = 30; // shots a second

  class Player {
    /** `on.show(index)` shows a shot; `on.changed()` tells that playing began or ended. */
    constructor(on) {
      this.on = on;
      this.frame = 0;
    }

    get playing() {
      return this.frame !== 0;
    }

    /** Play `shots` from an index on. `speed`: a factor, or "even". */
    play(shots, from, speed) {
      this.stop();
      if (!shots.length) return;
      let index = from;
      const began = performance.now();
      const due = (i) =>
        speed === "even" ? (i - from) / EVEN : (shots[i].time - shots[from].time) / speed;
      const tick = () => {
        const seconds = (performance.now() - began) / 1000;
        const before = index;
        while (index + 1 < shots.length && due(index + 1) <= seconds) index += 1;
        this.frame = index + 1 < shots.length ? requestAnimationFrame(tick) : 0;
        if (index !== before) this.on.show(index);
        if (!this.frame) this.on.changed();
      };
      this.frame = requestAnimationFrame(tick);
      this.on.show(index);
      this.on.changed();
    }

    stop() {
      if (!this.frame) return;
      cancelAnimationFrame(this.frame);
      this.frame = 0;
      this.on.changed();
    }
  }

  Object.assign(DG, { Player });
})((globalThis.DGCanvas ??= {}));
