"""The lines of a conversation against a simple model: a list of lines, and where one is."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from talk import Talker, quick_folder

from dg_mlx.conversation import Conversation, Message, Store, import_, to_json
from dg_mlx.errors import ConversationError

Line = tuple[str, ...]
"""Ids, from the first message on."""

said = st.text(min_size=1, max_size=8)
answers = st.text(alphabet="abc", min_size=1, max_size=8)


class Lines(RuleBasedStateMachine):
    """Every line that ever was the present one, in order; the last one is."""

    @initialize()
    def begin(self) -> None:
        self.folder = quick_folder()
        self.store = Store(self.folder.__enter__())
        self.talk = self.store.create()
        self.visits: list[Line] = [()]
        self.undone: list[Line] = []
        self.said: dict[str, tuple[str, str]] = {}
        self.gone: set[str] = set()
        self.title, self.system = "", ""

    def teardown(self) -> None:
        self.talk.close()
        self.folder.__exit__(None, None, None)

    @property
    def here(self) -> Line:
        return self.visits[-1]

    def added(self, before: Line, message: Message) -> Line:
        assert message.id not in self.said and message.id not in self.gone
        self.said[message.id] = (message.role, message.text)
        self.undone = []
        return (*before, message.id)

    def pick(self, data: Any, role: str) -> str:
        ids = [id for id, (speaker, _) in self.said.items() if speaker == role]
        return data.draw(st.sampled_from(ids))

    def line_of(self, id: str) -> Line:
        line = next(line for line in self.visits if id in line)
        return line[: line.index(id) + 1]

    def spoke(self, role: str) -> bool:
        return any(speaker == role for speaker, _ in self.said.values())

    @rule(text=said)
    def say(self, text: str) -> None:
        message = self.talk.append("user", text)
        assert message.text == text
        self.visits.append(self.added(self.here, message))

    @rule(text=said, answer=answers)
    def ask(self, text: str, answer: str) -> None:
        list(self.talk.ask(Talker([answer]), text))
        user, reply = self.talk.line[-2:]
        assert (user.text, reply.text) == (text, answer)
        self.visits.append(self.added(self.here, user))
        self.visits.append(self.added(self.here, reply))

    @rule(text=said, data=st.data())
    def ask_in_vain(self, text: str, data: Any) -> None:
        edits = None
        if self.spoke("user") and data.draw(st.booleans()):
            edits = self.pick(data, "user")
        stream = self.talk.ask(Talker([""]), text, edits=edits)
        next(stream)
        self.gone.add(self.talk.line[-1].id)
        list(stream)

    @precondition(lambda self: self.spoke("user"))
    @rule(text=said, data=st.data())
    def edit(self, text: str, data: Any) -> None:
        id = self.pick(data, "user")
        self.visits.append(self.added(self.line_of(id)[:-1], self.talk.edit(id, text)))

    @precondition(lambda self: self.spoke("assistant"))
    @rule(answer=answers, data=st.data())
    def regenerate(self, answer: str, data: Any) -> None:
        id = self.pick(data, "assistant")
        list(self.talk.regenerate(Talker([answer]), id=id))
        assert self.talk.line[-1].text == answer
        self.visits.append(self.added(self.line_of(id)[:-1], self.talk.line[-1]))

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def switch(self, data: Any) -> None:
        id = data.draw(st.sampled_from(sorted(self.said)))
        self.talk.switch(id)
        self.visits.append(next(line for line in reversed(self.visits) if id in line))

    @rule()
    def undo(self) -> None:
        users = [i for i, id in enumerate(self.here) if self.said[id][0] == "user"]
        if not users:
            with pytest.raises(ConversationError):
                self.talk.undo()
            return
        self.undone.append(self.here)
        assert self.talk.undo().id == self.here[users[-1]]
        self.visits.append(self.here[: users[-1]])

    @rule()
    def redo(self) -> None:
        if not self.undone:
            with pytest.raises(ConversationError):
                self.talk.redo()
            return
        self.talk.redo()
        self.visits.append(self.undone.pop())

    @rule()
    def clear(self) -> None:
        self.talk.clear()
        if self.here:
            self.undone.append(self.here)
            self.visits.append(())

    @rule(text=said)
    def name(self, text: str) -> None:
        self.talk.rename(text)
        self.talk.system = text
        self.title, self.system = " ".join(text.split()), text

    @precondition(lambda self: self.said)
    @rule()
    def load_again(self) -> None:
        self.talk.close()
        self.talk = self.store.load(self.talk.id)
        assert self.talk.damaged == 0
        (copy,) = import_(to_json(self.talk))
        self.check(copy)

    @invariant()
    def same(self) -> None:
        self.check(self.talk)
        for id in self.said:
            before, line = len(self.line_of(id)) - 1, self.line_of(id)
            beside = {other[before] for other in self.visits
                      if len(other) > before and other[:before] == line[:before]}  # fmt: skip
            assert {m.id for m in self.talk.branches(id)} == beside

    def check(self, talk: Conversation) -> None:
        assert tuple(m.id for m in talk.line) == self.here
        assert [(m.role, m.text) for m in talk.line] == [self.said[id] for id in self.here]
        assert (talk.tree.title, talk.system) == (self.title, self.system)
        assert set(talk.tree.messages) == set(self.said)
        head = [("system", self.system)] if self.system else []
        told = [(m["role"], m["content"]) for m in talk.messages()]
        assert told == [*head, *(self.said[id] for id in self.here)]


TestLines = Lines.TestCase
TestLines.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
