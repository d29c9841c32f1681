"""A training run from start to end: step, evaluate, save, export.

A run is a job of the worker's thread and yields events: what draws them, and an interrupt of the
main thread, cannot come between a step and its checkpoint. Each step's randomness and examples are
functions of the seed and the step's number, so the weights and the optimiser are all that a
checkpoint must keep, and a run that goes on computes the same numbers as one without a break.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter

from dg_mlx import adapter
from dg_mlx.backends import Backend
from dg_mlx.errors import SettingsError
from dg_mlx.model import DiffusionGemma
from dg_mlx.model.lora import adapters
from dg_mlx.settings import GenerationSettings
from dg_mlx.weights import load as load_weights
from dg_mlx.worker import WORKER, Cancelled

from . import curve
from .backend import training_backend
from .checkpoint import ADAPTER, MODEL, RunFolder, export, record
from .metrics import (
    Answerer,
    Evaluated,
    Event,
    Finished,
    Metrics,
    Saved,
    Started,
    held_out_loss,
    read,
)
from .optimizer import Trainer, flattened, unflattened
from .processes import Processes, local
from .settings import TrainSettings
from .setup import Setup, prepare
from .source import Chats, Open


def train(
    settings: TrainSettings,
    folder: Path,
    *,
    open_source: Open = Chats,
    force: bool = False,
    offline: bool = False,
    processes: int = 1,
    cancel: threading.Event | None = None,
) -> Generator[Event, None, None]:
    """Run the training that `settings` describe in a folder, or go on with it there.

    `open_source` opens what it learns from. `processes` runs the program's command in so many
    processes on this machine; started by `mlx.launch`, those of several train together. Only the
    first yields events and writes.

    Setting `cancel`, or closing the iterator, writes a checkpoint after the step that is being
    computed. Raises `DGError`s: before anything is written when settings, data, memory or folder
    are not right, and `SettingsError` when the loss is not finite any more.
    """
    setup = prepare(settings, open_source=open_source, offline=offline)
    _require_batches(settings, processes)
    with local(processes), ExitStack() as stack:
        together = WORKER.call(Processes)
        _require_batches(settings, together.count)
        run = None
        if together.first:
            known = record(settings, setup.base, setup.source.identity)
            run = stack.enter_context(closing(RunFolder(folder, settings, known, force=force)))
        yield from WORKER.stream(_Run(setup, together, run).events, [cancel] if cancel else [])


def _require_batches(settings: TrainSettings, processes: int) -> None:
    if settings.accumulate % processes:
        raise SettingsError(
            f"accumulate is {settings.accumulate}, for {processes} processes; each of them "
            f"computes whole batches, so give a multiple of {processes}."
        )


class _Run:
    """The job of one process. Only the first has a folder, evaluates and reports."""

    def __init__(self, setup: Setup, processes: Processes, folder: RunFolder | None) -> None:
        self._setup, self._settings = setup, setup.settings
        self._processes, self._folder = processes, folder

    def events(self, cancelled: Cancelled) -> Iterator[Event]:
        settings, source = self._settings, self._setup.source
        self._setup.device.activate()
        self._trainer = Trainer(self._load(), settings, self._processes)
        done = self._restore()
        if self._folder is not None:
            self._metrics = Metrics(self._folder.path, done)
            yield Started(
                step=done,
                steps=settings.steps,
                examples=source.count,
                held_out=len(source.held_out),
                trained=sum(array.size for array in self._trainer.weights.values()),
                needed_bytes=self._setup.needed_bytes,
            )
            rows = read(self._folder.path)
            if not any(row["step"] == done and "held_out_loss" in row for row in rows):
                yield from self._evaluate(done, cancelled)
        for step in range(done + 1, settings.steps + 1):
            stepped = self._trainer.step(source.batches(step), step)
            if self._folder is not None:
                self._metrics.write(stepped)
                yield stepped
                if not cancelled():
                    yield from self._evaluate(step, cancelled)
            stop = self._processes.any(cancelled())
            last = step == settings.steps
            if self._folder is not None and (stop or last or step % settings.save_every == 0):
                yield self._save(self._folder, step)
            if stop:
                return
        if self._folder is not None:
            yield Finished(folder=self._export(self._folder.path))

    def _load(self) -> DiffusionGemma:
        setup = self._setup
        model = DiffusionGemma(setup.config, training_backend(setup.device.name))
        load_weights(model, setup.config, setup.base, setup.dtype)
        return model

    def _restore(self) -> int:
        """Go on from the last checkpoint. Returns its step."""
        done = self._folder.steps()[-1:] if self._folder is not None else []
        if self._folder is not None and done:
            self._trainer.restore(*self._folder.load(done[0]))
        if self._processes.count > 1:
            self._trainer.agree()
        return self._processes.number(done[0] if done else 0)

    def _due(self, step: int) -> bool:
        every = self._settings.eval_every
        return bool(
            every
            and self._setup.source.held_out
            and (step % every == 0 or step == self._settings.steps)
        )

    def _evaluate(self, step: int, cancelled: Cancelled) -> Iterator[Evaluated]:
        """Look at held-out examples if it is time; nothing comes of it when cancelled."""
        if not self._due(step):
            return
        start, settings = perf_counter(), self._settings
        examples, trainer = self._setup.source.held_out, self._trainer
        asked = examples[: settings.eval_answers]
        with trainer.result() as model:
            found = held_out_loss(
                model, examples[: settings.eval_loss or 1], trainer.objective, settings.batch
            )
            exact = self._answerer().exact(asked, cancelled) if asked else None
        if cancelled():
            return
        evaluated = Evaluated(
            step=step,
            held_out_loss=found,
            exact=exact,
            answers=len(asked),
            seconds=perf_counter() - start,
        )
        self._metrics.write(evaluated)
        yield evaluated

    def _answerer(self) -> Answerer:
        """The device's own forms over the same arrays; an adapter of packed weights stays apart."""
        setup, model = self._setup, self._trainer.model
        backend: Backend = setup.device
        adapted = dict(adapters(model))
        if adapted and setup.config.quantization is not None:
            backend = model._backend
        else:
            weights = flattened(model.parameters())
            for name, module in adapted.items():
                weights[f"{name}.weight"] = module.packed.plain(setup.dtype)
            model = DiffusionGemma(setup.config, backend)
            names = flattened(model.parameters())
            model.update(unflattened({name: weights[name] for name in names}))
        return Answerer(
            model=model,
            backend=backend,
            processor=setup.processor,
            settings=GenerationSettings.load(setup.base),
        )

    def _save(self, run: RunFolder, step: int) -> Saved:
        folder = run.save(step, self._trainer.weights, self._trainer.state)
        run.prune(self._settings.keep)
        curve.write(run.path, read(run.path), f"{self._settings.model}: loss")
        return Saved(step=step, folder=folder)

    def _export(self, run: Path) -> Path:
        """The model or adapter that the run was for."""
        lora = self._settings.lora
        if lora is not None:
            with self._trainer.result() as model:
                adapter.save(model, run / ADAPTER, lora, base=self._settings.model)
            return run / ADAPTER
        export(self._trainer.parameters(), self._setup.base, run / MODEL)
        return run / MODEL
