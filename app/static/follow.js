// A run's frames over a WebSocket, each once and in order, through lost connections.
(function (DG) {
  "use strict";

  const SOONEST = 500; // milliseconds between tries
  const LATEST = 5000;
  const GONE = 4404;
  const DENIED = 4403;

  /**
   * Follow the run at `path`. `on`: `next()` gives the number of the frame that is wanted,
   * `frame(frame)` takes one, `open()`, `lost()`, `gone()` and `denied()` tell of the connection.
   * The result: `send(command)` (false: there is no connection), and `close()`.
   */
  function follow(path, on) {
    let socket = null;
    let timer = 0;
    let wait = SOONEST;
    let over = false;

    function open() {
      const url = new URL(path, location.href);
      url.protocol = url.protocol.replace(/^http/, "ws");
      url.searchParams.set("from", on.next());
      socket = new WebSocket(url);
      const mine = socket;
      mine.onopen = () => on.open();
      mine.onmessage = ({ data }) => {
        for (const line of data.split("\n")) if (line && mine === socket && !over) take(line);
      };
      mine.onclose = ({ code }) => mine === socket && closed(code);
    }

    function take(line) {
      let frame;
      try {
        frame = JSON.parse(line);
      } catch {
        return again();
      }
      if (!Number.isInteger(frame?.n) || frame.n > on.next()) return again();
      if (frame.n < on.next()) return;
      wait = SOONEST;
      on.frame(frame);
      if (frame.kind === "end") close();
    }

    /** What came is damaged or has a gap: ask for it again. */
    function again() {
      const damaged = socket;
      closed(0);
      damaged.close();
    }

    function closed(code) {
      socket = null;
      if (over) return;
      if (code === GONE || code === DENIED) {
        over = true;
        if (code === GONE) on.gone();
        else on.denied();
        return;
      }
      on.lost();
      timer = setTimeout(open, wait);
      wait = Math.min(wait * 2, LATEST);
    }

    function send(command) {
      if (socket?.readyState !== WebSocket.OPEN) return false;
      socket.send(JSON.stringify(command));
      return true;
    }

    function close() {
      over = true;
      clearTimeout(timer);
      const last = socket;
      socket = null;
      last?.close();
    }

    open();
    return { send, close };
  }

  Object.assign(DG, { followRun: follow });
})((globalThis.DGCanvas ??= {}));
