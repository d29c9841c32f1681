"""Endless Sudoku puzzles with one solution each, as text."""

import ctypes
import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # grid size: rows and columns of one box
HELD_OUT = 16  # one puzzle in this many is kept for evaluation


@cache
def _library() -> ctypes.CDLL:
    """sudoku.c, compiled on first use with the system's C compiler."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sudoku.so"
        source = Path(__file__).with_name("sudoku.c")
        subprocess.run(["cc", "-O3", "-shared", "-fPIC", "-o", path, source], check=True)
        return ctypes.CDLL(str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    """A grid of `size` rows as strings of cells, row by row; '.' is blank."""

    size: int
    cells: str
    solution: str

    @property
    def held_out(self) -> bool:
        """Whether this puzzle belongs to evaluation: never trained on."""
        digest = hashlib.blake2b(self.cells.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % HELD_OUT == 0

    def question(self, *, labels: bool = True) -> str:
        """The puzzle as rows of text."""
        return _rows(self.cells, self.size, labels)

    @property
    def answer(self) -> str:
        """The solved grid as labelled rows of text."""
        return _rows(self.solution, self.size, True)


def _rows(cells: str, size: int, labels: bool) -> str:
    rows = [cells[i : i + size] for i in range(0, size * size, size)]
    return "\n".join(f"{chr(65 + i)} {row}" if labels else row for i, row in enumerate(rows))


def seed(value: int) -> None:
    """Seed the puzzle generator."""
    _library().sudoku_seed(ctypes.c_uint64(value))


def count_solutions(cells: str, size: int) -> int:
    """How many solutions `cells` has, counted up to 2."""
    grid = (ctypes.c_int * 81)(*(0 if cell == "." else int(cell) for cell in cells))
    return _library().sudoku_count(size, *BOXES[size], grid, 2)


def make(size: int, givens: int, *, held_out: bool) -> Puzzle:
    """A fresh puzzle with one solution and exactly `givens` cells given."""
    cells, solution = (ctypes.c_int * (size * size))(), (ctypes.c_int * (size * size))()
    while True:
        _library().sudoku_make(size, *BOXES[size], givens, cells, solution)
        puzzle = Puzzle(
            size=size,
            cells="".join(map(str, cells)).replace("0", "."),
            solution="".join(map(str, solution)),
        )
        if puzzle.held_out == held_out:
            return puzzle
