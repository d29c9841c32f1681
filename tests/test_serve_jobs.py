"""Downloads and conversions in processes of their own: progress, stops, and what ends them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny

from dg_mlx.disk import lock
from dg_mlx.errors import CheckpointError, DGError, HubError
from dg_mlx.serve import child
from dg_mlx.serve.catalog import default_target
from dg_mlx.serve.child import Report, Result
from dg_mlx.serve.jobs import Job, Jobs, Task
from dg_mlx.serve.leftovers import remove_leftovers

REPO, COMMIT = "someone/diffusion", "a" * 40


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    found = Jobs()
    yield found
    found.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny checkpoint without a tokenizer, so that predictions are not compared."""
    return write(tmp_path / "source")


def write(folder: Path) -> Path:
    data = tiny.config() | {"vision_config": None}
    return tiny.write(folder, data, tiny.tensors(data), shards=3)


OPTIONS = {"recipe": "uniform", "quant": "mxfp4", "shard_bytes": 16_000, "dtype": "float32"}


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Work of other processes, which find it by name.


def hang(source: str, target: Path, options: dict[str, Any], report: Report) -> Result:
    """Half of it, then nothing more."""
    report("convert", 0, 1000)
    time.sleep(2 * child.INTERVAL_S)
    report("convert", 500, 1000)
    time.sleep(600)
    raise AssertionError


def wait_for(path: str, report: Report) -> Result:
    report("fetch", 1, 2)
    while not Path(path).exists():
        time.sleep(0.01)
    return Result(text="done", folder=Path(path))


def convert_some(source: str, target: Path, options: dict[str, Any], report: Report) -> Result:
    """A conversion that comes to a halt after its second file."""
    from dg_mlx.convert import stream

    write, count = stream.write, iter(range(10))

    def slow(*given: Any) -> str:
        if next(count) == 2:
            report("halt", 0, 0)
            time.sleep(600)
        return write(*given)

    stream.write = slow
    return convert(source, target, options, report)


convert = child.convert


def fail(kind: type[Exception], text: str, report: Report) -> Result:
    raise kind(text)


def leave(report: Report) -> Result:
    os._exit(3)


def begin(work: child.Work) -> Job:
    return Job("1", Task(name="it", title="work", work=work, kept="do it again."))


# Conversions -------------------------------------------------------------------------------------


def test_a_conversion(
    jobs: Jobs, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DG_MLX_HOME", str(tmp_path / "home"))
    target = default_target(str(source), "mxfp4")
    job = jobs.convert(str(source), target, OPTIONS)
    assert job.title == f"convert {source} to {target}"
    assert (job.state, job.phase, job.text) == ("running", "", "")
    job.wait()
    assert job.state == "done", job.text
    assert (job.phase, job.folder) == ("verify", target)
    assert job.done == job.total > 0
    assert job.text.startswith(f"{target}: ")
    assert (target / "config.json").exists()
    assert (job.rate, job.seconds_left) == (None, None)
    assert jobs.list() == [job]
    assert jobs.get(job.id) is job
    assert jobs.get("another") is None
    job.stop()
    assert job.state == "done"


def test_every_phase_is_told(source: Path, tmp_path: Path) -> None:
    """Also how the result's predictions differ, where that is looked at."""
    told: dict[str, tuple[int, int]] = {}

    def report(phase: str, done: int, total: int) -> None:
        assert told.get(phase, (0, 0))[0] <= done <= total
        told[phase] = done, total

    tiny.write_tokenizer(source)
    result = child.convert(str(source), tmp_path / "out", OPTIONS, report)
    assert list(told) == ["convert", "verify"]
    assert {done == total for done, total in told.values()} == {True}
    assert "mean KL" in result.text


def test_a_conversion_that_is_stopped_goes_on(
    jobs: Jobs, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(child, "convert", convert_some)
        job = jobs.convert(str(source), target, OPTIONS)
    until(lambda: job.phase == "halt" or job.state != "running")
    assert (job.state, job.text) == ("running", "")
    job.stop()
    assert job.state == "stopped"
    assert job.text.startswith("stopped; convert it again with the same options to go on:")
    assert not target.exists()
    again = jobs.convert(str(source), target, OPTIONS)
    again.wait()
    assert again.state == "done", again.text
    assert again.text.endswith("gone on with")
    assert jobs.list() == [again], "the other is told no more"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"quant": "q4"}, "--quant is 'q4'; choose one of none, 8bit"),
        ({"bits": 4}, "there is no option 'bits'; choose from quant, recipe,"),
    ],
)
def test_what_cannot_be_is_one_line(
    jobs: Jobs, source: Path, tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    job = jobs.convert(str(source), tmp_path / "out", options)
    job.wait()
    assert job.state == "failed"
    assert job.text.startswith(text)
    assert "\n" not in job.text
    assert job.folder is None


# Downloads ---------------------------------------------------------------------------------------


def test_a_repo_that_is_not_there(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    job = jobs.download("someone/nothing")
    job.wait()
    assert job.state == "failed"
    assert job.text.startswith("someone/nothing is no folder, and not (completely) in the cache")
    assert "\n" not in job.text


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for. It stops in the middle of the weights, once."""

    folder: Path
    halts: bool
    asked: list[str]
    cache: Path

    @classmethod
    def parts(cls) -> list[Path]:
        return list(cls.cache.rglob("*.incomplete"))

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        files = {path.name: path.stat().st_size for path in sorted(self.folder.iterdir())}
        if "/tree/" in self.path:
            self._json(
                [
                    {"type": "file", "path": name, "size": size, "oid": name}
                    for name, size in files.items()
                ]
            )
            return
        if self.path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": REPO, "sha": COMMIT, "siblings": siblings})
            return
        name = self.path.rpartition("/")[2]
        self.asked.append(name)
        self._answer((self.folder / name).read_bytes())

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, data: bytes) -> None:
        path = self.folder / self.path.rpartition("/")[2]
        self.send_response(200)
        self.send_header("ETag", f'"{path.name}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        if type(self).halts and data and path.suffix == ".safetensors":
            self.wfile.write(data[: len(data) // 2])
            type(self).halts = False
            time.sleep(60)
        else:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    from huggingface_hub import constants

    cache = tmp_path / "hf" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    values = {"folder": source, "halts": False, "asked": [], "cache": cache}
    handler = type("Served", (Hub,), values)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name, value in {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield handler
        server.shutdown()
        thread.join()


def test_a_download(jobs: Jobs, served: type[Hub], source: Path) -> None:
    job = jobs.download(REPO)
    job.wait()
    assert job.state == "done", job.text
    assert job.text.startswith(f"{REPO}: ")
    assert job.folder is not None
    assert {p.name: p.read_bytes() for p in job.folder.iterdir()} == {
        p.name: p.read_bytes() for p in source.iterdir()
    }
    assert job.phase == "fetch"
    assert job.done == job.total == sum(path.stat().st_size for path in source.iterdir())


def test_a_download_that_is_stopped_goes_on(jobs: Jobs, served: type[Hub], tmp_path: Path) -> None:
    served.folder = tmp_path / "large"
    served.folder.mkdir()
    (served.folder / "config.json").write_text("{}")
    data = os.urandom(1_000_000) * 25  # more than two of the pieces in which it is written
    (served.folder / "model.safetensors").write_bytes(data)
    served.halts = True
    job = jobs.download(REPO)
    until(lambda: job.done > 1_000_000 or job.state != "running")
    assert (job.state, job.total) == ("running", len(data) + 2)
    assert served.parts() != []
    job.stop()
    assert job.state == "stopped"
    assert job.text == "stopped; download it again to go on: files that are whole are kept."
    assert served.parts() == []
    again = jobs.download(REPO)
    again.wait()
    assert again.state == "done", again.text
    assert again.folder is not None
    assert (again.folder / "model.safetensors").read_bytes() == data
    assert served.asked.count("config.json") == 1, "what was whole is not fetched again"


def test_what_another_download_writes_stays(served: type[Hub], tmp_path: Path) -> None:
    folder = served.cache / f"models--{REPO.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True)
    locks = served.cache / ".locks" / folder.name
    locks.mkdir(parents=True)
    for blob in ("mine", "theirs"):
        (folder / "blobs" / f"{blob}.0123abcd.incomplete").touch()
    (folder / "blobs" / "whole").touch()
    held = lock(locks / "theirs.lock")
    assert held is not None
    with held:
        remove_leftovers(REPO)
    left = {path.name for path in (folder / "blobs").iterdir()}
    assert left == {"theirs.0123abcd.incomplete", "whole"}
    for name in ("no such/repo", "some/other", str(tmp_path)):
        remove_leftovers(name)


def test_a_repo_that_the_hub_does_not_have(jobs: Jobs, served: type[Hub]) -> None:
    (served.folder / "model.safetensors.index.json").unlink()
    for path in served.folder.glob("*.safetensors"):
        path.unlink()
    job = jobs.download(REPO)
    job.wait()
    assert job.state == "failed"
    assert job.text.startswith(f"{REPO} has no *.safetensors files;")


# What ends a job ---------------------------------------------------------------------------------


def test_one_job_of_a_target(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "convert", hang)
    monkeypatch.chdir(tmp_path)
    first = jobs.convert("nano", tmp_path / "out", {})
    with pytest.raises(CheckpointError, match=r"out is being written; wait for that job, or stop"):
        jobs.convert("other", Path("out"), {})
    other = jobs.convert("nano", tmp_path / "elsewhere", {})
    assert jobs.list() == [first, other]
    first.stop()
    assert jobs.convert("nano", tmp_path / "out", {}).state == "running"
    jobs.close()
    assert {job.state for job in jobs.list()} == {"stopped"}


def test_the_end_of_each_job_is_told(jobs: Jobs, tmp_path: Path, source: Path) -> None:
    ended: list[tuple[str, str]] = []
    jobs.on_end(lambda job: ended.append((job.name, job.state)))
    made = jobs.convert(str(source), tmp_path / "made", OPTIONS)
    made.wait()
    failed = jobs.convert(str(tmp_path / "none"), tmp_path / "failed", OPTIONS)
    failed.wait()
    assert ended == [(str(tmp_path / "made"), "done"), (str(tmp_path / "failed"), "failed")]
    assert made.folder == Path(made.name)


def test_one_download_of_a_repo(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(child, "download", wait_for)
    end = tmp_path / "end"
    job = jobs.download(str(end))
    with pytest.raises(HubError, match=r"is being downloaded; wait for it, or stop it first\."):
        jobs.download(str(end))
    end.touch()
    job.wait()
    assert job.state == "done"


def test_rate_and_time_left(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "convert", hang)
    job = jobs.convert("nano", tmp_path / "out", {})
    assert (job.phase, job.rate, job.seconds_left) == ("", None, None)
    until(lambda: job.done == 500)
    rate, left = job.rate, job.seconds_left
    assert rate is not None and left is not None
    assert 0 < rate < 500 / (2 * child.INTERVAL_S)
    assert left >= 500 / rate, "it does nothing more, so the rate falls"


def test_a_process_that_is_killed(jobs: Jobs, tmp_path: Path) -> None:
    job = begin(partial(wait_for, str(tmp_path / "never")))
    until(lambda: job.phase)
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    assert job.state == "failed"
    assert job.text == (
        "its process was killed, which systems do when memory runs out; do it again."
    )
    job.stop()
    assert job.state == "failed"


def test_a_process_that_ends_otherwise(tmp_path: Path) -> None:
    job = begin(leave)
    job.wait()
    assert (job.state, job.text) == (
        "failed",
        "its process ended early (exit code 3); do it again.",
    )
    job = begin(partial(wait_for, str(tmp_path / "never")))
    until(lambda: job.phase)
    assert job.pid is not None
    os.kill(job.pid, signal.SIGTERM)
    job.wait()
    assert job.text == "its process was ended by SIGTERM; do it again."


def test_errors_come_as_their_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    job = begin(partial(fail, DGError, "no\nmemory; buy some."))
    job.wait()
    assert (job.state, job.text) == ("failed", "no memory; buy some.")
    assert capfd.readouterr().err == ""


def test_a_fault_of_ours_is_told_apart(capfd: pytest.CaptureFixture[str]) -> None:
    job = begin(partial(fail, ZeroDivisionError, "by\nzero"))
    job.wait()
    assert job.state == "failed"
    assert job.text == "it failed (ZeroDivisionError: by zero); that is a fault of dg-mlx."
    assert "Traceback" in capfd.readouterr().err


def test_ctrl_c_is_for_the_program_that_began_it(tmp_path: Path) -> None:
    end = tmp_path / "end"
    job = begin(partial(wait_for, str(end)))
    until(lambda: job.phase)
    assert job.pid is not None
    os.kill(job.pid, signal.SIGINT)
    end.touch()
    job.wait()
    assert job.state == "done"


PARENT = """
import sys, time
from pathlib import Path
from dg_mlx.serve import child
from dg_mlx.serve.jobs import Jobs
from test_serve_jobs import hang

if __name__ == "__main__":
    child.convert = hang
    job = Jobs().convert("nano", Path(sys.argv[1]), {})
    while not job.phase:
        time.sleep(0.01)
    print(job.pid, flush=True)
    {end}
"""


def runs(pid: int) -> bool:
    try:
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=True
        ).stdout
    except subprocess.CalledProcessError:
        return False
    return not state.startswith("Z")


@pytest.mark.parametrize("end", ["time.sleep(600)", "pass"])
def test_a_job_ends_with_its_parent(tmp_path: Path, end: str) -> None:
    """However that one ends: killed, or at the end of its program."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT.replace("{end}", end))
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if end != "pass":
            assert runs(pid)
            parent.kill()
        parent.wait(60)
    until(lambda: not runs(pid))
