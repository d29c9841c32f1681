"""Models: what is on the disk and in memory, what can be fetched, and conversions."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from dg_mlx import hub
from dg_mlx.errors import CheckpointError, DGError, HubError
from dg_mlx.serve.catalog import Offer, default_target
from dg_mlx.serve.jobs import Job
from dg_mlx.serve.models import Entry
from dg_mlx.units import size

from .desk import Desk
from .plain import Notices, on, widget
from .settings import SettingsPanel

FORMATS = {
    "4bit": "4 bits",
    "3bit": "3 bits",
    "5bit": "5 bits",
    "6bit": "6 bits",
    "8bit": "8 bits",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
    "none": "none (plain numbers)",
}
"""Of a conversion, the default first."""
PHASES = {"": "starting", "fetch": "fetching", "convert": "converting", "verify": "verifying"}
HUB = "https://huggingface.co/"


class ModelsTab:
    """The widget of the tab. What it shows is `state`, which it asks for while it is seen."""

    def __init__(self, desk: Desk, settings: SettingsPanel, notices: Notices) -> None:
        self._desk, self._settings = desk, settings
        desk.jobs.on_end(self._ended)
        panel = widget("models", "use free open fetch convert halt listed", elem_id="dg-models")

        def told(run: Callable[..., Any], outputs: Sequence[Any]) -> dict[str, Any]:
            # A model loads for long; meanwhile others are unloaded and fetched.
            return {**notices.told(run, outputs), "trigger_mode": "multiple"}

        on(panel, "use", **told(self._use, [panel, *settings.chosen]), inputs=[settings.preset])
        on(panel, "listed", **told(settings.choices, [settings.model]))
        for event, run in (
            ("free", self._unload),
            ("open", self._open),
            ("fetch", self._fetch),
            ("convert", self._convert),
            ("halt", self._halt),
        ):
            on(panel, event, **told(run, [panel]))

    def _use(self, data: gr.EventData, preset: str) -> list[Any]:
        name = str(data._data["name"])
        self._desk.models.use(name)
        return [_did("use", name), *self._settings.now(preset)]

    def _unload(self, data: gr.EventData) -> str:
        name = str(data._data["name"])
        self._desk.models.unload(name)
        return _did("unload", name)

    def _open(self, data: gr.EventData) -> str:
        path = str(data._data["folder"]).strip()  # Gradio takes a "path" for a file
        if not path:
            raise HubError("there is no path; give the folder that holds config.json.")
        return _did("open", self._desk.models.add(path))

    def _fetch(self, data: gr.EventData) -> str:
        repo = str(data._data["repo"]).strip().removeprefix(HUB).strip("/")
        if not repo:
            raise HubError("there is no repo id; give one, such as owner/name.")
        return _did("fetch", self._desk.jobs.download(repo).id)

    def _convert(self, data: gr.EventData) -> str:
        given = {name: str(value).strip() for name, value in data._data.items()}
        source, quant = given["source"], given["quant"]
        if not source:
            raise HubError("there is no source; give a model's name, a folder or a hub repo id.")
        target = Path(os.path.expanduser(given["target"] or default_target(source, quant)))
        if os.path.exists(target) and (not os.path.isdir(target) or os.listdir(target)):
            raise CheckpointError(f"{target} exists; name another folder as the target.")
        options = {"quant": quant, "logits": bool(data._data["compare"])}
        return _did("convert", self._desk.jobs.convert(source, target, options).id)

    def _halt(self, data: gr.EventData) -> str:
        job = self._desk.jobs.get(str(data._data["id"]))
        if job is not None:
            job.stop()
        return _did("halt", "" if job is None else job.id)

    def _ended(self, job: Job) -> None:
        """A conversion is listed, wherever it was written."""
        if job.folder is not None and os.path.isabs(job.name):
            with suppress(DGError):  # a folder that somebody removed meanwhile
                self._desk.models.add(job.name)


def state(desk: Desk, source: str, quant: str) -> dict[str, Any]:
    """What the tab shows, as plain values. `source`, `quant`: of a conversion, to name a target."""
    memory = desk.models.memory()
    return {
        "models": [_entry(entry) for entry in desk.models.list()],
        "offers": [_offer(offer) for offer in desk.models.offers()],
        "disk": size(hub.free_bytes()),
        "jobs": [_job(job) for job in reversed(desk.jobs.list())],
        "memory": {
            "used": size(memory.used),
            "kept": size(memory.kept),
            "free": None if memory.free is None else size(memory.free),
            "machine": size(memory.machine),
            "share": min((memory.used + memory.kept) / max(memory.machine, 1), 1.0),
        },
        "formats": FORMATS,
        "target": str(default_target(source, quant)) if source.strip() else "",
    }


def _did(what: str, to: str) -> str:
    return json.dumps({"did": what, "to": to, "n": time.monotonic_ns()})


def _entry(entry: Entry) -> dict[str, Any]:
    in_folder = os.path.isabs(entry.name)
    return {
        "name": entry.name,
        "title": entry.folder.name if in_folder else entry.name,
        "place": entry.name if in_folder else "bundled" if entry.bundled else "hub cache",
        "repo": not in_folder and not entry.bundled,
        "size": size(entry.size_bytes),
        "fits": entry.fits,
        "problem": entry.problem,
        "loaded": entry.loaded,
        "loading": entry.loading,
        "seconds": entry.loading_s,
        "users": entry.users,
        "default": entry.default,
    }


def _offer(offer: Offer) -> dict[str, Any]:
    return {
        "repo": offer.repo,
        "form": offer.form,
        "size": size(offer.size_bytes),
        "fits": offer.fits,
        "room": offer.has_room,
        "here": offer.here,
    }


def _job(job: Job) -> dict[str, Any]:
    going = job.done < job.total  # else its last checks are left, which count no bytes
    rate, left = (job.rate, job.seconds_left) if going else (None, None)
    return {
        "id": job.id,
        "name": job.name,
        "title": job.title,
        "state": job.state,
        "text": job.text,
        "phase": PHASES[job.phase],
        "done": job.done,
        "total": job.total,
        "bytes": f"{size(job.done)} of {size(job.total)}" if job.total else "",
        "rate": "" if rate is None else f"{size(rate)}/s",
        "left": "" if left is None else f"{_time(left)} left",
    }


def _time(seconds: float) -> str:
    """A time to wait, in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min {whole % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"
