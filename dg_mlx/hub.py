"""From a model's name to a folder: bundled, local, or fetched from the Hugging Face hub.

huggingface_hub is imported on first use: nothing here is needed for `--help`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from .errors import HubError, MemoryLimitError

BUNDLED = ("nano",)
"""Checkpoints that are part of the package."""

PATTERNS = ["*.json", "*.jinja", "*.safetensors", "tokenizer*"]
"""The files of a repo that are needed."""

_WEIGHTS = (".safetensors", ".gguf")

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_PAGE = "https://huggingface.co"

FILES_AT_ONCE = 1
"""The client begins a file anew whose download was cut off, and keeps those that are whole. So one
file at a time loses the least; its storage protocol fetches the pieces of a file in parallel.
https://github.com/huggingface/huggingface_hub/issues/4196
"""

Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all) while files are fetched, without those that are here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """A checkpoint that is on this machine."""

    name: str
    size_bytes: int
    folder: Path
    revision: str | None
    """The commit of the repo; None for a bundled checkpoint."""

    @property
    def bundled(self) -> bool:
        """Part of the package, so it cannot be removed."""
        return self.revision is None


def resolve(
    name: str,
    *,
    offline: bool = False,
    revision: str | None = None,
    progress: Progress | None = None,
    memory_bytes: int | None = None,
    patterns: Sequence[str] = PATTERNS,
) -> Path:
    """The folder of a bundled name, of a folder, or of a hub repo, which is fetched if need be.

    `patterns` are the files of a repo that are fetched.
    `memory_bytes` is what a model may use; larger weights are refused before anything is fetched.
    `progress` replaces the progress bar on stderr. After a download that was cut off, the next call
    fetches the files that are not whole.
    Raises `HubError` and `MemoryLimitError`.
    """
    folder = _local(name)
    if folder is not None:
        if revision is not None:
            raise HubError(f"{name} is a folder and has no revisions; drop --revision.")
        require_memory(name, weight_bytes(folder), memory_bytes)
        return folder
    if not _REPO_ID.fullmatch(name):
        raise HubError(
            f"there is no folder {name!r} and it is no hub repo id (owner/name) either; give one "
            f"of them, or a bundled model: {', '.join(BUNDLED)}."
        )
    return _fetch(name, offline, revision, progress, memory_bytes, patterns)


def find(name: str) -> Path:
    """The folder of a model that is on this machine; nothing is fetched. Raises `HubError`."""
    folder = _local(name) or next((m.folder for m in cached() if m.name == name), None)
    if folder is None:
        raise HubError(f"{name} is not on this machine; `dg-mlx models list` shows what is.")
    return folder


def bundled_folder(name: str) -> Path:
    """Where a bundled checkpoint lies."""
    return Path(str(files("dg_mlx") / name))


def weight_bytes(folder: Path) -> int:
    """Size of a checkpoint's weight files; 0 when there are none.

    An index names the files that count: a folder may hold others besides.
    """
    index = folder / "model.safetensors.index.json"
    paths = list(folder.glob("*.safetensors"))
    if index.exists():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            named = set()  # loading reports a broken index; a size needs none
        paths = [path for path in paths if path.name in named] or paths
    return sum(path.stat().st_size for path in paths)


def require_memory(name: str, needed_bytes: int, memory_bytes: int | None) -> None:
    """Raise `MemoryLimitError` when weights are larger than the memory they may use."""
    if memory_bytes is not None and needed_bytes > memory_bytes:
        raise MemoryLimitError(
            f"{name} needs {needed_bytes / 1e9:.1f} GB for its weights; this machine has "
            f"{memory_bytes / 1e9:.1f} GB for a model. Choose a smaller or more quantised "
            "checkpoint (`dg-mlx doctor` lists what fits)."
        )


def cached() -> list[CachedModel]:
    """Bundled checkpoints, and the DiffusionGemma checkpoints in the hub's cache."""
    models = [
        CachedModel(name=name, size_bytes=_size(folder), folder=folder, revision=None)
        for name in BUNDLED
        if (folder := bundled_folder(name)).is_dir()
    ]
    for repo in _cached_repos():
        for revision in sorted(repo.revisions, key=lambda r: r.last_modified, reverse=True):
            if _is_ours(revision.snapshot_path):
                models.append(
                    CachedModel(
                        name=repo.repo_id,
                        size_bytes=revision.size_on_disk,
                        folder=revision.snapshot_path,
                        revision=revision.commit_hash,
                    )
                )
    return models


def remove(name: str) -> int:
    """Delete a repo from the hub's cache. Returns the bytes freed. Raises `HubError`."""
    if name in BUNDLED:
        raise HubError(f"{name} is part of dg-mlx and cannot be removed.")
    hashes = [m.revision for m in cached() if m.name == name and m.revision is not None]
    if not hashes:
        raise HubError(f"{name} is not in the cache; `dg-mlx models list` shows what is.")
    from huggingface_hub import scan_cache_dir

    plan = scan_cache_dir().delete_revisions(*hashes)
    plan.execute()
    return int(plan.expected_freed_size)


def _local(name: str) -> Path | None:
    """A bundled checkpoint or an existing folder."""
    if name in BUNDLED:
        return bundled_folder(name)
    path = os.path.expanduser(name)  # pathlib's raises for a user that is not there
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path):
        raise HubError(f"{name} is a file; give the folder that holds config.json.")
    return None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _is_ours(folder: Path) -> bool:
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("model_type") == "diffusion_gemma"


def _cached_repos() -> list[Any]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return sorted((r for r in found if r.repo_type == "model"), key=lambda r: str(r.repo_id))


def _fetch(
    repo: str,
    offline: bool,
    revision: str | None,
    progress: Progress | None,
    memory_bytes: int | None,
    patterns: Sequence[str],
) -> Path:
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"revision": revision, "allow_patterns": list(patterns)}
    with _hub_errors(repo, revision, offline):
        missing = None if offline else _missing_bytes(repo, options, memory_bytes)
        if missing is None:
            folder = Path(snapshot_download(repo, local_files_only=True, **options))
            require_memory(repo, weight_bytes(folder), memory_bytes)
            return folder
        if progress is not None:
            options["tqdm_class"] = _reporting(progress, missing)
        return Path(snapshot_download(repo, max_workers=FILES_AT_ONCE, **options))


def _missing_bytes(repo: str, options: dict[str, Any], memory_bytes: int | None) -> int | None:
    """What is to be fetched, for which there is room; None: the hub cannot be reached.

    Raises `MemoryLimitError`, before anything is fetched, and `HubError`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        found = snapshot_download(
            repo, dry_run=True, tqdm_class=_reporting(lambda done, total: None, 0), **options
        )
    except DryRunError as error:
        cause = error.__cause__
        if isinstance(cause, Exception) and not _unreachable(cause):
            raise cause from None
        return None
    assert isinstance(found, list)
    wanted = [pattern for pattern in options["allow_patterns"] if pattern.endswith(_WEIGHTS)]
    kinds = tuple(Path(pattern).suffix for pattern in wanted)
    weights = sum(file.file_size or 0 for file in found if file.filename.endswith(kinds))
    if wanted and not weights:
        raise HubError(
            f"{repo} has no {' or '.join(wanted)} files; choose a DiffusionGemma checkpoint in "
            f"that format. Of a GGUF repo, `dg-mlx convert {repo}:Q4_K_M FOLDER` makes one."
        )
    require_memory(repo, weights, memory_bytes)
    missing = sum(file.file_size or 0 for file in found if file.will_download)
    free = free_bytes()
    if missing > free:
        raise MemoryLimitError(
            f"{repo} needs {missing / 1e9:.1f} GB of disk for its download and {free / 1e9:.1f} GB "
            "are free. Free some, or set HF_HOME to a larger disk."
        )
    return missing


def free_bytes() -> int:
    """Free space on the disk of the hub's cache, whose folder may not exist yet."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _reporting(progress: Progress, total: int) -> type[Any]:
    """A silent progress bar that reports the hub's count of bytes.

    `total`: bytes in all; the hub's own counts the files that have begun.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class Reporting(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            # Several bars are made; the bytes on disk are this one's.
            self._bytes = options.get("name") == "huggingface_hub.snapshot_download"
            self._so_far = int(options.get("initial") or 0)
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]
            self.total = options.get("total") or 0  # the hub adds to it

        def update(self, n: float | None = 1) -> None:
            self._so_far += int(n or 0)
            if self._bytes:
                progress(min(self._so_far, total), total)

    return Reporting


def _unreachable(error: Exception) -> bool:
    """No network, no answer in time, or the hub is down."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return bool(error.response.status_code >= 500)
    return isinstance(error, (http_error(), OfflineModeIsEnabled))


def http_error() -> type[Exception]:
    """The base of the errors of httpx (or httpx2), whichever the hub's client uses."""
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]
    assert issubclass(base, Exception)
    return base


@contextmanager
def _hub_errors(repo: str, revision: str | None, offline: bool) -> Iterator[None]:
    """The hub's exceptions as one line each, with what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise HubError(
            f"{repo} asks you to accept its licence: open {_PAGE}/{repo}, accept, then run "
            "`hf auth login`."
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(
            f"{repo} has no revision {revision!r}; choose one of {_PAGE}/{repo}/commits."
        ) from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"there is no folder {repo!r} and no repo of that name on the hub; check the spelling, "
            "or run `hf auth login` if it is private."
        ) from None
    except (errors.LocalEntryNotFoundError, errors.DryRunError, errors.OfflineModeIsEnabled):
        why = "--offline is set" if offline else "the hub cannot be reached"
        fix = "drop --offline" if offline or os.environ.get("HF_HUB_OFFLINE") else "go online"
        raise HubError(
            f"{repo} is no folder, and not (completely) in the cache while {why}; {fix} to fetch "
            "what is missing."
        ) from None
    except (http_error(), errors.XetDownloadError) as error:
        raise HubError(
            f"fetching {repo} failed ({_first_line(error)}); check the network and try again: "
            "files that are whole are kept."
        ) from None
    except errors.HFValidationError:
        raise HubError(
            f"there is no folder {repo!r} and it is no hub repo id (owner/name) either."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        raise HubError(
            f"{repo} cannot be stored ({_first_line(error)}); set HF_HOME to a folder that has "
            "room and may be written."
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
