"""The command line: exit codes, one-line errors, what goes to stdout and what to stderr."""

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest

import dg_mlx
from dg_mlx import cli, units
from dg_mlx.cli import terminal
from dg_mlx.errors import BackendError
from dg_mlx.events import Event

PUZZLE = "A 1.3.\nB .41.\nC ....\nD ..21"


def dg(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The real command, in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "dg_mlx.cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


class Engine(fakes.FakeEngine):
    """Also spells its ids, and notes what an answer is held to."""

    processor = SimpleNamespace(piece=chr)

    def stream(
        self, messages: Any, *, pins: Any = None, constraint: Any = None, **options: Any
    ) -> Iterator[Event]:
        self.held = (pins, constraint)
        return super().stream(messages, **options)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> fakes.FakeEngine:
    """The engine that every verb loads."""
    fake = Engine(["hel", "lo"])
    fake.loaded = []

    def load(name: str, **options: Any) -> fakes.FakeEngine:
        fake.loaded.append((name, options))
        return fake

    monkeypatch.setattr(dg_mlx, "load", load, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return fake


# Help --------------------------------------------------------------------------------------------


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; from dg_mlx.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'mlx', 'transformers', 'numpy', 'torch', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 2  # 0.05 s on an idle machine
    for verb in cli.VERBS:
        assert verb in done.stdout


@pytest.mark.parametrize("verb", ["generate", "chat", "doctor", "models"])
def test_every_verb_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([verb, "--help"])
    assert left.value.code == 0
    assert f"  dg-mlx {verb}" in capsys.readouterr().out


def test_version() -> None:
    done = dg("--version")
    assert (done.returncode, done.stdout) == (0, f"dg-mlx {dg_mlx.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["generate", "--wings"], ["models"]])
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert "usage: dg-mlx" in capsys.readouterr().err


# Errors of the real command ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "hi", "--model", "/no/such/folder"], "there is no folder '/no/such/folder'"),
        (["generate", "hi", "--model", "some/repo", "--offline"], "drop --offline to fetch what"),
        (["generate", "hi", "--model", "nano", "--revision", "v1"], "drop --revision"),
        (["generate", "hi", "--model", "nano", "--backend", "abacus"], "no backend 'abacus'"),
        (["generate", "hi", "--model", "nano", "--dtype", "int3"], "no dtype 'int3'"),
        (["generate", "hi", "--model", "nano", "--steps", "0"], "max_denoising_steps is 0;"),
        (["generate", "hi", "--model", "nano", "--t-max", "0.1"], "t_max is 0.1;"),
        (["generate", "hi", "--adapter", "/no/such"], "/no/such holds no LoRA adapter; give"),
        (["generate", "--model", "nano"], "there is no prompt; write one:"),
        (["generate", "--image", "no.png", "hi"], "there is no image 'no.png'"),
        (["generate", "--tools", "no.json", "hi"], "--tools no.json cannot be read"),
        (["doctor", "--context", "0"], "--context is 0; it must be 1 or more"),
        (["models", "remove", "nano"], "is part of dg-mlx and cannot be removed"),
    ],
)
def test_one_line_and_exit_1(arguments: list[str], message: str) -> None:
    done = dg(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "no --model given" not in line]
    assert len(lines) == 1


def test_wrong_model_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma4"}')
    done = dg("generate", "hi", "--model", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "model_type 'gemma4'; dg-mlx runs 'diffusion_gemma'" in done.stderr


def test_the_real_thing() -> None:
    done = dg("generate", "--model", "nano", "--steps", "2", "--json", PUZZLE)
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert reply["reason"] in ("end", "length")
    assert reply["stats"]["steps_per_block"] == [2]
    assert done.stderr == ""


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m dg_mlx.cli doctor --json --model nano | head -c 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")


# What generate does with an engine ---------------------------------------------------------------


def test_answer_on_stdout_notes_on_stderr(
    engine: fakes.FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "hi"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "hello\n"
    assert "no --model given, so this is nano" in shown.err
    assert engine.loaded[0][0] == "nano"


def test_stats_only_when_asked_or_watched(
    engine: fakes.FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["generate", "--model", "x", "--stats", "hi"])
    assert capsys.readouterr().err == (
        "6 tokens in 2 steps (3.0 tokens/step) · 1.00 s · 6 tok/s · prompt 7 tokens in 0.50 s · "
        "peak 0.25 GB\n"
    )


def test_options_reach_the_engine(engine: fakes.FakeEngine) -> None:
    options = """generate --model m --seed 5 --max-tokens 6 --steps 9 --entropy-bound .2 --t-min .3
        --t-max .9 --confidence-threshold .01 --stability-threshold 2 --backend cpu
        --dtype float32 --offline --revision r --adapter a --system be --think hi"""
    cli.main(options.split())
    asked, settings = engine.asked[0], engine.asked[0]["settings"]
    how = {"backend": "cpu", "dtype": "float32", "offline": True, "revision": "r", "adapter": "a"}
    assert engine.loaded == [("m", how)]
    assert asked["messages"] == [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "hi"},
    ]
    assert (asked["seed"], asked["thinking"]) == (5, True)
    assert (settings.max_new_tokens, settings.max_denoising_steps) == (6, 9)
    assert (settings.t_min, settings.t_max, settings.entropy_bound) == (0.3, 0.9, 0.2)
    assert (settings.confidence_threshold, settings.stability_threshold) == (0.01, 2)
    assert engine.held == (None, None)


@pytest.mark.parametrize(
    ("arguments", "piped", "prompt"),
    [
        (["hi"], "", "hi"),
        ([], "from a pipe\n", "from a pipe"),
        (["Solve:"], PUZZLE + "\n", f"Solve:\n\n{PUZZLE}"),
    ],
)
def test_prompt_and_stdin(
    engine: fakes.FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    piped: str,
    prompt: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
    assert cli.main(["generate", *arguments]) == 0
    assert engine.asked[0]["messages"] == [{"role": "user", "content": prompt}]


def test_pictures_videos_and_tools(engine: fakes.FakeEngine, tmp_path: Path) -> None:
    picture, video, tools = tmp_path / "a.png", tmp_path / "b.mp4", tmp_path / "tools.json"
    picture.touch()
    video.touch()
    tools.write_text('[{"type": "function"}]')
    media = ["--image", str(picture), "--image", str(picture), "--video", str(video)]
    assert cli.main(["generate", *media, "--tools", str(tools), "what?"]) == 0
    assert engine.asked[0]["messages"][0]["content"] == [
        {"type": "image", "image": str(picture)},
        {"type": "image", "image": str(picture)},
        {"type": "video", "video": str(video)},
        {"type": "text", "text": "what?"},
    ]
    assert engine.asked[0]["tools"] == [{"type": "function"}]


@pytest.mark.parametrize("content", ["{}", "[]", "[1]", "{"])
def test_bad_tools(
    engine: fakes.FakeEngine, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.json").write_text(content)
    assert cli.main(["generate", "--tools", str(tmp_path / "t.json"), "hi"]) == 1
    assert capsys.readouterr().err.startswith("dg-mlx: --tools")


def test_json(engine: fakes.FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.answers = [["Hel", "lo"]]
    cli.main(["generate", "--json", "hi"])
    reply = json.loads(capsys.readouterr().out)
    assert (reply["text"], reply["thought"], reply["reason"]) == ("ello", "H", "end")
    assert reply["ids"] == [*map(ord, "Hello"), fakes.END]
    assert reply["tool_calls"] == []
    assert reply["stats"]["tokens_per_step"] == 3.0


def test_json_stream(engine: fakes.FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["generate", "--json", "--stream", "hi"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [line["event"] for line in lines]
    assert kinds == ["prefilled", *["draft", "draft", "committed"] * 2, "done", "reply"]
    assert lines[1]["accepted"] == [True, False, False, False]
    assert lines[-1]["text"] == "hello"


def test_stream_writes_blocks_as_they_come(
    engine: fakes.FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr("dg_mlx.cli.generate.write", lambda text, *_: written.append(text))
    cli.main(["generate", "--stream", "hi"])
    assert written == ["hel", "lo", "\n"]


def test_an_empty_answer_is_reported(
    engine: fakes.FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.answers = [[""], ["THOUGHT"]]
    assert cli.main(["generate", "--model", "x", "hi"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "the model returned an empty answer (it ended before any text" in shown.err
    cli.main(["generate", "--model", "x", "--think", "hi"])
    shown = capsys.readouterr()
    assert "thought: THOUGHT" in shown.err
    assert "empty answer (all of it was thought" in shown.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BackendError("two\nlines"), 1, "dg-mlx: two lines\n"),
        (RuntimeError("[metal::malloc] Attempting to allocate 9 bytes"), 1, "out of memory"),
        (RuntimeError("std::bad_alloc"), 1, "Use a more quantised checkpoint"),
        (MemoryError(), 1, "out of memory"),
        (ModuleNotFoundError("x", name="mlx.core"), 1, 'pip install "dg-mlx[cpu]"'),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_while_answering(
    engine: fakes.FakeEngine,
    error: BaseException,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(step: int) -> None:
        raise error

    engine.on_step = fail
    assert cli.main(["generate", "--model", "x", "hi"]) == code
    assert message in capsys.readouterr().err


def test_our_bugs_keep_their_traceback(engine: fakes.FakeEngine) -> None:
    engine.answers = [RuntimeError("a bug")]
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["generate", "hi"])


# Doctor and models -------------------------------------------------------------------------------


def test_doctor_prints_the_bytes_of_256k(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--context", "262144"]) == 0
    shown = capsys.readouterr().out
    for name in ("nano", "26B-A4B bf16", "26B-A4B 8bit", "26B-A4B 4bit"):
        assert name in shown
    assert "16,542,844,632" in shown


def test_doctor_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json", "--model", "nano"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["memory_bytes"] > 0
    assert report["versions"]["dg-mlx"] == dg_mlx.__version__
    (model,) = report["models"]
    assert model["plans"][0]["fits"]
    assert not model["plans"][-1]["fits"]  # longer than nano's context
    assert model["plans"][0]["total"] > model["plans"][0]["weights"]


def test_doctor_on_a_config_alone(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = reference / "mlx-4bit" / "config.json"
    assert cli.main(["doctor", "--json", "--model", str(config), "--context", "4096"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["stored_bytes"] == 16_542_844_632


def test_doctor_without_mlx(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "dg_mlx.backends", raising=False)
    monkeypatch.setitem(sys.modules, "mlx", None)
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    assert cli.main(["doctor"]) == 0
    assert "to do     MLX is not installed; run `pip install" in capsys.readouterr().out


def test_models(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dg_mlx.hub._cached_repos", list)
    assert cli.main(["models", "list"]) == 0
    assert capsys.readouterr().out.startswith("nano  ")
    assert cli.main(["models", "show", "nano"]) == 0
    assert "here        fits, up to" in capsys.readouterr().out
    assert cli.main(["models", "show", "some/repo"]) == 1
    assert "some/repo is not on this machine" in capsys.readouterr().err


def test_removing_needs_a_yes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dg_mlx import hub

    model = hub.CachedModel(name="a/b", size_bytes=5, folder=Path(), revision="c")
    removed: list[str] = []
    monkeypatch.setattr(hub, "cached", lambda: [model])
    monkeypatch.setattr(hub, "remove", lambda name: removed.append(name) or 5)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert cli.main(["models", "remove", "a/b"]) == 1
    assert "pass --yes" in capsys.readouterr().err
    assert cli.main(["models", "remove", "a/b", "--yes"]) == 0
    assert capsys.readouterr().out == "freed 5 B\n"
    terminal_in = io.StringIO("n\ny\n")
    terminal_in.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal_in)
    assert cli.main(["models", "remove", "a/b"]) == 0
    assert removed == ["a/b"]
    assert cli.main(["models", "remove", "a/b"]) == 0
    assert removed == ["a/b", "a/b"]


# The terminal ------------------------------------------------------------------------------------


def test_text_cannot_harm_a_terminal() -> None:
    assert terminal.harmless("a\x1b[2Jb\rc\x7f\x9b") == "a␛[2Jb␍c␡<U+009B>"
    assert terminal.harmless("x\u202ey\u2066") == "x<U+202E>y<U+2066>"
    assert terminal.harmless("fine\n\tünï 漢字 👍\u200d") == "fine\n\tünï 漢字 👍\u200d"


def test_pipes_get_the_text_as_it_is() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    pipe, screen = io.StringIO(), Terminal()
    terminal.write("\x1b[31m", pipe)
    terminal.write("\x1b[31m", screen)
    assert (pipe.getvalue(), screen.getvalue()) == ("\x1b[31m", "␛[31m")


@pytest.mark.parametrize(
    ("count", "text"),
    [(5, "5 B"), (1500, "1.5 kB"), (3.4e6, "3.4 MB"), (16_542_844_632, "16.5 GB")],
)
def test_sizes(count: float, text: str) -> None:
    assert units.size(count) == text
