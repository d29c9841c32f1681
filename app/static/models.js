// The models: what is on the disk and in memory, what can be fetched, conversions, and jobs.
(function () {
  "use strict";

  const { make, follow, host } = DGPage;
  const EVERY_MS = 1000;
  const SOON_MS = 150; // until an action shows
  const NARROW_PX = 680; // tables are then cards; Gradio drops the container queries of styles

  /** Events: use, free, open, fetch, convert, halt, listed. */
  DGPage.models = (element, props, trigger, watch) => {
    const lost = make(
      "p",
      { class: "dg-problem", hidden: true, "data-testid": "lost" },
      "The page's server does not answer. Is it still running?",
    );
    const said = make("p", { class: "dg-unseen", role: "status", "data-testid": "models-said" });
    const act = (event, data) => {
      trigger(event, data);
      setTimeout(poll, SOON_MS);
    };
    const parts = [memory(), shelf(act), jobs(act), offers(act), conversion(act, () => poll())];
    const root = make(
      "div",
      { class: "dg-models", "data-testid": "models" },
      lost,
      said,
      ...parts.map((part) => part.element),
    );
    host(element).replaceChildren(root);
    const tell = changes((text) => (said.textContent = text));
    let asking = false;
    let listed = null;
    let shown = ""; // a job to bring into sight
    async function poll() {
      if (asking || document.visibilityState !== "visible" || !root.checkVisibility()) return;
      asking = true;
      const found = await ask(parts.at(-1).values());
      asking = false;
      lost.hidden = Boolean(found);
      if (!found) return;
      parts.forEach((part) => part.draw(found));
      tell(found);
      const sound = found.models.filter((m) => !m.problem).map((m) => m.name);
      if (listed !== null && listed !== sound.join("\n")) trigger("listed", {});
      listed = sound.join("\n");
      if (shown) root.querySelector(`[data-job="${shown}"]`)?.scrollIntoView({ block: "nearest" });
      shown = "";
    }
    follow(props, watch, (value) => {
      parts.forEach((part) => part.did && part.did(value.did));
      if (value.did === "fetch" || value.did === "convert") shown = value.to;
      poll();
    });
    setInterval(poll, EVERY_MS);
    document.addEventListener("visibilitychange", poll);
    new IntersectionObserver(poll).observe(root);
    new ResizeObserver(([{ contentRect }]) => {
      if (contentRect.width) root.classList.toggle("dg-narrow", contentRect.width < NARROW_PX);
    }).observe(root);
  };

  async function ask(values) {
    try {
      const answer = await fetch(`dg/models?${new URLSearchParams(values)}`, { cache: "no-store" });
      return answer.ok ? await answer.json() : null;
    } catch {
      return null;
    }
  }

  // What the parts are made of.

  function put(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function button(text, testid, act, kind = "button") {
    const found = make("button", { type: kind, "data-testid": testid }, text);
    found.onclick = () => found.ariaDisabled !== "true" && act && act();
    return found;
  }

  /** Whether a button can be pressed. It keeps the focus either way, which `disabled` would not. */
  function able(found, yes) {
    found.ariaDisabled = String(!yes);
  }

  /** A part of the tab under a heading. */
  function section(title, testid, ...inside) {
    const id = `dg-models-${testid}`;
    return make(
      "section",
      { "aria-labelledby": id, "data-testid": testid },
      make("h3", { id }, title),
      ...inside,
    );
  }

  /** A table with its roles: on narrow pages its rows are laid out as cards, which hides them. */
  function table(label, names) {
    const head = names.map((name) =>
      make("th", { scope: "col", role: "columnheader" },
        name || make("span", { class: "dg-unseen" }, "Actions")),
    );
    const body = make("tbody", { role: "rowgroup" });
    const element = make(
      "table",
      { role: "table", "aria-label": label },
      make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...head)),
      body,
    );
    return { element, body };
  }

  function cells(given, ...inside) {
    const made = inside.map((child) => make("td", { role: "cell" }, ...[child].flat()));
    return make("tr", { role: "row", ...given }, ...made);
  }

  /** Draws items below `parent`. An item keeps its elements, and so the focus on them. */
  function keyed(parent, key, create) {
    let rows = new Map();
    return (items) => {
      const now = new Map();
      items.forEach((item, i) => {
        const row = rows.get(item[key]) || create(item);
        row.draw(item);
        now.set(item[key], row);
        const there = parent.children[i];
        if (there !== row.element) parent.insertBefore(row.element, there || null);
      });
      for (const [id, row] of rows) if (!now.has(id)) row.element.remove();
      rows = now;
    };
  }

  /** A line with one field. `send` gets what is written there; the field is cleared by `event`. */
  function line(label, testid, action, event, given, send) {
    const field = make("input", { type: "text", "data-testid": `${testid}-field`, ...given });
    const form = make(
      "form",
      { class: "dg-line", "data-testid": `${testid}-form` },
      make("label", {}, make("span", {}, label), field),
      button(action, testid, null, "submit"),
    );
    form.onsubmit = (submitted) => {
      submitted.preventDefault();
      send(field.value);
    };
    return { element: form, did: (what) => what === event && (field.value = "") };
  }

  // The parts. Each has an element, and draws itself from the state.

  function memory() {
    const meter = make("div", { class: "dg-meter" }, make("span"));
    const text = make("p", { "data-testid": "memory" });
    const draw = ({ memory: found }) => {
      const free = found.free === null ? "" : ` · ${found.free} free`;
      put(text, `Memory: ${found.used} in use · ${found.kept} kept for the next step${free} · ` +
        `${found.machine} in all`);
      meter.firstChild.style.width = `${100 * found.share}%`;
    };
    return { element: make("div", {}, text, meter), draw };
  }

  function shelf(act) {
    const { element, body } = table("Models on this machine", ["Model", "Size", "Fits", "Now", ""]);
    const rows = keyed(body, "name", (model) => shelved(model, act));
    const open = line(
      "Open a folder", "open-folder", "Open", "open",
      { placeholder: "path of a folder with config.json" },
      (folder) => act("open", { folder }),
    );
    return {
      element: section("On this machine", "shelf", element, open.element),
      draw: (state) => rows(state.models),
      did: open.did,
    };
  }

  function shelved(model, act) {
    const name = model.name;
    const size = make("span");
    const fits = make("span", { "data-testid": "fits" });
    const now = make("span", { "data-testid": "now" });
    const use = button("Use", "use", () => act("use", { name }));
    const unload = button("Unload", "unload", () => act("free", { name }));
    const again = button("Fetch the rest", "again", () => act("fetch", { repo: name }));
    [use, unload, again].forEach((b) => b.setAttribute("aria-label", `${b.textContent}: ${model.title}`));
    const named = [
      make("strong", {}, model.title),
      make("span", { class: "dg-quiet dg-place" }, model.place),
    ];
    const actions = make("span", { class: "dg-actions" }, use, unload, again);
    const element = cells({ "data-model": name }, named, size, fits, now, actions);
    const draw = (found) => {
      put(size, found.size);
      put(fits, found.problem || found.fits);
      fits.className = found.problem ? "dg-problem" : "";
      put(now, doing(found));
      able(use, !found.problem && !found.loading && !(found.loaded && found.default));
      able(unload, found.loaded);
      again.hidden = !(found.problem && found.repo);
      element.classList.toggle("dg-current", found.default);
    };
    return { element, draw };
  }

  function doing(found) {
    if (found.loading) return `loading… ${found.seconds} s`;
    if (!found.loaded) return found.default ? "the one that answers; loads when asked" : "not loaded";
    const what = !found.users ? "loaded" : found.users > 1 ? `${found.users} answers run` : "answering";
    return found.default ? `${what} · the one that answers` : what;
  }

  function offers(act) {
    const { element, body } = table("Published models", ["Model", "Size", "Fits", "Disk", ""]);
    const disk = make("p", { class: "dg-quiet", "data-testid": "disk" });
    const rows = keyed(body, "repo", (offer) => offered(offer, act));
    const any = line(
      "Any repo of the hub", "fetch-any", "Download", "fetch", { placeholder: "owner/name" },
      (repo) => act("fetch", { repo }),
    );
    return {
      element: section("To download", "offers", element, disk, any.element),
      draw: (state) => {
        rows(state.offers);
        put(disk, `${state.disk} free on the disk of the cache. Files that are whole are kept when ` +
          "a download is stopped.");
      },
      did: any.did,
    };
  }

  function offered(offer, act) {
    const room = make("span");
    const fetch = button("Download", "fetch", () => act("fetch", { repo: offer.repo }));
    fetch.setAttribute("aria-label", `Download: ${offer.repo}`);
    const named = [
      make("strong", {}, offer.form),
      make("span", { class: "dg-quiet dg-place" }, offer.repo),
    ];
    const element = cells(
      { "data-offer": offer.repo },
      named, offer.size, offer.fits, room, make("span", { class: "dg-actions" }, fetch),
    );
    const draw = (found) => {
      put(room, found.here ? "on this machine" : found.room ? "has room" : "has no room");
      room.className = found.here || found.room ? "" : "dg-problem";
      able(fetch, !found.here && found.room);
    };
    return { element, draw };
  }

  function conversion(act, changed) {
    const known = make("datalist", { id: "dg-models-known" });
    const field = (label, testid, given) => {
      const input = make("input", { type: "text", "data-testid": testid, ...given });
      return [input, make("label", {}, make("span", {}, label), input)];
    };
    const [source, sourced] = field("Source", "source", {
      list: known.id,
      placeholder: "a model above, a folder, or owner/name",
    });
    const [target, aimed] = field("Target folder", "target", {});
    const quant = make("select", { "data-testid": "quant" });
    const compare = make("input", { type: "checkbox", checked: true, "data-testid": "compare" });
    source.oninput = quant.onchange = changed;
    const form = make(
      "form",
      { class: "dg-convert" },
      known,
      sourced,
      make("label", {}, make("span", {}, "Format"), quant),
      aimed,
      make("label", { class: "dg-tick" }, compare, "Compare predictions with the source's"),
      button("Convert", "convert", null, "submit"),
    );
    const values = () => ({ source: source.value, quant: quant.value || "4bit" });
    form.onsubmit = (event) => {
      event.preventDefault();
      act("convert", { ...values(), target: target.value, compare: compare.checked });
    };
    const listed = keyed(known, "name", (model) => {
      return { element: make("option", { value: model.name }), draw: () => {} };
    });
    return {
      element: section("Convert", "conversion", form),
      values,
      draw: (state) => {
        if (!quant.children.length)
          for (const [value, text] of Object.entries(state.formats))
            quant.append(make("option", { value }, text));
        target.placeholder = state.target || "chosen by source and format";
        listed(state.models.filter((model) => !model.problem));
      },
      did: (what) => what === "convert" && (target.value = ""),
    };
  }

  function jobs(act) {
    const list = make("ul", { class: "dg-jobs" });
    const element = section("Downloads and conversions", "jobs", list);
    const rows = keyed(list, "id", (job) => worked(job, act));
    element.hidden = true;
    return {
      element,
      draw: (state) => {
        element.hidden = !state.jobs.length;
        rows(state.jobs);
      },
    };
  }

  function worked(job, act) {
    const bar = make("progress", { "aria-label": job.title });
    const text = make("p", { "data-testid": "job-text" });
    const stop = button("Stop", "halt", () => act("halt", { id: job.id }));
    const use = button("Use", "use-made", () => act("use", { name: job.name }));
    stop.setAttribute("aria-label", `Stop: ${job.title}`);
    use.setAttribute("aria-label", `Use: ${job.name}`);
    const element = make(
      "li",
      { "data-job": job.id, "data-testid": "job", tabindex: -1 },
      make("strong", {}, job.title),
      bar,
      text,
      make("span", { class: "dg-actions" }, stop, use),
    );
    const draw = (found) => {
      const running = found.state === "running";
      element.dataset.state = found.state;
      bar.hidden = !running;
      if (found.done < found.total) {
        bar.max = found.total;
        bar.value = found.done;
      } else bar.removeAttribute("value");
      const far = [found.phase, found.bytes, found.rate, found.left].filter(Boolean).join(" · ");
      put(text, running ? far : found.text);
      text.className = found.state === "failed" ? "dg-problem" : "";
      const left = !running && document.activeElement === stop;
      stop.hidden = !running;
      use.hidden = found.state !== "done";
      if (left) (use.hidden ? element : use).focus();
    };
    return { element, draw };
  }

  /** Tells what has come about since the last state, for those who do not see it. */
  function changes(say) {
    let models = null;
    let states = {};
    return (state) => {
      const told = [];
      const now = Object.fromEntries(state.models.map((m) => [m.name, m.loaded]));
      if (models)
        for (const m of state.models)
          if (m.name in models && m.loaded !== models[m.name])
            told.push(`${m.title} is ${m.loaded ? "loaded" : "unloaded"}.`);
      for (const job of state.jobs)
        if (states[job.id] === "running" && job.state !== "running")
          told.push(`${job.title}: ${job.text}`);
      models = now;
      states = Object.fromEntries(state.jobs.map((job) => [job.id, job.state]));
      if (told.length) say(told.join(" "));
    };
  }
})();
