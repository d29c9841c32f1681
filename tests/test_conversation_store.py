"""Saving conversations: after a kill, on a full disk, by two programs, and a thousand of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from talk import Talker, ask, quick_folder, texts

from dg_mlx.conversation import Conversation, Store, Unsaved, log
from dg_mlx.errors import ConversationError, StoreError
from dg_mlx.events import Done

HERE = Path(__file__).parent
GIF = b"GIF89a\x01\x00\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"


@pytest.fixture
def store() -> Iterator[Store]:
    with quick_folder() as path:
        yield Store(path)


def talked(store: Store, *said: str) -> str:
    """The id of a closed conversation with these turns."""
    with store.create(model="fake") as talk:
        for text in said:
            ask(talk, text, "yes")
        return talk.id


def log_of(store: Store, id: str) -> Path:
    return store.path / id / "log.jsonl"


def python(*arguments: str, script: str = "-") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        input=script,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )


# What is saved -----------------------------------------------------------------------------------


def test_everything_is_there_again(store: Store) -> None:
    picture = [{"type": "image", "image": GIF}, {"type": "text", "text": "what?"}]
    with store.create(system="be brief", model="fake") as talk:
        ask(talk, picture, "HMa dot", seed=3)
        ask(talk, "no", "yes")
        talk.regenerate(Talker(["again"]))
        talk.rename("A dot")
        talk.undo()
    with store.load(talk.id) as again:
        assert again.tree.messages == talk.tree.messages
        assert (again.system, again.title, again.model) == ("be brief", "A dot", "fake")
        assert texts(again) == ["what?", "a dot"]
        source = again.messages()[1]["content"][0]["image"]
        assert Path(source).read_bytes() == GIF
        assert Path(source).parent == store.path / talk.id / "media"
        again.redo()
        assert texts(again) == ["what?", "a dot", "no", "yes"]


def test_the_same_picture_is_stored_once(store: Store) -> None:
    with store.create() as talk:
        for _ in range(3):
            ask(talk, [{"type": "image", "image": GIF}], "yes")
        assert len(os.listdir(store.path / talk.id / "media")) == 1


def test_a_video_is_copied(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.MP4"
    path.write_bytes(b"frames")
    with store.create() as talk:
        ask(talk, [{"type": "video", "video": str(path)}], "yes")
        path.unlink()
        source = talk.messages()[0]["content"][0]["video"]
        assert source.endswith(".mp4") and Path(source).read_bytes() == b"frames"


def test_a_video_that_changes_meanwhile_is_not_stored_as_another(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"frames")
    with store.create() as talk:
        stream = talk.ask(Talker(["yes"]), [{"type": "video", "video": str(path)}])
        path.write_bytes(b"others")
        list(stream)
        assert talk.unsaved is None and texts(talk)[1:] == ["yes"]
        assert os.listdir(store.path / talk.id / "media") == []


def test_nothing_is_saved_before_something_is_said(store: Store) -> None:
    with store.create(system="be brief") as talk:
        talk.rename("a name")
        talk.system = "be long"
        assert not store.path.exists()
        ask(talk, "hi", "yes")
    with store.load(talk.id) as again:
        assert (again.system, again.title) == ("be long", "a name")


def test_the_home_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_MLX_HOME", str(tmp_path / "mine"))
    assert Store().path == tmp_path / "mine" / "conversations"
    monkeypatch.delenv("DG_MLX_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert Store().path == tmp_path / "xdg" / "dg-mlx" / "conversations"
    assert not list(tmp_path.iterdir())


def test_others_cannot_read_along(store: Store) -> None:
    talked(store, "hi")
    assert store.path.stat().st_mode & 0o077 == 0


def test_a_conversation_in_memory_can_be_kept(store: Store) -> None:
    talk = Conversation(system="be brief")
    ask(talk, [{"type": "image", "image": GIF}], "one")
    list(talk.regenerate(Talker(["two"])))
    talk.switch("2")
    store.keep(talk)
    ask(talk, "more", "three")
    talk.close()
    with store.load(talk.id) as again:
        assert again.line == talk.line
        assert again.messages() == talk.messages()
    with pytest.raises(StoreError, match="this conversation is saved already, as"):
        store.keep(talk)
    copy = store.read(talk.id)
    store.keep(copy)
    copy.close()
    shutil.rmtree(store.path / talk.id)
    with store.load(copy.id) as again:
        assert Path(again.messages()[1]["content"][0]["image"]).read_bytes() == GIF


def test_an_append_costs_the_same_however_long_it_gets(store: Store) -> None:
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("this system does not count what a process writes")

    def moved() -> int:
        found = dict(line.split(": ") for line in counters.read_text().splitlines())
        return int(found["wchar"]) + int(found["rchar"])

    costs = []
    with store.create(model="fake") as talk:
        for number in range(500):
            before = moved()
            ask(talk, f"{number:03}", "yes")
            costs.append(moved() - before)
    assert len(talk.line) == 1000
    # Turn 0 makes the folder. Ids and counts get a few digits longer.
    assert max(costs[-100:]) < 1.1 * max(costs[1:100])
    with store.load(talk.id) as again:
        assert again.line == talk.line


# After a crash -----------------------------------------------------------------------------------


def test_kill_9(tmp_path: Path) -> None:
    done = python(str(HERE / "killed.py"), str(tmp_path), "40")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 0


def test_a_torn_last_line(store: Store) -> None:
    id = talked(store, "hi", "more")
    path = log_of(store, id)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last + 1, len(whole), 7):
        path.write_bytes(whole[:cut])
        with store.load(id) as talk:
            assert texts(talk) == ["hi", "yes", "more"] and talk.damaged == 0
            assert path.read_bytes() == whole[:cut]  # looking changes nothing
            list(talk.regenerate(Talker(["repaired"])))
        with store.load(id) as talk:
            assert texts(talk) == ["hi", "yes", "more", "repaired"] and talk.damaged == 0
        assert store.list()[0].count == 4


def test_a_torn_line_that_is_longer_than_what_follows(store: Store) -> None:
    id = talked(store, "hi")
    with log_of(store, id).open("ab") as file:
        file.write(b'{"do":"system","text":"' + b"x" * 10_000)
    with store.load(id) as talk:
        talk.rename("a")
        talk.rename("b")
    with store.load(id) as talk:
        assert talk.title == "b" and talk.system == "" and talk.damaged == 0


def test_a_torn_first_line(store: Store) -> None:
    id = talked(store, "hi")
    log_of(store, id).write_bytes(b'{"format":')
    with store.load(id) as talk:
        ask(talk, "again", "yes")
    with store.load(id) as talk:
        assert texts(talk) == ["again", "yes"] and talk.damaged == 0


@pytest.mark.parametrize(
    "bad",
    [
        b"garbage",
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"do":"dance"}',
        b'{"do":"switch","head":"99"}',
        b'{"do":"add","message":{"id":"1"}}',
        b'{"do":"add","message":{"id":"1","parent":null,"role":"user","content":"x","time":"2026-01-01T00:00:00+00:00"}}',
        b'{"do":"forget","id":"1"}',
        b"NaN",
    ],
)
def test_damaged_lines_are_skipped_and_counted(store: Store, bad: bytes) -> None:
    id = talked(store, "hi", "more")
    path = log_of(store, id)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], bad + b"\n", *lines[3:]]))
    with store.load(id) as talk:
        assert texts(talk) == ["hi", "yes", "more", "yes"]
        assert talk.damaged == 1
    assert store.list()[0].count == 4


@pytest.mark.parametrize("line", range(5))
def test_what_follows_a_damaged_line_is_kept(store: Store, line: int) -> None:
    id = talked(store, "hi", "more")
    path = log_of(store, id)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = b"\x00" * len(lines[line][:-1]) + b"\n"
    path.write_bytes(b"".join(lines))
    with store.load(id) as talk:
        left = ["hi", "yes", "more", "yes"]
        if line:
            del left[line - 1]
        assert texts(talk) == left and talk.damaged == 1
        ask(talk, "on", "yes")
    with store.load(id) as talk:
        assert texts(talk) == [*left, "on", "yes"]


def test_a_newer_version_is_refused(store: Store) -> None:
    id = talked(store, "hi")
    path = log_of(store, id)
    path.write_text(path.read_text().replace('"version":1', '"version":2'))
    os.utime(path)
    (store.path / id / "meta.json").unlink()
    with pytest.raises(StoreError, match=r"is of version 2 and this dg-mlx reads 1; update dg-mlx"):
        store.load(id)
    with pytest.raises(StoreError, match="update dg-mlx"):
        store.read(id)
    (found,) = store.list()
    assert "update dg-mlx" in found.problem and "\n" not in found.problem


def test_what_a_crash_left_is_taken_away(store: Store) -> None:
    id = talked(store, "hi")
    left, fresh = store.path / ".a.partial", store.path / ".b.partial"
    for path in (left, fresh):
        path.mkdir()
    os.utime(left, (0, 0))
    again = Store(store.path.parent)
    assert not left.exists() and fresh.exists()
    assert [found.id for found in again.list()] == [id]


# Disks that cannot be written --------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a small disk of its own, again with other options."""
    path, mounted = tmp_path / "disk", []
    path.mkdir()

    def mount(options: str) -> Path:
        kind = ["-o", f"remount,{options}"] if mounted else ["-t", "tmpfs", "-o", options, "tmpfs"]
        if not shutil.which("mount") or os.geteuid() or sys.platform != "linux":
            pytest.skip("only root can mount a disk")
        done = subprocess.run(["mount", *kind, str(path)], capture_output=True, timeout=60)
        if done.returncode:
            pytest.skip("this machine does not let us mount a disk")
        mounted.append(path)
        return path

    yield mount
    if mounted:
        subprocess.run(["umount", str(path)], check=True, timeout=60)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def test_a_full_disk(disk: Callable[..., Path]) -> None:
    store = Store(disk("size=256k"))
    with store.create() as talk:
        ask(talk, "hi", "yes")
        filler = store.path.parent / "filler"
        fill(filler)
        whole = log_of(store, talk.id).read_bytes()
        long = "x" * 10_000
        events = ask(talk, long, "yes")
        notices = [event for event in events if isinstance(event, Unsaved)]
        assert len(notices) == 1  # said once
        assert "No space left on device" in notices[0].line and "free some space" in notices[0].line
        assert talk.unsaved is not None
        assert not any(isinstance(event, Unsaved) for event in ask(talk, long, "yes"))
        talk.undo()
        assert texts(talk) == ["hi", "yes", long, "yes"]  # it goes on
        assert log_of(store, talk.id).read_bytes() == whole
        assert texts(store.read(talk.id)) == ["hi", "yes"]
        filler.unlink()
        ask(talk, [{"type": "image", "image": GIF}], "yes")
        assert talk.unsaved is None
    with store.load(talk.id) as again:
        assert again.line == talk.line and again.damaged == 0
        assert again.tree.messages == talk.tree.messages


def test_a_disk_that_is_full_from_the_start(disk: Callable[..., Path]) -> None:
    store = Store(disk("size=64k"))
    filler = store.path.parent / "filler"
    fill(filler)
    with store.create() as talk:
        with pytest.raises(StoreError, match="No space left on device"):
            talk.append("user", [{"type": "image", "image": GIF}])
        assert store.list() == []
        filler.unlink()
        talk.append("assistant", "yes")
        assert talk.unsaved is None
    with store.load(talk.id) as again:
        assert Path(again.messages()[0]["content"][0]["image"]).read_bytes() == GIF


FULL = """
import resource, sys
from pathlib import Path
from talk import ask, texts
from dg_mlx.conversation import Store, Unsaved

store = Store(Path(sys.argv[1]))
with store.create() as talk:
    ask(talk, "hi", "yes")
    whole = (store.path / talk.id / "log.jsonl").read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    events = ask(talk, "x" * 3000, "yes")
    (notice,) = [event for event in events if isinstance(event, Unsaved)]
    assert "File too large" in notice.line, notice.line
    assert texts(store.read(talk.id)) == ["hi", "yes"]
    assert (store.path / talk.id / "log.jsonl").read_bytes() == whole
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    ask(talk, "more", "yes")
    assert talk.unsaved is None and texts(store.read(talk.id)) == texts(talk)
"""


def test_a_write_that_stops_in_the_middle(tmp_path: Path) -> None:
    done = python("-", str(tmp_path), script=FULL)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_cannot_be_written(disk: Callable[..., Path]) -> None:
    store = Store(disk("size=1m"))
    id = talked(store, "hi")
    disk("ro")
    again = Store(store.path.parent)
    assert [found.title for found in again.list()] == ["hi"]
    with again.load(id) as talk:
        with pytest.raises(StoreError, match=r"Read-only file system.* or set DG_MLX_HOME"):
            talk.rename("a name")
        events = ask(talk, "more", "yes")
        assert not any(isinstance(event, Unsaved) for event in events)  # it was said
        assert texts(talk) == ["hi", "yes", "more", "yes"] and talk.title == "a name"
    with again.create() as talk:
        events = ask(talk, "new", "yes")
        assert sum(isinstance(event, Unsaved) for event in events) == 1
        assert isinstance(events[-1], Done) and texts(talk) == ["new", "yes"]
    with pytest.raises(StoreError, match="Read-only file system"):
        again.delete(id)


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.touch()
    with Store(home).create() as talk:
        events = ask(talk, "hi", "yes")
        assert sum(isinstance(event, Unsaved) for event in events) == 1
        assert texts(talk) == ["hi", "yes"]


# Two programs ------------------------------------------------------------------------------------


OTHER = """
import sys
from pathlib import Path
from dg_mlx.conversation import Store

Store(Path(sys.argv[1])).load(sys.argv[2])
"""


def test_one_writer_at_a_time(store: Store) -> None:
    with store.create() as talk:
        ask(talk, "hi", "yes")
        done = python("-", str(store.path.parent), talk.id, script=OTHER)
        assert f"StoreError: conversation {talk.id} is open in another program" in done.stderr
        for call in (store.load, store.delete, lambda id: store.rename(id, "x")):
            with pytest.raises(StoreError, match=f"conversation {talk.id} is open"):
                call(talk.id)
        copy = store.read(talk.id)
        ask(copy, "else", "yes")  # goes nowhere
        assert texts(store.read(talk.id)) == ["hi", "yes"]
    with store.load(talk.id) as again:
        ask(again, "more", "yes")


def test_changed_behind_our_back(store: Store) -> None:
    with store.create() as talk:
        ask(talk, "hi", "yes")
        talk.rename("a name")
        with log_of(store, talk.id).open("ab") as file:
            file.write(b'{"do":"title","text":"x"}\n')
        with pytest.raises(StoreError, match="was changed by another program; load"):
            talk.rename("another")
    with store.create() as talk:
        ask(talk, "hi", "yes")
        talk.rename("a name")
        shutil.rmtree(store.path / talk.id)
        with pytest.raises(StoreError):
            talk.rename("another")


def test_names_are_given_while_an_answer_is_saved(store: Store) -> None:
    with store.create() as talk:
        ask(talk, "hi", "yes")

        def rename() -> None:
            for number in range(50):
                talk.rename(str(number))

        thread = threading.Thread(target=rename)
        thread.start()
        for _ in range(20):
            ask(talk, "more", "yes")
        thread.join()
    with store.load(talk.id) as again:
        assert again.damaged == 0 and len(again.line) == 42 and again.title == "49"


# Lists -------------------------------------------------------------------------------------------


def test_a_list(store: Store) -> None:
    first = talked(store, "\n  the first\twords of a turn ", "more")
    second = talked(store, "w" * 100)
    with store.load(first) as talk:
        ask(talk, "and more", "yes")
    one, two = store.list()
    assert (one.id, two.id) == (first, second)  # what changed last is first
    assert (one.title, one.count, one.model) == ("the first words of a turn", 6, "fake")
    assert two.title == "w" * 59 + "…"
    assert abs(one.updated.timestamp() - time.time()) < 60


def test_a_list_of_a_thousand_opens_no_log(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    id = talked(store, "hi")
    for number in range(999):
        shutil.copytree(store.path / id, store.path / f"20260101-000000-{number:08x}")
    monkeypatch.setattr(log.Log, "read", lambda path: pytest.fail("a log was read"))
    start = time.perf_counter()
    assert len(store.list()) == 1000
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "meta", [None, b"", b"{", b"[]", b"null", b'{"version":1}', b'{"version":2}', b"\xff"]
)
def test_a_damaged_summary_is_made_anew(store: Store, meta: bytes | None) -> None:
    id = talked(store, "hi", "more")
    path = store.path / id / "meta.json"
    (good,) = store.list()
    if meta is None:
        path.unlink()
    else:
        path.write_bytes(meta)
    (found,) = store.list()
    assert (found.title, found.count, found.model) == (good.title, good.count, good.model)
    assert json.loads(path.read_bytes())["count"] == 4


def test_a_summary_that_is_older_than_the_log(store: Store) -> None:
    id = talked(store, "hi")
    old = (store.path / id / "meta.json").read_bytes()
    with store.load(id) as talk:
        ask(talk, "more", "yes")
    (store.path / id / "meta.json").write_bytes(old)
    assert store.list()[0].count == 4


@pytest.mark.parametrize(
    "title", ["../../x", "a\nb\x00c", "\u202etxt", "🦊" * 300, "</title>", "\ud800", "-rf", "CON"]
)
def test_odd_titles(store: Store, title: str) -> None:
    id = talked(store, "hi")
    store.rename(id, title)
    (found,) = store.list()
    assert found.title == " ".join(title.split())[:200]
    with store.load(id) as talk:
        assert talk.title == found.title
        talk.rename("")
        assert talk.title == "hi"
    assert [path.name for path in store.path.iterdir()] == [id]


def test_titles_without_words(store: Store) -> None:
    talked(store, " \n ")
    with store.create() as talk:
        ask(talk, [{"type": "image", "image": GIF}], "yes")
        assert talk.title == ""
        ask(talk, "what is it?", "yes")
    assert [found.title for found in store.list()] == ["what is it?", ""]


@pytest.mark.parametrize(
    ("wanted", "excerpt"),
    [
        ("needle", "xxx Needle yyy"),
        ("NEEDLE YYY", "xxx Needle yyy"),
        ("strasse 'n", 'in der Straße \'n "Haus" wait'),
        ('"haus"', 'in der Straße \'n "Haus" wait'),
        ("back\\slash", "a back\\slash"),
        ("two\nlines", "two lines"),
        ("東京", "東京 は"),
        ("ﬁ", "a fine day"),
        ("absent", None),
        ("role", None),
        ("\\n", None),
    ],
)
def test_search(store: Store, wanted: str, excerpt: str | None) -> None:
    said = [
        "xxx Needle yyy",
        'in der Straße \'n "Haus"\nwait',
        "a back\\slash",
        "two\nlines",
        "東京 は",
        "a fine day",
    ]
    id = talked(store, *said)
    talked(store, "other")
    hits = [*store.search(wanted)]
    assert [hit.excerpt for hit in hits] == ([] if excerpt is None else [excerpt])
    assert all(hit.id == id and texts(store.read(id)) for hit in hits)


def test_search_on_all_lines(store: Store) -> None:
    with store.create() as talk:
        ask(talk, "one needle" + " and hay" * 50, "yes")
        ask(talk, "else", "yes", edits="1")
        ask(talk, "two needle", "")  # forgotten
    (hit,) = store.search("needle")
    assert hit.message == "1"
    assert hit.excerpt.startswith("one needle and") and hit.excerpt.endswith("…")
    assert [*store.search(" ")] == [] == [*store.search("")]


# The trash ---------------------------------------------------------------------------------------


def test_delete_and_restore(store: Store) -> None:
    id = talked(store, "hi")
    store.delete(id)
    assert store.list() == []
    for call in (store.load, store.read, store.delete):
        with pytest.raises(StoreError, match=f"there is no conversation '{id}'; list them again"):
            call(id)
    assert [(found.id, found.title) for found in store.trash()] == [(id, "hi")]
    store.restore(id)
    assert [found.id for found in store.list()] == [id]
    assert store.trash() == []
    with store.load(id) as talk:
        assert texts(talk) == ["hi", "yes"]
    with pytest.raises(StoreError, match=f"there is no conversation '{id}' in the trash"):
        store.restore(id)


def test_the_trash_is_emptied_after_30_days(store: Store) -> None:
    old, new = talked(store, "old"), talked(store, "new")
    for id, days in ((old, 31), (new, 29)):
        store.delete(id)
        (path,) = (store.path / ".trash").glob(f"{id}.*")
        path.rename(path.with_suffix(f".{time.time() - days * 86400:.0f}"))
    again = Store(store.path.parent)
    assert [found.id for found in again.trash()] == [new]


@pytest.mark.parametrize("id", ["../x", "", ".", "/", "a" * 40, "20260101-000000-zzzzzzzz"])
def test_ids_are_no_paths(store: Store, id: str) -> None:
    talked(store, "hi")
    for call in (store.load, store.read, store.delete):
        with pytest.raises(StoreError, match="there is no conversation"):
            call(id)
    with pytest.raises(StoreError, match="in the trash"):
        store.restore(id)


def test_a_closed_conversation_cannot_be_changed(store: Store) -> None:
    with store.create() as talk:
        ask(talk, "hi", "yes")
    for change in (talk.undo, lambda: talk.rename("x"), lambda: talk.ask(Talker(["x"]), "x")):
        with pytest.raises(ConversationError, match="this conversation is closed; load it again"):
            change()
    assert texts(talk) == ["hi", "yes"]
