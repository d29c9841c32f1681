"""The chat: a conversation's messages, the box below them, and the canvas beside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from dg_mlx.conversation import Conversation, Message
from dg_mlx.errors import ConversationError, StoreError
from dg_mlx.serve.runs import Run

from . import uploads
from .asked import Asked
from .desk import Desk, Sent, answers
from .plain import Notices, on, one_line, widget
from .rows import Row, rows, sending, written
from .settings import SettingsPanel

HINT = "Message, or drop pictures, videos and texts"


class Chat:
    """The widgets of the tab, and what happens on them. The page holds no state but an id."""

    def __init__(
        self,
        desk: Desk,
        settings: SettingsPanel,
        notices: Notices,
        id: gr.Textbox,
        listed: gr.HTML,
    ) -> None:
        """`id`: where the page keeps which conversation it shows; `listed`: the list of all."""
        self._desk, self._settings, self._id, self._listed = desk, settings, id, listed
        with gr.Row(equal_height=True, elem_id="dg-chat"):
            with gr.Column(scale=5, min_width=300):
                self._chat = gr.Chatbot(
                    label="Chat",
                    height="62vh",
                    editable="user",
                    buttons=["copy", "copy_all"],
                    placeholder="Ask about text, pictures or video.",
                    elem_id="dg-messages",
                    group_consecutive_messages=False,
                )
                self._turns = widget("turns", "pick replay redo", elem_id="dg-turns")
                self._box = gr.MultimodalTextbox(
                    file_count="multiple",
                    file_types=uploads.TYPES,
                    placeholder="One moment…",
                    interactive=False,  # until it is known which conversation this is
                    show_label=False,
                    stop_btn=False,
                    elem_id="dg-box",
                    autofocus=True,
                    max_plain_text_length=100_000,
                )
            with gr.Column(scale=6, min_width=360):
                self._canvas = widget(
                    "canvas", "commit end", elem_id="dg-canvas", label="Canvas of the answer"
                )
        self.outputs = [self._id, self._chat, self._turns, self._canvas, self._box, self._listed]
        self._listen(notices)

    def _listen(self, notices: Notices) -> None:
        asked = [self._id, *self._settings.inputs]

        def told(run: Callable[..., Any], outputs: Sequence[Any] = self.outputs) -> dict[str, Any]:
            return notices.told(run, outputs)

        self._box.submit(**told(self._send), inputs=[self._id, self._box, *asked[1:]])
        self._box.stop(None, js="() => DGPage.stop('dg-canvas')", queue=False)
        self._chat.retry(**told(self._retry), inputs=asked)
        self._chat.edit(**told(self._edit), inputs=asked)
        self._chat.undo(**told(self._undo), inputs=[self._id])
        self._chat.clear(**told(self._clear), inputs=[self._id])
        on(self._turns, "pick", **told(self._switch), inputs=[self._id])
        on(self._turns, "redo", **told(self._redo), inputs=[self._id])
        on(self._turns, "replay", **told(self._replay, [self._canvas]), inputs=[self._id])
        on(self._canvas, "commit", **told(self._progress, [self._chat]), inputs=[self._id])
        on(self._canvas, "end", **told(self._ended), inputs=[self._id])

    # What is shown.

    def show(self, id: str, *, canvas: Any = None, box: Any = None) -> list[Any]:
        """Everything of a conversation, as updates of `outputs`. Raises `StoreError`.

        `canvas`, `box`: their updates, where they are not as the conversation has them.
        """
        conversation, run = self._desk.conversation(id), self._desk.run_of(id)
        if canvas is None:
            canvas = self._canvas_value(id, conversation, run)
        if box is None:
            box = gr.MultimodalTextbox(**self._buttons(run), placeholder=_hint(conversation))
        return [
            id,
            [row.value for row in self._rows(id, conversation)],
            _turns(conversation),
            canvas,
            box,
            self.listing(id),
        ]

    def listing(self, id: str, text: str = "", undo: dict[str, str] | None = None) -> str:
        """The value of the list of conversations."""
        store = self._desk.store
        found: Sequence[Any] = []
        problem = ""
        if store is not None:
            try:
                found = store.list()
                if text.strip():
                    hits = {hit.id: hit.excerpt for hit in store.search(text)}
                    wanted = text.casefold()
                    found = [s for s in found if s.id in hits or wanted in s.title.casefold()]
            except StoreError as error:
                problem = one_line(error)
        items = [
            {
                "id": summary.id,
                "title": summary.title or "Pictures",
                "updated": summary.updated.isoformat(),
                "count": summary.count,
                "problem": summary.problem,
            }
            for summary in found
        ]
        listed = {"items": items, "current": id, "undo": undo, "query": text, "problem": problem}
        return json.dumps(listed)

    def _rows(self, id: str, conversation: Conversation) -> list[Row]:
        line = self._desk.line(id)
        found = rows(conversation, line)
        if (sent := self._desk.pending(id)) is not None:
            found += sending(sent.text, sent.files)
        run = self._desk.run_of(id)
        if run is not None:
            found += written(run.text, run.thought)
        return found

    def _canvas_value(self, id: str, conversation: Conversation, run: Run | None) -> str:
        if run is not None:
            return _following(run)
        recorded = conversation.recorded
        for message in reversed(answers(conversation)):
            if message.id in recorded:
                return json.dumps({"recording": f"dg/recordings/{id}/{message.id}"})
        return json.dumps({"text": "The canvas of an answer settles here."})

    @staticmethod
    def _buttons(run: Run | None) -> dict[str, Any]:
        return {"submit_btn": run is None, "stop_btn": run is not None, "interactive": True}

    # What is done.

    def _send(self, id: str, value: dict[str, Any], *asked: Any) -> list[Any]:
        id, files = self._desk.known(id), value.get("files") or []
        content = uploads.content(value.get("text") or "", files)
        conversation = self._desk.conversation(id)
        calls = _open_calls(conversation)

        def begin(conversation: Conversation) -> Callable[..., Iterator[Any]]:
            if calls:
                results = _results(calls, content)
                return lambda engine, options: conversation.resume(engine, results, **options)
            return lambda engine, options: conversation.ask(engine, content, **options)

        def after(run: Run) -> None:
            if run.kept["message"] is not None and conversation.unsaved is None:
                uploads.forget(files)

        sent = Sent(text=value.get("text") or "", files=tuple(files))
        return self._answer(id, asked, begin, sent, after=after, cleared=True)

    def _retry(self, data: gr.RetryData, id: str, *asked: Any) -> list[Any]:
        conversation = self._desk.conversation(id)
        message = self._message(id, data.index)
        at = message if message.role == "assistant" else _next(conversation, message)

        def begin(conversation: Conversation) -> Callable[..., Iterator[Any]]:
            return lambda engine, options: conversation.regenerate(engine, id=at.id, **options)

        return self._answer(id, asked, begin, Sent(), until=at.parent, cleared=False)

    def _edit(self, data: gr.EditData, id: str, *asked: Any) -> list[Any]:
        conversation, message = self._desk.conversation(id), self._message(id, data.index)
        text = data.value if isinstance(data.value, str) else ""
        if not text.strip():
            raise ConversationError("the message is empty; write something.")
        content = conversation.reworded(message, text)

        def begin(conversation: Conversation) -> Callable[..., Iterator[Any]]:
            return lambda engine, options: conversation.ask(
                engine, content, edits=message.id, **options
            )

        sent = Sent(text=text)
        return self._answer(id, asked, begin, sent, until=message.parent, cleared=False)

    def _undo(self, id: str) -> list[Any]:
        message = self._desk.idle(id).undo()
        box = gr.MultimodalTextbox(value={"text": message.text, "files": []})
        return self.show(id, box=box)

    def _clear(self, id: str) -> list[Any]:
        self._desk.idle(id).clear()
        return self.show(id)

    def _redo(self, id: str) -> list[Any]:
        self._desk.idle(id).redo()
        return self.show(id)

    def _switch(self, data: gr.EventData, id: str) -> list[Any]:
        self._desk.idle(id).switch(str(data._data["id"]))
        return self.show(id)

    def _replay(self, data: gr.EventData, id: str) -> str:
        return json.dumps({"recording": f"dg/recordings/{id}/{data._data['id']}"})

    def _progress(self, id: str) -> list[Any]:
        return [[row.value for row in self._rows(id, self._desk.conversation(id))]]

    def _ended(self, data: gr.EventData, id: str) -> list[Any]:
        id = self._desk.known(id)
        sent = "" if data._data.get("message") else self._desk.sent_last(id)
        box = gr.MultimodalTextbox(
            **self._buttons(self._desk.run_of(id)),
            placeholder=_hint(self._desk.conversation(id)),
            **({"value": {"text": sent, "files": []}} if sent else {}),
        )
        return self.show(id, canvas=gr.skip(), box=box)

    def _answer(
        self,
        id: str,
        asked: Sequence[Any],
        begin: Callable[[Conversation], Any],
        sent: Sent,
        *,
        until: str | None = None,
        after: Callable[[Run], None] = lambda run: None,
        cleared: bool,
    ) -> list[Any]:
        how: Asked = self._settings.read(asked)
        run = self._desk.answer(id, how, begin, sent=sent, until=until, after=after)
        box = gr.MultimodalTextbox(**self._buttons(run), **({"value": None} if cleared else {}))
        # It may be over by now: the canvas finds out, and says how it ended.
        return self.show(id, canvas=_following(run), box=box)

    def _message(self, id: str, index: Any) -> Message:
        """The message of a row of the chat."""
        conversation = self._desk.conversation(id)
        at = index[0] if isinstance(index, (list, tuple)) else index
        found = rows(conversation, conversation.line)
        if not isinstance(at, int) or not 0 <= at < len(found):
            raise ConversationError("this message is not there any more; reload the page.")
        return conversation.tree[found[at].message]


def _following(run: Run) -> str:
    """The canvas's value: it watches a run."""
    return json.dumps({"run": f"dg/runs/{run.id}/ws"})


def _turns(conversation: Conversation) -> str:
    """Which messages have other versions, and which answers can be seen again."""
    versions = []
    for message in conversation.line:
        others = conversation.branches(message.id)
        if len(others) > 1:
            at = [other.id for other in others].index(message.id)
            versions.append(
                {
                    "role": message.role,
                    "text": " ".join(message.text.split())[:40],
                    "number": at + 1,
                    "of": len(others),
                    "before": others[at - 1].id if at else None,
                    "after": others[at + 1].id if at + 1 < len(others) else None,
                }
            )
    recorded = conversation.recorded
    replays = [
        {"id": message.id, "text": " ".join(message.text.split())[:40] or "(no text)"}
        for message in answers(conversation)
        if message.id in recorded
    ]
    undone = True
    try:
        _ = conversation.tree.undone
    except ConversationError:
        undone = False
    return json.dumps({"versions": versions, "replays": replays, "undone": undone})


def _open_calls(conversation: Conversation) -> dict[str, str]:
    """Calls of tools that wait for their results: name by id."""
    last = conversation.line[-1:]
    return {c["id"]: c["function"]["name"] for m in last for c in m.tool_calls if "id" in c}


def _results(calls: dict[str, str], content: Any) -> dict[str, Any]:
    """What was typed as the results of calls: of several, a JSON object by name or id."""
    if len(calls) == 1:
        return dict.fromkeys(calls, content)
    try:
        given = json.loads(content)
        return {id: given.get(id, given.get(name)) for id, name in calls.items()}
    except (ValueError, TypeError, AttributeError):
        names = ", ".join(f'"{name}": …' for name in calls.values())
        raise ConversationError(
            f"{len(calls)} tools were called; answer with one JSON object: {{{names}}}."
        ) from None


def _hint(conversation: Conversation) -> str:
    calls = _open_calls(conversation)
    return f"Result of {', '.join(calls.values())}" if calls else HINT


def _next(conversation: Conversation, message: Message) -> Message:
    """The answer to a message of the user, or the message itself where there is none."""
    line = conversation.line
    at = [m.id for m in line].index(message.id) + 1
    return line[at] if at < len(line) else message
