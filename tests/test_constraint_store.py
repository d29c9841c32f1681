"""Compiled constraints on disk: used where they are whole, and never in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dg_mlx.canvas.automaton import Automata
from dg_mlx.canvas.constraint import Constraint, Guides, Vocabulary
from dg_mlx.canvas.store import FILES

PIECES = (b"a", b"b", b"ab", None, "é".encode(), b"")
VOCABULARY = Vocabulary(pieces=PIECES, ends=(3,), opens=None, closes=None)
ANSWER = Constraint.regex("(?:ab|é)+b?")


@pytest.fixture
def compiled(monkeypatch):
    """The expressions that were compiled, in turn."""
    found, compile_ = [], Automata.of
    monkeypatch.setattr(
        Automata, "of", lambda regex, pieces: (found.append(regex), compile_(regex, pieces))[1]
    )
    return found


def same(one, two):
    assert one.class_V.tolist() == two.class_V.tolist()
    assert one.accepts_Q.tolist() == two.accepts_Q.tolist()
    for part in ("sources_E", "classes_E", "targets_E"):
        assert np.array_equal(getattr(one.edges, part), getattr(two.edges, part))


def test_another_process_compiles_nothing(tmp_path, compiled):
    first = Guides(VOCABULARY, tmp_path / "new").of(ANSWER)
    second = Guides(VOCABULARY, tmp_path / "new").of(ANSWER)
    assert compiled == [ANSWER.pattern]
    same(first, second)
    second.check("abéb")
    with pytest.raises(AssertionError):
        second.check("ba")


def test_another_vocabulary_and_another_constraint_are_others(tmp_path, compiled):
    Guides(VOCABULARY, tmp_path).of(ANSWER)
    for pieces in (PIECES[::-1], (b"ab", b"", *PIECES[2:]), (*PIECES[:3], b"", *PIECES[4:])):
        Guides(Vocabulary(pieces=pieces, ends=(2,), opens=None, closes=None), tmp_path).of(ANSWER)
    Guides(VOCABULARY, tmp_path).of(Constraint.regex("a"))
    assert len(compiled) == 5
    # An answer ends elsewhere, but means the same.
    ends = Vocabulary(pieces=PIECES, ends=(3, 5), opens=None, closes=None)
    Guides(ends, tmp_path).of(ANSWER)
    assert len(compiled) == 5


@given(st.integers(0, 10**6), st.binary(max_size=3), st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_damaged_file_is_compiled_anew(tmp_path_factory, at, put, cut):
    folder = tmp_path_factory.mktemp("damaged")
    first = Guides(VOCABULARY, folder).of(ANSWER)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    at %= len(whole)
    file.write_bytes(whole[:at] + put + (b"" if cut else whole[at + len(put) :]))
    same(Guides(VOCABULARY, folder).of(ANSWER), first)
    assert file.read_bytes() == whole


def test_a_file_of_another_constraint_is_not_taken_for_it(tmp_path, compiled):
    Guides(VOCABULARY, tmp_path).of(ANSWER)
    (file,) = tmp_path.iterdir()
    Guides(VOCABULARY, tmp_path).of(Constraint.regex("a"))
    (other,) = set(tmp_path.iterdir()) - {file}
    file.write_bytes(other.read_bytes())
    Guides(VOCABULARY, tmp_path).of(ANSWER).check("ab")
    assert compiled == [ANSWER.pattern, "a", ANSWER.pattern]


@pytest.mark.parametrize("broken", ["mkdir", "write_bytes", "replace", "read_bytes"])
def test_a_disk_that_is_full_or_read_only_is_no_error(tmp_path, monkeypatch, broken):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"pathlib.Path.{broken}", fail)
    for _ in range(2):
        Guides(VOCABULARY, tmp_path / "new").of(ANSWER).check("ab")
    monkeypatch.undo()
    assert broken == "read_bytes" or not [*(tmp_path).rglob("*.*")]  # nothing is left half written


def test_a_folder_that_is_a_file_is_no_error(tmp_path):
    (tmp_path / "new").write_text("")
    Guides(VOCABULARY, tmp_path / "new").of(ANSWER).check("ab")


def test_those_used_longest_ago_go_first(tmp_path, compiled):
    Guides(VOCABULARY, tmp_path).of(ANSWER)
    (kept,) = tmp_path.iterdir()
    guides = Guides(VOCABULARY, tmp_path)
    for number in range(FILES + 10):
        for age, file in enumerate(sorted(tmp_path.iterdir(), key=os.path.getmtime)):
            os.utime(file, (1000 + age, 1000 + age))  # else all are of one moment
        guides.of(Constraint.regex(f"a{{{number}}}b"))
        Guides(VOCABULARY, tmp_path).of(ANSWER)
    assert len([*tmp_path.iterdir()]) == FILES and kept.exists()
    assert compiled.count(ANSWER.pattern) == 1


def test_the_users_cache_is_where_the_platform_has_it(tmp_path):
    code = (
        "import dg_mlx\n"
        "from dg_mlx.canvas.constraint import Constraint\n"
        "engine = dg_mlx.load('nano', backend='cpu')\n"
        "settings = engine.settings.replace(max_denoising_steps=1, max_new_tokens=4)\n"
        "print(engine.generate('x', settings=settings, constraint=Constraint.regex('[0-9]')).text)"
    )
    environ = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) in range(10)
    assert len([*(tmp_path / "dg-mlx" / "constraints").iterdir()]) == 1
