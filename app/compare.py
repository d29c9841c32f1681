"""Compare: the same prompt and seed under two settings, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from dg_mlx.errors import PromptError
from dg_mlx.presets import DEFAULT, PRESETS

from .asked import NUMBERS, Asked
from .desk import Desk
from .plain import Notices, widget
from .settings import SettingsPanel

CHANGED = {"max_denoising_steps": "steps", "entropy_bound": "bound"}
"""Settings that each side has for itself; the others are the preset's."""
SIDE = 2 + len(CHANGED)
"""Values of a side's inputs."""
OTHER, ORDER = "other settings", "the same answer, token by token"


class Side:
    """What one of the two is asked with."""

    def __init__(self, name: str, settings: SettingsPanel, notices: Notices, preset: str) -> None:
        own = settings.numbers(preset)
        with gr.Group():
            with gr.Row():
                self.model = gr.Dropdown(
                    settings.models(),
                    value=settings.model.value,
                    label=f"Model {name}",
                    elem_id=f"dg-model-{name.lower()}",
                )
                self.preset = gr.Dropdown(
                    list(PRESETS),
                    value=preset,
                    label=f"Preset {name}",
                    elem_id=f"dg-preset-{name.lower()}",
                )
            with gr.Row():
                self.numbered = [
                    gr.Number(own[n], label=NUMBERS[n][0], elem_id=f"dg-{short}-{name.lower()}")
                    for n, short in CHANGED.items()
                ]
        self.inputs = [self.model, self.preset, *self.numbered]
        told = notices.told(lambda preset: self._numbers(settings, preset), self.numbered)
        self.preset.input(**told, inputs=[self.preset])

    @staticmethod
    def _numbers(settings: SettingsPanel, preset: str) -> list[Any]:
        own = settings.numbers(preset)
        return [own[name] for name in CHANGED]

    @staticmethod
    def asked(shared: Asked, values: Sequence[Any]) -> tuple[str | None, Asked]:
        """Model and settings of this side."""
        model, preset, *numbers = values
        changes = dict(zip(CHANGED, numbers, strict=True))
        changes["max_new_tokens"] = shared.numbers.get("max_new_tokens")
        return model or None, replace(shared, preset=preset or DEFAULT, numbers=changes)


class Compare:
    """The widgets of the tab."""

    def __init__(self, desk: Desk, settings: SettingsPanel, notices: Notices) -> None:
        self._desk, self._settings = desk, settings
        with gr.Row(equal_height=False):
            prompt = gr.Textbox(
                label="Prompt", lines=4, scale=3, elem_id="dg-compare-prompt",
                placeholder="Asked twice, with the same seed",
            )  # fmt: skip
            with gr.Column(scale=1, min_width=220):
                seed = gr.Number(0, label="Seed", precision=0, elem_id="dg-compare-seed")
                kind = gr.Radio([OTHER, ORDER], value=OTHER, label="B is", elem_id="dg-compare-b")
                run = gr.Button("Compare", variant="primary", elem_id="dg-compare-run")
        with gr.Row():
            sides, canvases = [], []
            for name, preset in (("A", DEFAULT), ("B", "fast")):
                with gr.Column(min_width=340):
                    sides.append(Side(name, settings, notices, preset))
                    canvases.append(
                        widget(
                            "canvas",
                            "commit end",
                            elem_id=f"dg-canvas-{name.lower()}",
                            label=f"Canvas {name}",
                        )
                    )
        table = widget("comparison", "seen", elem_id="dg-comparison")
        self.models = [side.model for side in sides]
        told = notices.told(self._run, [*canvases, table])
        inputs = [prompt, seed, kind, *sides[0].inputs, *sides[1].inputs, *settings.inputs]
        run.click(**told, inputs=inputs)

    def choices(self) -> list[Any]:
        """Models for both sides, as they are now: their number changes while the page is open."""
        names = self._settings.models()
        return [gr.Dropdown(choices=names) for _ in self.models]

    def _run(self, prompt: str, seed: float | None, kind: str, *values: Any) -> list[Any]:
        if not prompt.strip():
            raise PromptError("the prompt is empty; write something.")
        shared = replace(self._settings.read(values[2 * SIDE :]), seed=int(seed or 0))
        asks = [Side.asked(shared, values[:SIDE])]
        if kind == OTHER:
            asks.append(Side.asked(shared, values[SIDE : 2 * SIDE]))
        runs = [
            self._desk.try_out(prompt, asked, text=prompt, model=model) for model, asked in asks
        ]
        shown = [json.dumps({"run": f"dg/runs/{run.id}/ws"}) for run in runs]
        if kind == ORDER:
            shown.append(json.dumps({"order": runs[0].id, "text": "Drawn once A is done."}))
        paths = [f"dg/runs/{run.id}/recording" for run in runs]
        return [*shown, json.dumps({"paths": paths, "order": kind == ORDER})]
