// The parts of the page that are drawn here. Each takes the element that is its place, the
// component's properties, `trigger(event, data)` and `watch(name, changed)`, as Gradio gives them.
(function () {
  "use strict";

  const Page = (window.DGPage = {});

  /** An element: make("button", {class: "x", onclick: f}, "text", child). */
  function make(tag, given = {}, ...inside) {
    const found = document.createElement(tag);
    for (const [name, value] of Object.entries(given)) {
      if (name.startsWith("on")) found[name] = value;
      else if (value === true) found.setAttribute(name, "");
      else if (value !== false && value != null) found.setAttribute(name, value);
    }
    found.append(...inside.filter((child) => child != null));
    return found;
  }
  Page.make = make;

  /** Calls `draw(value)` now and whenever the component's value changes; the value is JSON. */
  function follow(props, watch, draw) {
    const now = () => draw(JSON.parse(props.value || "{}"));
    watch("value", now);
    now();
  }
  Page.follow = follow;

  Page.host = (element) => element.querySelector(".dg-host") || element;

  // The page's address remembers its conversation, so that a reload comes back to it.

  Page.remember = (id) => {
    const url = new URL(location.href);
    if (id && url.searchParams.get("c") !== id) {
      url.searchParams.set("c", id);
      history.replaceState(null, "", url);
    }
    return id;
  };

  // Canvases, by the id of their component.

  const canvases = {};

  Page.canvasOf = (id) => canvases[id];

  /** End the answer of a canvas. */
  Page.stop = (id) => canvases[id]?.card.stop.click();

  /** Its value: {run: path}, {recording: path} or {text}. Events: commit, end. */
  Page.canvas = (element, props, trigger, watch) => {
    const owner = element.closest("[id^='dg-canvas']");
    const tools = make("span", { hidden: true });
    const root = make("div");
    const file = make("input", { type: "file", accept: ".json,.gz", hidden: true,
      "data-testid": "recording-file" });
    file.onchange = () => file.files[0] && open(file.files[0]);
    const choose = make("button", { type: "button", class: "dg-small", "data-testid": "open-recording",
      onclick: () => file.click() }, "Open a recording");
    Page.host(element).replaceChildren(root, make("div", { class: "dg-saves" }, choose, file, tools));
    let shown = "";
    const widget = DGCanvas.mount(root, {
      label: props.label || "Canvas",
      controls: true,
      onevent: (name, detail) => {
        document.dispatchEvent(
          new CustomEvent("dg-canvas", { detail: { id: owner.id, name, detail } }),
        );
        if (name === "gone") trigger("end", { message: null });
        if (name === "error") Page.say(detail.text);
        if (name === "commit") trigger("commit", { block: detail.block });
        if (name === "end") {
          saves(tools, shown, detail);
          trigger("end", { message: detail.message });
        }
      },
    });
    canvases[owner.id] = widget;
    const open = async (chosen) => {
      const answer = await fetch("dg/recordings", { method: "POST", body: chosen });
      file.value = "";
      if (!answer.ok) return Page.say(await answer.text());
      shown = "";
      tools.hidden = true;
      widget.load(await answer.json());
    };
    follow(props, watch, (value) => {
      const path = value.run || value.recording || "";
      if (path && path === shown) return;
      shown = path;
      tools.hidden = true;
      if (value.run) widget.follow("/" + value.run);
      else if (value.recording) load(widget, value.recording, tools);
      else widget.clear(value.text);
    });
  };

  async function load(widget, path, tools) {
    const answer = await fetch(path);
    if (!answer.ok) {
      widget.clear("This recording is not there any more.");
      return;
    }
    widget.load(await answer.json());
    links(tools, path);
  }

  /** Where the frames of a run can be had once it is over. */
  function saves(tools, shown, end) {
    if (end.message) links(tools, `dg/recordings/${end.conversation}/${end.message}`);
    else links(tools, shown.replace(/\/ws$/, "/recording"));
  }

  function links(tools, path) {
    const link = (form, text) =>
      make(
        "a",
        { href: `${path}?form=${form}&save=1`, download: true, "data-testid": `save-${form}` },
        text,
      );
    tools.replaceChildren(
      " · Save this one: ",
      link("html", "HTML page"),
      " · ",
      link("json", "JSON"),
    );
    tools.hidden = false;
  }

  // What went wrong, in a line, until it is read.

  Page.notice = (element, props, trigger, watch) => {
    const text = make("span");
    const close = () => (box.hidden = true);
    const box = make(
      "div",
      { class: "dg-alert", role: "alert", hidden: true, "data-testid": "alert" },
      text,
      make("button", { type: "button", class: "dg-small", "aria-label": "Close", onclick: close }, "✕"),
    );
    Page.host(element).replaceChildren(box);
    Page.say = (line) => {
      text.textContent = line;
      box.hidden = !line;
    };
    follow(props, watch, (value) => Page.say(value.text || ""));
  };

  // The list of conversations. Events: pick, fresh, rename, remove, restore, search, imported.

  Page.conversations = (element, props, trigger, watch) => {
    const list = make("ul", { class: "dg-items", "data-testid": "conversations" });
    const notice = make("div", { class: "dg-notice", role: "status", "data-testid": "notice" });
    const search = make("input", {
      type: "search",
      placeholder: "Search",
      "aria-label": "Search conversations",
      "data-testid": "search",
    });
    let wait = 0;
    search.oninput = () => {
      clearTimeout(wait);
      wait = setTimeout(() => trigger("search", { text: search.value }), 200);
    };
    const file = make("input", { type: "file", accept: ".json,.jsonl", hidden: true });
    file.onchange = () => file.files[0] && send(file.files[0]);
    const send = async (chosen) => {
      const answer = await fetch("dg/conversations", { method: "POST", body: chosen });
      file.value = "";
      if (answer.ok) trigger("imported", { id: (await answer.json()).id });
      else Page.say(await answer.text());
    };
    const button = (text, testid, onclick) =>
      make("button", { type: "button", "data-testid": testid, onclick }, text);
    Page.host(element).replaceChildren(
      make(
        "div",
        { class: "dg-bar" },
        button("New chat", "fresh", () => trigger("fresh", {})),
        button("Import", "import", () => file.click()),
        file,
      ),
      search,
      notice,
      list,
    );
    const folded = element.closest("#dg-conversations");
    if (innerWidth < 800) folded?.querySelector(".toggle-button")?.click(); // it would hide the chat
    follow(props, watch, (value) => {
      draw(list, value, trigger);
      notice.replaceChildren(...(value.problem ? [value.problem] : []));
      if (value.undo) {
        const undo = () => trigger("restore", { id: value.undo.id });
        notice.replaceChildren(
          `“${value.undo.title}” was deleted. `,
          button("Undo", "undo-delete", undo),
        );
      }
    });
  };

  function draw(list, value, trigger) {
    const items = value.items || [];
    list.replaceChildren(...items.map((item) => row(item, item.id === value.current, trigger)));
    if (!items.length) {
      const text = value.query ? "Nothing is found." : "Conversations are kept here.";
      list.append(make("li", { class: "dg-quiet" }, text));
    }
  }

  function row(item, current, trigger) {
    const open = make(
      "button",
      {
        type: "button",
        class: "dg-open",
        "aria-current": current ? "true" : null,
        "data-testid": "open",
        title: item.problem || item.title,
        onclick: () => trigger("pick", { id: item.id }),
      },
      make("span", { class: "dg-name" }, item.title),
      make("span", { class: "dg-quiet" }, item.problem || `${ago(item.updated)} · ${item.count}`),
    );
    const name = () => {
      const box = make("input", { value: item.title, "aria-label": "Name", "data-testid": "name" });
      let over = false;
      const finish = (save) => {
        if (over) return;
        over = true;
        if (save) trigger("rename", { id: item.id, title: box.value });
        box.replaceWith(open);
        open.focus();
      };
      box.onkeydown = (event) => {
        if (event.key === "Enter" || event.key === "Escape") finish(event.key === "Enter");
      };
      box.onblur = () => finish(true);
      open.replaceWith(box);
      box.select();
    };
    const small = (text, label, testid, onclick) =>
      make(
        "button",
        { type: "button", class: "dg-small", "aria-label": label, title: label, onclick,
          "data-testid": testid },
        text,
      );
    const save = (form) =>
      make(
        "a",
        { href: `dg/conversations/${item.id}/file?form=${form}`, download: true,
          "data-testid": `export-${form}` },
        { json: "JSON", md: "Markdown", html: "HTML" }[form],
      );
    const more = make(
      "details",
      { class: "dg-more" },
      make("summary", { "aria-label": `Export ${item.title}`, title: "Export" }, "⤓"),
      make("span", {}, save("md"), save("html"), save("json")),
    );
    return make(
      "li",
      { class: current ? "dg-current" : "", "data-id": item.id },
      open,
      small("✎", `Rename ${item.title}`, "rename", name),
      more,
      small("✕", `Delete ${item.title}`, "remove", () =>
        trigger("remove", { id: item.id, title: item.title }),
      ),
    );
  }

  function ago(time) {
    const seconds = (Date.now() - new Date(time)) / 1000;
    const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
    const [unit, size] = units.find(([, size]) => seconds >= size) || ["minute", 60];
    const count = -Math.floor(seconds / size);
    return count
      ? new Intl.RelativeTimeFormat(undefined, { style: "narrow" }).format(count, unit)
      : "just now";
  }

  // Below the messages: other versions, and answers to see again. Events: pick, replay, redo.

  Page.turns = (element, props, trigger, watch) => {
    const bar = make("div", { class: "dg-turns", "data-testid": "turns" });
    Page.host(element).replaceChildren(bar);
    follow(props, watch, (value) => {
      const step = (label, text, id) =>
        make(
          "button",
          { type: "button", class: "dg-small", "aria-label": label, disabled: !id,
            "data-testid": "version", onclick: () => trigger("pick", { id }) },
          text,
        );
      const versions = (value.versions || []).map((v) =>
        make(
          "span",
          { class: "dg-version", title: v.text },
          v.role === "user" ? "Question " : "Answer ",
          step("Version before", "‹", v.before),
          ` ${v.number}/${v.of} `,
          step("Version after", "›", v.after),
        ),
      );
      const replays = value.replays || [];
      const choose = make("select", {
        "aria-label": "Show an answer on the canvas again",
        "data-testid": "replay",
        onchange: () => choose.value && trigger("replay", { id: choose.value }),
      });
      choose.append(make("option", { value: "" }, "See again…"));
      replays.forEach((r) => choose.append(make("option", { value: r.id }, r.text)));
      const redo = make(
        "button",
        { type: "button", "data-testid": "redo", onclick: () => trigger("redo", {}) },
        "Redo",
      );
      bar.replaceChildren(
        ...versions,
        ...(replays.length ? [choose] : []),
        ...(value.undone ? [redo] : []),
      );
    });
  };
})();
