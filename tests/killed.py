"""Talks and is killed, over and over: `python killed.py HOME ROUNDS`, for test_conversation_store.

A child says numbers, every fifth with a picture, and reports each once it is said. Its parent kills
it at a random moment and looks at what is there. Prints how often that was in the middle of a line.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import dg_mlx.processor.messages  # noqa: F401 - before the clock starts
from dg_mlx.conversation import Conversation, Store


def speak(store: Store, id: str, report: int) -> None:
    talk = store.load(id) if id else store.create()
    number = len(talk.tree.messages)
    while True:
        text = {"type": "text", "text": f"{number} {'x' * random.choice([9, 20_000, 3_000_000])}"}
        content = [text, {"type": "image", "image": picture(number)}] if number % 5 == 4 else [text]
        talk.append("user", content)
        number += 1
        os.write(report, f"{talk.id} {number}\n".encode())


def picture(number: int) -> bytes:
    """One pixel in a colour of its own, and much that no reader looks at."""
    head = b"P6 1 1 255\n" + number.to_bytes(3, "big")
    return head + bytes(random.Random(number).randbytes(100_000))


def killed(store: Store, id: str) -> list[str]:
    """What a child reported before it was killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        speak(store, id, write)
    os.close(write)
    time.sleep(random.uniform(0, 0.08))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(read) as reports:
        return reports.read().splitlines()


def check(talk: Conversation, said: int) -> None:
    assert talk.damaged == 0
    assert [int(m.text.split()[0]) for m in talk.line] == [*range(len(talk.line))]
    assert said <= len(talk.line) <= said + 1, (said, len(talk.line))
    for file in (file for message in talk.line for file in message.files):
        data = talk.journal.media.read(file.name)
        assert data is not None and hashlib.sha256(data).hexdigest() == file.name.split(".")[0]


def main(home: Path, rounds: int) -> None:
    store, id, said, torn = Store(home), "", 0, 0
    for _ in range(rounds):
        reports = killed(store, id)
        listed = store.list()
        if not id:
            if not listed:
                continue
            id = listed[0].id
        if reports:
            said = int(reports[-1].split()[1])
        log = (store.path / id / "log.jsonl").read_bytes()
        torn += not log.endswith(b"\n")
        with store.load(id) as talk:
            check(talk, said)
            said = len(talk.line)
            assert [summary.count for summary in listed] == [said]
    print(f"{said} messages, {torn} torn lines")


main(Path(sys.argv[1]), int(sys.argv[2]))
