// A Sudoku in an answer, `A 1342` a line, as a board. `.` is a blank.
(function (DG) {
  "use strict";

  /** Rows and columns of a box. */
  const BOXES = { 4: [2, 2], 6: [2, 3], 9: [3, 3] };
  const ROW = /^([A-I]) ([1-9.]{4,9})$/;

  /** The cells of the first puzzle in a text, row by row; null: there is none. */
  function puzzleIn(text) {
    let rows = [];
    for (const line of text.split("\n")) {
      const [, letter, cells] = ROW.exec(line.trim()) ?? [];
      const expected = String.fromCharCode(65 + rows.length);
      if (letter === "A") rows = [];
      else if (letter !== expected || cells.length !== rows[0]?.length) {
        rows = [];
        continue;
      }
      rows.push(cells);
      const size = rows[0].length;
      if (rows.length === size && size in BOXES) {
        const all = rows.join("");
        return /^[.\d]*$/.test(all) && ![...all].some((cell) => cell > String(size)) ? all : null;
      }
    }
    return null;
  }

  /** Lines of the visible guess, as characters with the positions that they come from. */
  function linesOf(shot, known) {
    const parts = DG.partsOf(shot);
    const texts = DG.textsOf(shot.g, known, shot.count);
    const lines = [[]];
    texts.forEach((text, at) => {
      if (parts[at] !== undefined) return;
      for (const char of text)
        if (char === "\n") lines.push([]);
        else lines.at(-1).push({ char, at });
    });
    return lines;
  }

  /** What stands in each cell of a board of `size`: `{char, at}`, or null where there is nothing. */
  function cellsOf(shot, known, size) {
    const cells = new Array(size * size).fill(null);
    linesOf(shot, known).forEach((line, k) => {
      const letter = line[0] ? line[0].char.charCodeAt(0) - 65 : -1;
      const row = letter >= 0 && letter < size ? letter : k;
      if (row < size)
        line.slice(2, 2 + size).forEach((cell, col) => (cells[row * size + col] = cell));
    });
    return cells;
  }

  /** Indices of cells whose digit stands in their row, column or box twice. */
  function conflicts(digits, size) {
    const [rows, cols] = BOXES[size];
    const found = new Set();
    const seen = new Map();
    digits.forEach((digit, i) => {
      if (!digit) return;
      const row = Math.floor(i / size);
      const col = i % size;
      const box = Math.floor(row / rows) * (size / cols) + Math.floor(col / cols);
      for (const unit of [`r${row}`, `c${col}`, `b${box}`]) {
        const key = `${unit}=${digit}`;
        if (seen.has(key)) found.add(i).add(seen.get(key));
        else seen.set(key, i);
      }
    });
    return found;
  }

  const known = new WeakMap(); // the run's first frame → its board

  /** Givens of the Sudoku that a run is about (all blank if the prompt has none), or null. */
  function boardOf({ begin, texts }, shot) {
    if (!begin) return null;
    if (!known.has(begin)) known.set(begin, puzzleIn(String(begin.prompt ?? "")));
    if (known.get(begin) || !shot || shot.settled < shot.count) return known.get(begin);
    const lines = linesOf(shot, texts).map((line) => line.map(({ char }) => char).join(""));
    const found = puzzleIn(lines.join("\n"));
    if (found) known.set(begin, ".".repeat(found.length));
    return known.get(begin);
  }

  /** Draws boards into `host`. */
  class Board {
    constructor(host) {
      this.host = host;
      this.size = 0;
      this.boxes = [];
    }

    paint(givens, shot, look, known) {
      const size = Math.sqrt(givens.length);
      if (size !== this.size) this._build(size);
      const cells = cellsOf(shot, known, size);
      const digits = cells.map((cell) => (/^[1-9]$/.test(cell?.char ?? "") ? cell.char : ""));
      const wrong = conflicts(digits, size);
      cells.forEach((cell, i) => {
        const given = givens[i] !== ".";
        const changed = given && digits[i] && digits[i] !== givens[i];
        const bad = wrong.has(i) || changed;
        const box = this.boxes[i];
        const text = digits[i] || (given ? givens[i] : cell ? "·" : "");
        if (box.textContent !== text) box.textContent = text;
        const mark = digits[i] ? DG.classOf(look.marks[cell.at]) : "s0";
        const name = `dg-box ${given ? "given" : mark}${bad ? " bad" : ""}`;
        if (box.className !== name) box.className = name;
        if (cell) box.dataset.i = cell.at;
        else delete box.dataset.i;
      });
      this._sum(digits, givens, wrong);
    }

    // As `Tokens`, so that positions can be chosen here too.

    mark(cursor, from, to) {
      for (const box of this.boxes) {
        const at = Number(box.dataset.i ?? NaN);
        box.toggleAttribute("data-cursor", at === cursor);
        box.toggleAttribute("data-chosen", at >= from && at <= to);
      }
    }

    visible(at) {
      return this.element(at) !== undefined;
    }

    first() {
      return Number(this.boxes.find((box) => box.dataset.i)?.dataset.i ?? -1);
    }

    last() {
      return Number(this.boxes.findLast((box) => box.dataset.i)?.dataset.i ?? -1);
    }

    element(at) {
      return this.boxes.find((box) => box.dataset.i === String(at));
    }

    beside(at, direction) {
      const from = this.boxes.indexOf(this.element(at));
      if (from < 0) return this.first();
      const way = { left: -1, right: 1, up: -this.size, down: this.size }[direction];
      for (let i = from + way; i >= 0 && i < this.boxes.length; i += way)
        if (this.boxes[i].dataset.i) return Number(this.boxes[i].dataset.i);
      return at;
    }

    _sum(digits, givens, wrong) {
      const kept = [...givens].every((given, i) => given === "." || given === digits[i]);
      const full = digits.every(Boolean);
      const text = wrong.size
        ? `${wrong.size} cells in conflict`
        : full && kept
          ? "Solved: every row, column and box has each digit once"
          : full
            ? "No conflicts, but a given digit was changed"
            : "No conflicts so far";
      if (this.note.textContent !== text) this.note.textContent = text;
    }

    _build(size) {
      const [rows, cols] = BOXES[size];
      this.size = size;
      const grid = document.createElement("div");
      grid.className = "dg-sudoku";
      grid.style.setProperty("--size", size);
      this.boxes = Array.from({ length: size * size }, (_, i) => {
        const box = document.createElement("div");
        box.dataset.right = i % size === size - 1 ? "edge" : (i % size) % cols === cols - 1;
        const row = Math.floor(i / size);
        box.dataset.below = row === size - 1 ? "edge" : row % rows === rows - 1;
        return box;
      });
      this.note = document.createElement("div");
      this.note.className = "dg-board-note";
      grid.append(...this.boxes);
      this.host.replaceChildren(grid, this.note);
    }
  }

  Object.assign(DG, { Board, boardOf, puzzleIn });
})((globalThis.DGCanvas ??= {}));
