"""The panel of settings: how answers are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import gradio as gr

from dg_mlx import hub
from dg_mlx.errors import DGError
from dg_mlx.presets import DEFAULT, PRESETS, preset
from dg_mlx.settings import GenerationSettings

from .asked import NUMBERS, Asked, Kind, constraint, declared
from .desk import Desk
from .plain import Notices, one_line

KINDS: dict[Kind, str] = {
    "none": "none",
    "schema": "JSON schema",
    "regex": "regex",
    "choices": "choices",
    "json": "any JSON",
}


class SettingsPanel:
    """Widgets, and what they say."""

    def __init__(self, desk: Desk, notices: Notices) -> None:
        self._desk = desk
        own = self.numbers(DEFAULT)
        with gr.Group():
            self.model = gr.Dropdown(
                self.models(), value=desk.models.default, label="Model", elem_id="dg-model"
            )
            self.preset = gr.Dropdown(
                list(PRESETS),
                value=DEFAULT,
                label="Preset",
                info=PRESETS[DEFAULT].about,
                elem_id="dg-preset",
            )
            self.system = gr.Textbox(label="System", lines=2, elem_id="dg-system")
            self.thinking = gr.Checkbox(label="Think first", elem_id="dg-thinking")
            self.stepwise = gr.Checkbox(
                label="Step by step",
                info="hold the canvas before each step, to look at it and to change it",
                elem_id="dg-stepwise",
            )
        with gr.Group():
            self.seed = gr.Number(0, label="Seed", precision=0, elem_id="dg-seed")
            self.random = gr.Checkbox(True, label="Another seed each time", elem_id="dg-random")
        with gr.Accordion("Sampling", open=False):
            self.numbered = [
                gr.Number(own[name], label=label, info=about, step=step, elem_id=f"dg-{name}")
                for name, (label, step, about) in NUMBERS.items()
            ]
        with gr.Accordion("Constraint on the answer", open=False):
            self.kind = gr.Radio(
                [(label, name) for name, label in KINDS.items()],
                value="none",
                show_label=False,
                elem_id="dg-constraint",
            )
            self.held = gr.Textbox(
                lines=5, label="Schema, expression, or one choice a line", elem_id="dg-held"
            )
            self.verdict = gr.Markdown("", elem_id="dg-verdict")
        with gr.Accordion("Tools", open=False):
            self.tools = gr.Textbox(
                lines=6, label="Declarations (JSON, as in OpenAI's API)", elem_id="dg-tools"
            )
            self.tools_verdict = gr.Markdown("", elem_id="dg-tools-verdict")
        self.inputs = [
            self.preset, self.seed, self.random, self.thinking, self.stepwise, self.system,
            self.tools, self.kind, self.held, *self.numbered,
        ]  # fmt: skip
        self.chosen = [self.model, *self.numbered]
        """What `now` returns the values of."""
        self._listen(notices)

    def _listen(self, notices: Notices) -> None:
        def told(run: Callable[..., Any], outputs: Sequence[Any]) -> dict[str, Any]:
            return notices.told(run, outputs)

        self.preset.input(**told(self._preset, [self.preset, *self.numbered]), inputs=[self.preset])
        self.model.input(**told(self._use, self.chosen), inputs=[self.model, self.preset])
        # Of a text, "input" leaves out what is pasted, and what is typed while one is judged.
        for changed in (self.kind.input, self.held.change):
            changed(**told(self._judge, [self.verdict]), inputs=[self.kind, self.held])
        self.tools.change(**told(self._judge_tools, [self.tools_verdict]), inputs=[self.tools])

    def models(self) -> list[str]:
        """Names that can be chosen."""
        return [entry.name for entry in self._desk.models.list() if not entry.problem]

    def choices(self) -> gr.Dropdown:
        """The models of now, and the one that answers."""
        return gr.Dropdown(self.models(), value=self._desk.models.default)

    def now(self, preset: str = DEFAULT) -> list[Any]:
        """The model and its numbers, as they are now: another tab may have changed them."""
        return [self.choices(), *self.numbers(preset).values()]

    def read(self, values: Sequence[Any]) -> Asked:
        """What the widgets of `inputs` say."""
        name, seed, random, thinking, stepwise, system, tools, kind, held, *numbers = values
        return Asked(
            preset=name or DEFAULT,
            numbers=dict(zip(NUMBERS, numbers, strict=True)),
            seed=None if random or seed is None else int(seed),
            thinking=bool(thinking),
            stepwise=bool(stepwise),
            system=system or "",
            tools=tools or "",
            kind=kind if kind in get_args(Kind) else "none",
            held=held or "",
        )

    def numbers(self, name: str) -> dict[str, Any]:
        """The settings of a preset, for the model that answers. It need not be loaded."""
        own = GenerationSettings.load(hub.find(self._desk.models.default))
        settings = preset(name).apply(own)
        return {name: getattr(settings, name) for name in NUMBERS}

    def _preset(self, name: str) -> list[Any]:
        return [gr.Dropdown(info=PRESETS[name].about), *self.numbers(name).values()]

    def _use(self, model: str, preset: str) -> list[Any]:
        self._desk.models.use(model)
        return self.now(preset)

    def _judge(self, kind: Kind, text: str) -> str:
        """Whether a constraint can be kept to, in a line."""
        if kind == "none" or (kind != "json" and not text.strip()):
            return ""
        try:
            held = constraint(kind, text)
            assert held is not None
            with self._desk.models.lease() as engine:
                engine.check(held)
        except DGError as error:
            return f"✗ {one_line(error)}"
        return "✓ every answer will fit it"

    def _judge_tools(self, text: str) -> str:
        from dg_mlx.processor.messages import check_tools

        try:
            tools = check_tools(declared(text))
        except DGError as error:
            return f"✗ {one_line(error)}"
        return f"✓ {len(tools)} declared" if tools else ""
