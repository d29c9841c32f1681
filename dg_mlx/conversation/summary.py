"""What a list of conversations says about each: a small file beside its log.

It can be made anew from the log, and is, where it is missing, damaged or older than the log.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dg_mlx.disk import write_text
from dg_mlx.errors import StoreError

from .jsonl import dump, load
from .log import VERSION, Log
from .tree import Tree

TITLE = 60
"""Characters of a title that was not given."""

_FILE = "meta.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One conversation in a list."""

    id: str
    title: str
    """The name that was given, or the first words; empty: only pictures were sent."""
    updated: datetime
    """When it was changed last, in UTC."""
    count: int
    """Messages, on all lines."""
    model: str
    """The last one that answered."""
    problem: str = ""
    """Why it cannot be loaded, in one line; empty: it can."""

    @staticmethod
    def of(id: str, tree: Tree) -> Summary:
        """What a tree is, as of now."""
        return Summary(
            id=id,
            title=title(tree),
            updated=datetime.now(UTC),
            count=len(tree.messages),
            model=tree.model,
        )

    def write(self, folder: Path, size: int) -> None:
        """Keep it beside a log of so many bytes."""
        data = asdict(self) | {"version": VERSION, "updated": self.updated.isoformat(), "log": size}
        del data["id"], data["problem"]
        with suppress(OSError):  # the log has it all
            write_text(folder / _FILE, dump(data).decode())


def read(folder: Path, log: Path) -> Summary | None:
    """The summary of a folder; None: there is no conversation in it."""
    try:
        stat = log.stat()
    except OSError:
        return None
    try:
        return _known(load((folder / _FILE).read_bytes()), _id(folder), stat.st_size)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    updated = datetime.fromtimestamp(stat.st_mtime, UTC)
    try:
        found = Log.read(log)
    except (OSError, StoreError) as error:
        problem = " ".join(str(error).split())
        return Summary(
            id=_id(folder), title="", updated=updated, count=0, model="", problem=problem
        )
    summary = replace(Summary.of(_id(folder), found.tree), updated=updated)
    summary.write(folder, found.size)
    return summary


def _id(folder: Path) -> str:
    return folder.name.partition(".")[0]  # in the trash, the time follows


def title(tree: Tree) -> str:
    """The name that was given, or the first words of the user."""
    if tree.title:
        return tree.title
    said = (m.text for m in tree.messages.values() if m.role == "user" and m.text.strip())
    words = " ".join(next(said, "")[: 20 * TITLE].split())
    if len(words) <= TITLE:
        return words
    short = words[: TITLE - 1]
    return (short.rpartition(" ")[0] or short) + "…"


def _known(data: Any, id: str, size: int) -> Summary:
    """What the file says. Raises where that is not about the log as it is."""
    if data["version"] != VERSION or data["log"] != size:
        raise ValueError("of another log")
    for name, kind in (("title", str), ("count", int), ("model", str)):
        if not isinstance(data[name], kind):
            raise TypeError(name)
    return Summary(
        id=id,
        title=data["title"],
        updated=datetime.fromisoformat(data["updated"]).astimezone(UTC),
        count=data["count"],
        model=data["model"],
    )
