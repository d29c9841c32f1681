"""Counting right answers: what counts as right, what an answer cost, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import fakes
import pytest

import dg_mlx
from dg_mlx import cli
from dg_mlx.errors import PromptError, SettingsError
from dg_mlx.evaluate import Outcome, evaluate, read_questions, rows, suite_questions
from dg_mlx.events import Reply
from dg_mlx.tasks import SUITES


def line(answer: Any, **more: Any) -> dict[str, Any]:
    last = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
    return {"messages": [{"role": "user", "content": "hi"}, last], **more}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(x) + "\n" if not isinstance(x, str) else x for x in lines))
    return path


def reply(text: str, calls: Any = ()) -> Reply:
    return Reply(
        text=text,
        ids=[1],
        reason="end",
        stats=fakes.stats(1),
        trust=fakes.trust(1),
        tool_calls=list(calls),
    )


def test_right_is_right_to_the_last_character(tmp_path):
    [question] = read_questions(write(tmp_path / "sums.jsonl", line("4\n")))
    assert question.task == "sums"
    assert list(question.messages) == [{"role": "user", "content": "hi"}]
    assert question.right(reply(" 4"))
    for wrong in ("4.", "", "44"):
        assert not question.right(reply(wrong))
    assert not question.right(reply("4", [{"function": {"name": "f", "arguments": {}}}]))


def test_a_tool_call_is_right_by_name_and_arguments(tmp_path):
    def call(arguments: Any, name: str = "add") -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "arguments": arguments}}

    answer = {"role": "assistant", "content": None, "tool_calls": [call('{"a": 1, "b": 2}')]}
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    [question] = read_questions(write(tmp_path / "a.jsonl", line(answer, tools=tools, task="t")))
    assert (question.task, question.tools) == ("t", tools)
    assert question.right(reply("", [call({"b": 2, "a": 1})]))
    assert not question.right(reply("", [call({"a": 1, "b": 3})]))
    assert not question.right(reply("", [call({"a": 1, "b": 2}, name="sub")]))
    assert not question.right(reply(""))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"is empty; give a JSONL file of chats\."),
        ("{", r":1: Expecting property name"),
        ("\n[]", r':2: a line is \{"messages": \[…\]\} with messages, task, thinking, tools and'),
        ('{"messages": [], "x": 1}', r":1: a line is"),
        (json.dumps({"messages": []}), r":1: the last message must be the assistant's"),
        (json.dumps(line({"role": "user", "content": "x"})), r":1: the last message must be"),
        (json.dumps(line("")), r":1: the right answer must be text or tool calls\."),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    with pytest.raises(PromptError, match=message):
        read_questions(write(tmp_path / "a.jsonl", content))


def test_figures_per_task():
    def outcome(task: str, right: bool, steps: int, *, stopped: bool = True) -> Outcome:
        return Outcome(
            task=task, right=right, steps_per_block=(steps, steps), tokens=8, seconds=2.0,
            stopped=stopped, text="",
        )  # fmt: skip

    found = rows([
        outcome("a", True, 1), outcome("a", False, 3), outcome("b", True, 2),
        outcome("a", False, 2, stopped=False), outcome("a", True, 2),
    ])  # fmt: skip
    a, b, both = found
    assert (a.task, b.task, both.task) == ("a", "b", "all")
    assert (a.count, a.solved, a.steps_per_block) == (4, 0.5, 2)
    assert a.error == pytest.approx(math.sqrt(0.25 / 4))
    assert a.tokens_per_step == pytest.approx(32 / 16)
    assert a.sure_and_wrong == 0.25
    assert (both.count, both.solved) == (5, 0.6)
    assert (b.error, b.seconds) == (0, 2)


def test_every_question_has_a_seed_of_its_own(tmp_path):
    engine = fakes.FakeEngine(["x"], ["4"], ["4"])
    seeds = []
    engine.generate = lambda messages, **options: (
        seeds.append(options["seed"]), dg_mlx.events.collect(engine.stream(messages, **options))
    )[1]  # fmt: skip
    questions = read_questions(write(tmp_path / "a.jsonl", line("4"), line("4"), line("5")))
    found = list(evaluate(engine, questions, seed=7))
    assert [outcome.right for outcome in found] == [False, True, False]
    assert seeds == [7, 8, 9]
    assert all(outcome.stopped for outcome in found)


def test_the_command(tmp_path, capsys):
    puzzle, solved = "A 1.3.\nB .41.\nC ....\nD ..21", "A 1234\nB 3412\nC 2143\nD 4321"
    chat = {"messages": [{"role": "user", "content": puzzle}]}
    right = {"messages": [*chat["messages"], {"role": "assistant", "content": solved}]}
    wrong = {"messages": [*chat["messages"], {"role": "assistant", "content": "?"}], "task": "b"}
    path = write(tmp_path / "a.jsonl", right, wrong, right)
    out = tmp_path / "answers.jsonl"
    assert (
        cli.main(["eval", "--suite", str(path), "--model", "nano", "--out", str(out), "--json"])
        == 0
    )
    data = json.loads(capsys.readouterr().out)
    assert [(row["task"], row["solved"]) for row in data["tasks"][:2]] == [("a", 1.0), ("b", 0.0)]
    assert data["settings"]["max_denoising_steps"] == 48
    answers = [json.loads(text) for text in out.read_text().splitlines()]
    assert [answer["text"] for answer in answers] == [solved] * 3
    assert (
        cli.main(["eval", "--suite", str(path), "--model", "nano", "--steps", "1", "--count", "2"])
        == 0
    )
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["task", "answers", "right"]
    assert table[1].split()[4] == "1.0", "one step a block"
    assert len(table) == 4


def test_a_suite_asks_held_out_questions_of_every_task(tmp_path):
    sudoku = suite_questions("sudoku", 2, tmp_path / "a", seed=3)
    assert [question.task for question in sudoku] == [n for n in SUITES["sudoku"] for _ in "ab"]
    again = suite_questions("sudoku", 2, tmp_path / "b", seed=3)
    assert [q.messages for q in sudoku] == [q.messages for q in again]
    some = suite_questions("nano", 2, tmp_path / "e", only=["sort", "add"])
    assert [q.task for q in some] == ["sort", "sort", "add", "add"]
    with pytest.raises(SettingsError, match="task is 'sing'; choose from sudoku-4x4, "):
        suite_questions("nano", 2, tmp_path / "f", only=["sing"])
    every = suite_questions("nano", 1, tmp_path / "c")
    assert [question.task for question in every] == list(SUITES["nano"])
    text_only = suite_questions("nano", 1, tmp_path / "d", pictures=False)
    assert {q.task for q in every} - {q.task for q in text_only} == {
        name for name in SUITES["nano"] if name.startswith(("picture", "video"))
    }
    assert any(question.thinking for question in text_only)


def test_nano_on_the_sudoku_suite(capsys):
    assert cli.main(["eval", "--suite", "sudoku", "--model", "nano", "--count", "2", "--json"]) == 0
    rows = {row["task"]: row for row in json.loads(capsys.readouterr().out)["tasks"]}
    assert rows["sudoku-4x4"]["solved"] == rows["sudoku-9x9-45"]["solved"] == 1
    assert cli.main(["eval", "--suite", "chess", "--model", "nano"]) == 1
    assert "suite is 'chess'; choose one of nano, sudoku." in capsys.readouterr().err


def test_what_the_command_refuses(tmp_path, capsys):
    path = str(write(tmp_path / "a.jsonl", line("4")))
    for options, message in (
        (["--count", "0"], "--count is 0; it must be 1 or more."),
        (["--out", str(tmp_path / "no" / "a")], "cannot be written (No such file or directory)"),
    ):
        assert cli.main(["eval", "--suite", path, "--model", "nano", *options]) == 1
        assert message in capsys.readouterr().err
    assert cli.main(["eval", "--suite", str(tmp_path / "none.jsonl"), "--model", "nano"]) == 1
    assert "none.jsonl cannot be read" in capsys.readouterr().err
