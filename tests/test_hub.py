"""Names to folders. The hub itself is never asked: its client is replaced."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from dg_mlx import hub
from dg_mlx.errors import HubError, MemoryLimitError

REPO = "someone/diffusion"
HTTPX_ERROR = errors.HfHubHTTPError.__bases__[0]


def http_error(kind: type[Exception], status: int) -> Exception:
    """As the hub's client makes them."""
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("the hub says no\nmore", response=response)


def file(name: str, size: int, *, cached: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        filename=name, file_size=size, is_cached=cached, will_download=not cached
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "diffusion_gemma"}))
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> Callable[..., list[dict]]:
    """Replace snapshot_download: what it finds in a dry run, or raises, then and after."""

    def replace(
        found: list[SimpleNamespace] | Exception, fetched: Exception | None = None
    ) -> list[dict]:
        calls: list[dict] = []

        def snapshot_download(repo: str, **options: Any) -> Any:
            calls.append({"repo": repo, **options})
            outcome = found if options.get("dry_run") else fetched or str(checkpoint)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return replace


def dry_run_error(cause: Exception) -> Exception:
    error = errors.DryRunError("cannot be performed")
    error.__cause__ = cause
    return error


def test_a_bundled_name() -> None:
    assert (hub.resolve("nano") / "config.json").exists()


def test_a_folder(checkpoint: Path) -> None:
    assert hub.resolve(str(checkpoint)) == checkpoint


def test_a_file_is_not_a_folder(checkpoint: Path) -> None:
    with pytest.raises(HubError, match=r"is a file; give the folder that holds config\.json\."):
        hub.resolve(str(checkpoint / "config.json"))


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/folder",
        "no such thing",
        "nanoo",
        "a/b/c",
        "~nobody/it",
        pytest.param("x" * 9999, id="too long"),
        pytest.param("a\0b", id="no path"),
    ],
)
def test_neither_folder_nor_repo(name: str) -> None:
    with pytest.raises(HubError, match=r"there is no folder .* no hub repo id .* nano"):
        hub.resolve(name)


def test_folders_have_no_revisions() -> None:
    with pytest.raises(HubError, match="has no revisions; drop --revision"):
        hub.resolve("nano", revision="main")


def test_fetch_takes_only_what_is_needed(client: Any, checkpoint: Path) -> None:
    calls = client([file("config.json", 10), file("model.safetensors", 100)])
    assert hub.resolve(REPO, revision="v1") == checkpoint
    assert [c["allow_patterns"] for c in calls] == [hub.PATTERNS, hub.PATTERNS]
    assert [c["revision"] for c in calls] == ["v1", "v1"]
    assert calls[0]["dry_run"]
    assert "tqdm_class" not in calls[1]  # the hub's own bar


def test_offline_asks_the_cache_only(client: Any, checkpoint: Path) -> None:
    calls = client(AssertionError("asked the hub"))
    assert hub.resolve(REPO, offline=True) == checkpoint
    assert [c["local_files_only"] for c in calls] == [True]


def test_without_network_the_cache_serves(client: Any, checkpoint: Path) -> None:
    for cause in (HTTPX_ERROR("no route"), http_error(errors.HfHubHTTPError, 503)):
        calls = client(dry_run_error(cause))
        assert hub.resolve(REPO) == checkpoint
        assert calls[-1]["local_files_only"]


def test_without_network_and_cache(client: Any) -> None:
    client(dry_run_error(HTTPX_ERROR("no route")), errors.LocalEntryNotFoundError("nothing"))
    with pytest.raises(HubError, match="the hub cannot be reached; go online to fetch what"):
        hub.resolve(REPO)


def test_offline_and_not_in_the_cache(client: Any) -> None:
    client([], errors.LocalEntryNotFoundError("nothing"))
    with pytest.raises(HubError, match="while --offline is set; drop --offline to fetch what"):
        hub.resolve(REPO, offline=True)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            http_error(errors.GatedRepoError, 403),
            r"asks you to accept its licence: open https://huggingface\.co/someone/diffusion, "
            r"accept, then run `hf auth login`\.$",
        ),
        (http_error(errors.RepositoryNotFoundError, 404), "no folder .* and no repo of that name"),
        (http_error(errors.RevisionNotFoundError, 404), "has no revision 'v9'"),
        (http_error(errors.HfHubHTTPError, 403), r"failed \(the hub says no\); check the network"),
        (HTTPX_ERROR("broken\npipe"), r"fetching .* failed \(broken\); .* whole are kept\.$"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be stored .* set HF_HOME"),
        (errors.HFValidationError("bad"), "it is no hub repo id"),
    ],
)
def test_what_the_hub_refuses(client: Any, error: Exception, message: str) -> None:
    for outcome in (error, dry_run_error(error)):
        if isinstance(outcome, errors.DryRunError) and type(error) is HTTPX_ERROR:
            continue  # no network: the cache is asked
        client(outcome)
        with pytest.raises(HubError, match=message) as raised:
            hub.resolve(REPO, revision="v9")
        assert "\n" not in str(raised.value)


def test_an_interrupted_download(client: Any) -> None:
    client([file("model.safetensors", 100)], HTTPX_ERROR("cut off"))
    with pytest.raises(HubError, match="files that are whole are kept"):
        hub.resolve(REPO)


def test_other_errors_are_bugs(client: Any) -> None:
    client(OSError(errno.EIO, "disk on fire"))
    with pytest.raises(OSError, match="disk on fire"):
        hub.resolve(REPO)


def test_repo_without_weights(client: Any) -> None:
    client([file("config.json", 10), file("model.gguf", 10)])
    with pytest.raises(HubError, match=r"has no \*\.safetensors"):
        hub.resolve(REPO)


def test_too_large_for_the_memory(client: Any, checkpoint: Path) -> None:
    calls = client([file("model.safetensors", 52_000_000_000)])
    with pytest.raises(MemoryLimitError, match=r"needs 52\.0 GB .* has 16\.0 GB"):
        hub.resolve(REPO, memory_bytes=16_000_000_000)
    assert len(calls) == 1  # nothing was fetched
    with pytest.raises(MemoryLimitError):
        hub.resolve(str(checkpoint), memory_bytes=999)
    assert hub.resolve(str(checkpoint), memory_bytes=1000) == checkpoint


def test_too_large_for_the_disk(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = client([file("a.safetensors", 900), file("b.safetensors", 200, cached=True)])
    monkeypatch.setattr(hub, "free_bytes", lambda: 800)
    with pytest.raises(MemoryLimitError, match=r"of disk .* set HF_HOME to a larger disk"):
        hub.resolve(REPO)
    assert len(calls) == 1
    monkeypatch.setattr(hub, "free_bytes", lambda: 1000)  # the cached part is there already
    hub.resolve(REPO)


def test_free_space_is_measured_where_the_cache_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    assert hub.free_bytes() > 0


def test_one_file_at_a_time_loses_the_least(client: Any) -> None:
    calls = client([file("a.safetensors", 100), file("b.safetensors", 100)])
    hub.resolve(REPO)
    assert calls[-1]["max_workers"] == 1


def test_progress_counts_bytes(client: Any) -> None:
    calls = client([file("model.safetensors", 100), file("config.json", 9, cached=True)])
    seen: list[tuple[int, int]] = []
    hub.resolve(REPO, progress=lambda done, total: seen.append((done, total)))
    bar = calls[-1]["tqdm_class"](name="huggingface_hub.snapshot_download", total=0, initial=0)
    other = calls[-1]["tqdm_class"](desc="Fetching 3 files", total=3)
    bar.total = 60  # of the files that have begun
    bar.update(40)
    other.update(1)
    bar.update(60)
    assert seen == [(40, 100), (100, 100)]


def test_weight_bytes(checkpoint: Path) -> None:
    (checkpoint / "old.safetensors").write_bytes(bytes(5))
    assert hub.weight_bytes(checkpoint) == 1005
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert hub.weight_bytes(checkpoint) == 1000
    index.write_text("{")
    assert hub.weight_bytes(checkpoint) == 1005


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one DiffusionGemma checkpoint and another model."""
    kinds = (("diffusion", "a" * 40, "diffusion_gemma"), ("other", "b" * 40, "gemma4"))
    for name, commit, kind in kinds:
        repo = tmp_path / f"models--someone--{name}"
        folder = repo / "snapshots" / commit
        folder.mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(commit)
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        (folder / "model.safetensors").write_bytes(bytes(64))
    from huggingface_hub.utils import _cache_manager

    monkeypatch.setattr(_cache_manager, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_cached_lists_bundled_and_our_kind_only(cache: Path) -> None:
    nano, ours = hub.cached()
    assert nano.name == "nano"
    assert nano.bundled
    assert (ours.name, ours.revision, ours.bundled) == (REPO, "a" * 40, False)
    assert ours.size_bytes > 64
    assert hub.find(REPO) == ours.folder


def test_find_what_is_not_here(cache: Path) -> None:
    with pytest.raises(HubError, match="is not on this machine; `dg-mlx models list`"):
        hub.find("someone/other")


def test_remove(cache: Path) -> None:
    assert hub.remove(REPO) > 64
    assert [m.name for m in hub.cached()] == ["nano"]
    assert (cache / "models--someone--other").exists()
    with pytest.raises(HubError, match="is not in the cache"):
        hub.remove(REPO)
    with pytest.raises(HubError, match="part of dg-mlx and cannot be removed"):
        hub.remove("nano")


def test_no_cache_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import _cache_manager

    monkeypatch.setattr(_cache_manager, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert [m.name for m in hub.cached()] == ["nano"]


def test_other_files_may_be_asked_for(client: Any) -> None:
    calls = client([file("config.json", 10), file("model-Q4_K_M.gguf", 10)])
    hub.resolve(REPO, patterns=["*Q4_K_M*.gguf"])
    hub.resolve(REPO, patterns=["*.json"])  # no weights are asked for, so none are missed
    assert [call["allow_patterns"] for call in calls[::2]] == [["*Q4_K_M*.gguf"], ["*.json"]]
    with pytest.raises(HubError, match=r"has no \*\.safetensors files"):
        hub.resolve(REPO)
