"""Recordings beside conversations: where they are, how many, and what cannot stop an answer."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from talk import ask, quick_folder

from dg_mlx.conversation import Conversation, Store, folder, import_, recordings, to_json
from dg_mlx.errors import ConversationError, StoreError
from dg_mlx.replay import Recording


@pytest.fixture
def store() -> Iterator[Store]:
    with quick_folder() as path:
        yield Store(path)


def recording(prompt: str = "hi") -> Recording:
    begin = {"model": "m", "prompt": prompt, "settings": {"eos_token_id": [1]}, "seed": 0}
    return Recording([{"n": 0, "at": 0, "kind": "begin", "length": 4, **begin}])


def answered(talk: Conversation, *prompts: str) -> list[str]:
    """Ids of recorded answers."""
    ids = []
    for prompt in prompts:
        ask(talk, prompt, "yes")
        ids.append(talk.line[-1].id)
        talk.record(ids[-1], recording(prompt))
    return ids


def prompts(talk: Conversation, ids: list[str]) -> list[str | None]:
    found = [talk.recording(id) for id in ids]
    return [None if one is None else one.frames[0]["prompt"] for one in found]


def files_of(store: Store, talk: Conversation) -> list[str]:
    return sorted(path.name for path in (store.path / talk.id / "recordings").iterdir())


def test_they_are_there_again(store: Store) -> None:
    with store.create() as talk:
        ids = answered(talk, "one", "two")
        assert prompts(talk, ids) == ["one", "two"]
        assert talk.recording(talk.line[0].id) is None
        assert prompts(store.read(talk.id), ids) == ["one", "two"]  # also while it is open
    assert files_of(store, talk) == sorted(f"{id}.json.gz" for id in ids)
    with store.load(talk.id) as again:
        assert prompts(again, ids) == ["one", "two"]
        assert again.recorded == {*ids}
        again.record(ids[0], recording("anew"))
        assert prompts(again, ids) == ["anew", "two"]


def test_without_a_folder_they_are_in_memory_until_it_is_kept(store: Store) -> None:
    talk = Conversation()
    ids = answered(talk, "one", "two")
    assert prompts(talk, ids) == ["one", "two"] and talk.recorded == {*ids}
    store.keep(talk)
    talk.close()
    with store.load(talk.id) as again:
        assert prompts(again, ids) == ["one", "two"]


def test_a_copy_takes_them_along_and_writes_nothing_where_it_is_from(store: Store) -> None:
    with store.create() as talk:
        ids = answered(talk, "one")
        copy = store.read(talk.id)
        copy.record(ids[0], recording("mine"))
        ids += answered(copy, "two")
        store.keep(copy)
        assert files_of(store, talk) == [f"{ids[0]}.json.gz"]
        assert prompts(talk, ids[:1]) == ["one"]
        copy.close()
    with store.load(copy.id) as again:
        assert prompts(again, ids) == ["mine", "two"]


def test_they_go_to_the_trash_and_come_back(store: Store) -> None:
    with store.create() as talk:
        ids = answered(talk, "one")
    store.delete(talk.id)
    store.restore(talk.id)
    assert prompts(store.read(talk.id), ids) == ["one"]


def test_files_for_others_do_not_have_them() -> None:
    talk = Conversation()
    (id,) = answered(talk, "one")
    text = to_json(talk)
    assert "recording" not in text
    (again,) = import_(text)
    assert again.recording(id) is None


# Limits ------------------------------------------------------------------------------------------


def test_the_oldest_go_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MOST", 3)
    for talk in (store.create(), Conversation()):
        with talk:
            ids = answered(talk, "one", "two", "three")
            if talk.id:  # a file's time may be too coarse to tell them apart
                for age, id in enumerate(reversed(ids)):
                    path = store.path / talk.id / "recordings" / f"{id}.json.gz"
                    os.utime(path, (1000 - age, 1000 - age))
            ids += answered(talk, "four")
            assert prompts(talk, ids) == [None, "two", "three", "four"]
            talk.record(ids[1], recording("two again"))
            if talk.id:
                os.utime(store.path / talk.id / "recordings" / f"{ids[3]}.json.gz", (1001, 1001))
            ids += answered(talk, "five")
            assert prompts(talk, ids) == [None, "two again", None, "four", "five"]


def test_all_together_are_no_larger_than_allowed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(recording("one").data(gz=True))
    monkeypatch.setattr(recordings, "MOST_BYTES", size * 2 + 10)
    large = recording("".join(chr(0x4E00 + at * 7) for at in range(2000)))
    for talk in (store.create(), Conversation()):
        with talk:
            ids = answered(talk, "one", "two", "six")
            assert len(talk.recorded) == 2 and prompts(talk, ids[-1:]) == ["six"]
            talk.record(ids[0], large)  # alone it is too much, and the others stay
            assert len(talk.recorded) == 2


# What goes wrong ---------------------------------------------------------------------------------


def test_a_full_disk_keeps_it_in_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with store.create() as talk:
        with monkeypatch.context() as patch:
            patch.setattr(folder, "write_bytes", full)
            ids = answered(talk, "one")
            assert prompts(talk, ids) == ["one"] and talk.recorded == {*ids}
        assert files_of(store, talk) == []
        assert talk.unsaved is None  # what was said is saved
        ids += answered(talk, "two")  # there is space again
    assert prompts(store.read(talk.id), ids) == ["one", "two"]


def test_nothing_is_left_of_a_file_that_was_not_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.create() as talk:
        (id,) = answered(talk, "one")
        with monkeypatch.context() as patch:
            patch.setattr("dg_mlx.disk.sync", lambda path: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                talk.record(id, recording("two"))
        assert files_of(store, talk) == [f"{id}.json.gz"]
    assert prompts(store.read(talk.id), [id]) == ["one"]


def test_one_that_is_open_elsewhere_keeps_what_it_has(store: Store) -> None:
    """Only the program that holds the folder writes there, and takes away."""
    with store.create() as talk:
        ids = answered(talk, "one")
        other = store.read(talk.id)
        other.journal.folder = folder.Folder(store.path / talk.id)
        other.record(ids[0], recording("mine"))
        assert prompts(other, ids) == ["mine"] and prompts(talk, ids) == ["one"]


def test_a_damaged_one_says_so(store: Store) -> None:
    with store.create() as talk:
        (id,) = answered(talk, "one")
        path = store.path / talk.id / "recordings" / f"{id}.json.gz"
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(StoreError, match="its gzip is damaged"):
            talk.recording(id)


def test_there_must_be_such_a_message(store: Store) -> None:
    with store.create() as talk:
        ask(talk, "hi", "yes")
        with pytest.raises(ConversationError, match="no message '9'"):
            talk.record("9", recording())
        with pytest.raises(ConversationError, match="no message '9'"):
            talk.recording("9")
        id = talk.line[-1].id
    with pytest.raises(ConversationError, match="closed"):
        talk.record(id, recording())


@pytest.mark.parametrize("id", ["../../x", "A", "a", "\ud800", "漢" * 64, ".", "id.x"])
def test_names_of_messages_of_other_programs(id: str, store: Store) -> None:
    said = {"id": id, "parent": None, "role": "assistant", "content": "", "time": "2026-01-01"}
    data = {"format": "dg-mlx conversation", "version": 1, "messages": [said], "media": {}}
    (talk,) = import_(json.dumps(data | {"title": "", "system": "", "head": id}))
    store.keep(talk)
    with talk:
        talk.record(id, recording("mine"))
        assert prompts(talk, [id]) == ["mine"] and talk.recorded == {id}
        (name,) = files_of(store, talk)
        assert name.isascii() and name == name.lower()
