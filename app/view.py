"""The page: its tabs, its list of conversations, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from dg_mlx.errors import StoreError

from .chat import Chat
from .compare import Compare
from .desk import Desk
from .edit import Edit
from .models import ModelsTab
from .plain import Notices, on, said, widget
from .settings import SettingsPanel

THEME = gr.themes.Base(
    primary_hue="blue",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace"],
)


class Page:
    """The widgets of all tabs, on one desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        with gr.Blocks(
            title="dg-mlx", fill_width=True, analytics_enabled=False, delete_cache=(600, 3600)
        ) as self.blocks:
            id = gr.Textbox(visible="hidden", elem_id="dg-conversation")
            self._notices = Notices()
            with gr.Sidebar(open=True, width=280, elem_id="dg-conversations"):
                listed = widget(
                    "conversations",
                    "pick fresh rename remove restore search imported",
                    elem_id="dg-list",
                )
            with gr.Sidebar(position="right", open=False, width=300, elem_id="dg-settings"):
                settings = self._settings = SettingsPanel(desk, self._notices)
            with gr.Tabs(elem_id="dg-tabs"):
                with gr.Tab("Chat", id="chat"):
                    self._chat = Chat(desk, settings, self._notices, id, listed)
                with gr.Tab("Edit in place", id="edit"):
                    Edit(desk, settings, self._notices)
                with gr.Tab("Compare", id="compare") as tab:
                    compare = Compare(desk, settings, self._notices)
                tab.select(**self._notices.told(compare.choices, compare.models))
                with gr.Tab("Models", id="models"):
                    ModelsTab(desk, settings, self._notices)
            self._listen(id, listed, settings)

    def _listen(self, id: gr.Textbox, listed: gr.HTML, settings: SettingsPanel) -> None:
        shown = [*self._chat.outputs, settings.system]
        own = [settings.model, *settings.numbered]

        def told(run: Callable[..., Any], outputs: Sequence[Any] = shown) -> dict[str, Any]:
            return {**self._notices.told(run, outputs), "inputs": [id]}

        self.blocks.load(
            self._open,
            [id],
            [*shown, *own, self._notices.widget],
            # Our script may not be there yet.
            js='() => new URL(location.href).searchParams.get("c") || ""',
            queue=False,
            show_progress="hidden",
        )
        id.change(None, [id], js="(id) => DGPage.remember(id)", queue=False)
        for event, run in (
            ("pick", self._pick),
            ("imported", self._pick),
            ("fresh", self._fresh),
            ("remove", self._remove),
            ("restore", self._restore),
        ):
            on(listed, event, **told(run))
        on(listed, "rename", **told(self._rename, [listed]))
        on(listed, "search", **told(self._search, [listed]))

    def _open(self, id: str) -> list[Any]:
        """The conversation of the page's address, or a new one."""
        try:
            return [*self._shown(id or self._desk.new()), *self._settings.now(), gr.skip()]
        except StoreError as error:
            line = said(f"{error} Here is a new one.")
            return [*self._shown(self._desk.new()), *self._settings.now(), line]

    def _shown(self, id: str) -> list[Any]:
        shown = self._chat.show(id)
        return [*shown, self._desk.conversation(id).system]

    def _pick(self, data: gr.EventData, id: str) -> list[Any]:
        return self._shown(str(data._data["id"]))

    def _fresh(self, id: str) -> list[Any]:
        return self._shown(self._desk.new())

    def _remove(self, data: gr.EventData, id: str) -> list[Any]:
        gone = str(data._data["id"])
        self._desk.delete(gone)
        shown = self._shown(self._desk.new() if gone == id else id)
        shown[-2] = self._chat.listing(shown[0], undo={"id": gone, "title": data._data["title"]})
        return shown

    def _restore(self, data: gr.EventData, id: str) -> list[Any]:
        back = str(data._data["id"])
        assert self._desk.store is not None
        self._desk.store.restore(back)
        return self._shown(back)

    def _rename(self, data: gr.EventData, id: str) -> str:
        self._desk.conversation(str(data._data["id"])).rename(str(data._data["title"]))
        return self._chat.listing(id)

    def _search(self, data: gr.EventData, id: str) -> str:
        return self._chat.listing(id, str(data._data["text"]))
