// The canvas widget: DGCanvas.mount(root, options). See docs/page.md for what it offers.
(function (DG) {
  "use strict";

  const EMPTY = "Here an answer settles out of noise, all of its tokens at once.";
  const TOLD = new Set(["commit", "note", "error", "edited", "end"]);
  const VIEWS = ["guess", "raw", "cells", "board"];

  class Widget {
    constructor(root, options) {
      this.root = root;
      this.options = options;
      this.card = DG.build(options.label);
      root.replaceChildren(this.card.root);
      this.painter = new DG.Painter(this.card);
      this.player = new DG.Player({
        show: (index) => this._show(index, true),
        changed: () => this._request(),
      });
      this.change = new DG.Change(this.card, this._host());
      this._view = "guess";
      this._open = this._heat = false;
      this._peers = new Set();
      this._frame = this._clock = this._since = 0;
      this._state = "idle";
      this._listen();
      this.clear();
    }

    // What callers use.

    /** Every frame so far. */
    get frames() {
      return this._frames.all;
    }

    /** "idle", "live", "paused", "done" or "lost". */
    get state() {
      return this._state;
    }

    /** Show a run while it goes on, over the WebSocket at `path`. */
    follow(path) {
      if (path === this._path && ["live", "paused"].includes(this._state)) return;
      this._reset();
      this._path = path;
      this._setState("live");
      this._say("Generating.");
      this._run = DG.followRun(path, {
        next: () => this._frames.next,
        frame: (frame) => this.push(frame),
        open: () => this._connected(),
        lost: () => this._lost("connection lost; trying again"),
        gone: () => {
          this._leave("this run is gone: the server was started again");
          this._event("gone", {});
        },
        denied: () => this._leave("not allowed"),
      });
      this._tick();
    }

    /** Show a recording, or a list of frames. `order: "autoregressive"`: as if token by token. */
    load(recording, { order } = {}) {
      this._reset();
      try {
        const frames = DG.readFrames(recording);
        this._frames = order === "autoregressive" ? DG.inOrder(frames) : frames;
      } catch (fault) {
        this._fault(fault);
      }
      this.card.order.hidden = order !== "autoregressive";
      this.painter.timeline.use(this._frames);
      this._setState("done");
      this._show(this._frames.shots.length - 1);
    }

    /** Take a frame; one that is known already is left out. */
    push(frame) {
      if (frame.n < this._frames.next) return;
      if (this._state !== "live" && this._state !== "paused") this._setState("live");
      const atNewest = this._live;
      try {
        this._frames.add(frame);
      } catch (fault) {
        this._fault(fault);
      }
      if (atNewest) this._index = this._frames.shots.length - 1;
      this._tellOf(frame);
      this._request();
    }

    /** An empty canvas, with a sentence. */
    clear(text = EMPTY) {
      this._reset();
      this._emptyText = text;
      this._setState("idle");
    }

    /** Show step `index`, from 0. */
    show(index) {
      this.player.stop();
      this._show(index, true);
    }

    /** Replay from the shown step, or from the first if that is the last. */
    play(speed = this._speed()) {
      const { shots } = this._frames;
      this._live = false;
      for (const peer of this._peers) peer.player.stop();
      this.player.play(shots, this._index < shots.length - 1 ? Math.max(this._index, 0) : 0, speed);
    }

    /** End a replay. */
    stop() {
      this.player.stop();
    }

    /** Choose "guess", "raw", "cells" or "board". */
    view(name) {
      if (!VIEWS.includes(name)) throw new Error(`no view ${name}; there are ${VIEWS.join(", ")}`);
      this._view = name;
      this._request();
    }

    /** Take everything away, and end the connection. */
    destroy() {
      this._reset();
      cancelAnimationFrame(this._frame);
      this._gone.abort();
      this._sizes.disconnect();
      this._themes.disconnect();
      for (const peer of this._peers) peer._peers.delete(this);
      if (this.root.dgCanvas === this) delete this.root.dgCanvas;
      this.card.root.remove();
    }

    // The run.

    _reset() {
      this._run?.close();
      this._run = this._path = null;
      clearInterval(this._clock);
      this.player.stop();
      this._frames = new DG.Frames();
      this._index = -1;
      this._live = true;
      this._shown = null;
      this._isConnected = false;
      this._emptyText = "";
      this._open = false;
      this.change.reset();
      this.painter.timeline.use(this._frames);
      this.card.order.hidden = true;
      this.card.pause.dataset.asked = "";
      this._tell("", "");
      this._say("");
      this._request();
    }

    /** Say what a frame means to those who listen. */
    _tellOf(frame) {
      switch (frame.kind) {
        case "begin":
        case "read":
          this._tick();
          break;
        case "draft":
          if (frame.step === 1 && frame.block > 0) this._say(`Block ${frame.block + 1}.`);
          break;
        case "pause":
          this.card.pause.dataset.asked = "";
          this._setState("paused");
          this._say("Paused.");
          break;
        case "resume":
          this.card.pause.dataset.asked = "";
          this._setState("live");
          this._say("Generating.");
          break;
        case "note":
          this._tell(frame.text, "note");
          break;
        case "error":
          this._tell(frame.text, "error");
          this._say(frame.text);
          break;
        case "touch":
          if (frame.what === "pin") this._event("pinned", frame);
          break;
        case "end":
          this._setState("done");
          if (this._said !== "error") this._say(DG.ended(this._frames));
          break;
      }
      if (TOLD.has(frame.kind)) this._event(frame.kind, frame);
    }

    _connected() {
      this._isConnected = true;
      if (!this._frames.next) this._tick();
      if (this._state === "lost") {
        this._tell("", "");
        this._setState(this._frames.paused ? "paused" : "live");
      }
      this._request();
    }

    _lost(text) {
      this._isConnected = false;
      this._setState("lost");
      this._tell(text, "error");
      this._say(text);
    }

    /** The connection is lost for good. */
    _leave(text) {
      this._run = null;
      clearInterval(this._clock);
      this._lost(text);
    }

    /** Count the seconds from now on, while nothing can be seen yet. */
    _tick() {
      this._since = performance.now();
      clearInterval(this._clock);
      this._clock = setInterval(() => {
        if (this._frames.shots.length || this._state === "done") clearInterval(this._clock);
        this._request();
      }, 1000);
    }

    _setState(state) {
      if (state === this._state) return;
      this._state = state;
      this._event("state", { state });
      this._request();
    }

    _event(name, detail) {
      try {
        this.options.onevent?.(name, detail);
      } catch (fault) {
        console.error(fault);
      }
    }

    _say(text) {
      DG.put(this.card.status, text);
    }

    /** A sentence on the card: a "note", an "error", or nothing. */
    _tell(text, kind) {
      this._said = kind;
      this.card.said.dataset.kind = kind;
      this.card.said.hidden = !text;
      DG.put(this.card.said, text);
    }

    _fault(fault) {
      console.error(fault);
      this._tell(`This could not be drawn: ${fault.message}. The answer goes on.`, "error");
    }

    // What is shown.

    _show(index, byUser = false) {
      const { shots } = this._frames;
      this._index = Math.min(Math.max(index, -1), shots.length - 1);
      this._live = !this.player.playing && this._index === shots.length - 1;
      if (byUser) for (const peer of this._peers) peer._join(shots[this._index]);
      this._request();
    }

    /** Show the step that another canvas shows, or the nearest before it in the same block. */
    _join(other) {
      if (!other) return;
      this.player.stop();
      const { shots, blocks } = this._frames;
      const same = ({ answer, block }) => answer === other.answer && block === other.block;
      const k = blocks.findLastIndex((first) => same(shots[first]));
      if (k < 0) return;
      const end = blocks[k + 1] ?? shots.length;
      let index = blocks[k];
      while (index + 1 < end && shots[index + 1].step <= other.step) index += 1;
      this._show(index);
    }

    /** Draw at the next animation frame, once. */
    _request() {
      this._frame ||= requestAnimationFrame(() => {
        this._frame = 0;
        try {
          this._paint();
        } catch (fault) {
          this._fault(fault);
        }
      });
    }

    _paint() {
      const frames = this._frames;
      const shot = frames.shots[this._index];
      this._givens = DG.boardOf(frames, shot);
      this.painter.paint({
        frames,
        shot,
        index: this._index,
        view: this._viewNow(),
        givens: this._givens,
        state: this._state,
        live: this._live,
        playing: this.player.playing,
        open: this._open,
        heat: this._heat,
        room: this._room(),
        controls: Boolean(this.options.controls && this._run),
        held: this._held(),
        empty: this._emptyText,
        waiting: this._waiting(shot),
      });
      this.change.paint();
      this._inspect();
    }

    /** What there is to wait for, and how long it has been; null: nothing. */
    _waiting(shot) {
      const waits = ["live", "lost"].includes(this._state) && (this._run || this.frames.length);
      if (shot || !waits) return null;
      const seconds = (performance.now() - this._since) / 1000;
      return { connected: this._isConnected, seconds };
    }

    /** How many steps the map has room for: while running, all that this block may take. */
    _room() {
      const last = this._frames.shots.at(-1);
      return last && this._state !== "done" ? last.first + last.max : 0;
    }

    _inspect(at = this._pointed ?? this.change.cursor) {
      const known = at >= 0 && this._index >= 0 && at < this._frames.shots[this._index].c.length;
      DG.put(this.card.inspector, known ? DG.facts(this._frames, this._index, at) : "");
    }

    _viewNow() {
      return this._view === "board" && !this._givens ? "guess" : this._view;
    }

    _speed() {
      const { value } = this.card.speed;
      return value === "even" ? value : Number(value);
    }

    /** Whether the canvas can be changed: held, and the newest step is shown. */
    _held() {
      const newest = this._index >= 0 && this._index === this._frames.shots.length - 1;
      return this._state === "paused" && newest && Boolean(this.options.controls && this._run);
    }

    _host() {
      const widget = this;
      const shot = () => widget._frames.shots[widget._index];
      const ids = () => (widget._viewNow() === "raw" ? shot().c : shot().g);
      return {
        surface: () => (widget._viewNow() === "board" ? this.painter.board : this.painter.tokens),
        shot,
        ids,
        text: (positions) => {
          const texts = DG.textsOf(ids(), widget._frames.texts);
          return positions.map((at) => texts[at]).join("");
        },
        held: () => widget._held(),
        send: (command) => widget._run?.send(command),
        moved: (at) => widget._inspect(at),
      };
    }

    // What somebody does.

    _listen() {
      const { card } = this;
      this._gone = new AbortController();
      const on = (element, name, act) =>
        element.addEventListener(name, act, { signal: this._gone.signal });
      for (const button of card.views) on(button, "click", () => this.view(button.dataset.view));
      on(card.heat, "click", () => this._toggle("_heat"));
      on(card.scrub, "input", () => this.show(Number(card.scrub.value)));
      on(card.first, "click", () => this.show(0));
      on(card.play, "click", () => (this.player.playing ? this.stop() : this.play()));
      on(card.speed, "change", () => this.player.playing && this.play());
      on(card.live, "click", () => this.show(this._frames.shots.length - 1));
      on(card.pause, "click", () => this._askPause());
      on(card.step, "click", () => this._run?.send({ do: "step" }));
      on(card.stop, "click", () => this._run?.send({ do: "stop" }));
      on(card.canvas, "pointerover", (event) => this._point(DG.positionOf(event.target)));
      on(card.canvas, "pointerleave", () => this._point(-1));
      on(card.canvas, "click", (event) => event.target.closest(".dg-remark") && this._toggle("_open"));
      on(card.canvas, "keydown", (event) => this._key(event));
      on(card.map, "pointerdown", (event) => this._seek(event));
      on(card.map, "pointermove", (event) => event.buttons & 1 && this._seek(event));
      this._watch(on);
    }

    /** Sizes and colours change without us. */
    _watch(on) {
      const theme = () => {
        this.painter.timeline.theme();
        this._request();
      };
      this._sizes = new ResizeObserver(() => {
        this.painter.timeline.resize();
        this.change.place();
        this._request();
      });
      this._sizes.observe(this.card.map);
      this._themes = new MutationObserver(theme);
      for (const element of [document.documentElement, document.body])
        this._themes.observe(element, { attributeFilter: ["class"] });
      on(matchMedia("(prefers-color-scheme: dark)"), "change", theme);
    }

    _toggle(name) {
      this[name] = !this[name];
      this._request();
    }

    _askPause() {
      if (this._state === "paused") this._run?.send({ do: "resume" });
      else if (this._run?.send({ do: "pause" })) this.card.pause.dataset.asked = "1";
      this._request();
    }

    _point(at) {
      this._pointed = at < 0 ? undefined : at;
      this._inspect();
    }

    _key(event) {
      if (event.target !== this.card.canvas || event.key.toLowerCase() !== "t") return;
      if (!event.ctrlKey && !event.metaKey && !event.altKey) this._toggle("_open");
    }

    _seek(event) {
      if (!this._frames.shots.length || event.button > 0) return;
      const { map } = this.card;
      if (event.type === "pointerdown") map.setPointerCapture(event.pointerId);
      const box = map.getBoundingClientRect();
      this.show(this.painter.timeline.at((event.clientX - box.left) / box.width, this._room()));
    }
  }

  /** The widget in `root`, an empty element; the one that is there already, if any. */
  function mount(root, options = {}) {
    const there = root.dgCanvas;
    if (there && root.contains(there.card.root)) return there;
    there?.destroy();
    return (root.dgCanvas = new Widget(root, options));
  }

  /** Canvases in step: what one is made to show, the others show. */
  function sync(widgets) {
    for (const one of widgets) for (const other of widgets) if (one !== other) one._peers.add(other);
  }

  Object.assign(DG, { mount, sync });
})((globalThis.DGCanvas ??= {}));
