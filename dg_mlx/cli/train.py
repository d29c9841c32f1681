"""`dg-mlx train`: fine-tune a checkpoint, or an adapter for one, on chats."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dg_mlx.errors import SettingsError
from dg_mlx.train.settings import DECAYS, OPTIMIZERS, TrainSettings
from dg_mlx.units import size

from .terminal import note

if TYPE_CHECKING:
    from dg_mlx.train.metrics import Evaluated, Event, Started, Stepped

_EXAMPLES = """
examples:
  dg-mlx train ./run --model nano --data chats.jsonl --held-out-share 0.1
  dg-mlx train ./run --model ./my-4bit --data chats.jsonl --rank 8 --steps 500
  dg-mlx train ./run --config run.toml --learning-rate 2e-5

A line of a data file is {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", …}]}.
FOLDER gets the metrics, a curve, the checkpoints and the model (or adapter) that comes out.
An interrupted run goes on where it was when the same command is run again.
An adapter becomes a checkpoint with dg-mlx convert MODEL OUT --quant none --adapter FOLDER/adapter.
"""


class _Option(NamedTuple):
    """An option that sets the setting of its name."""

    name: str
    kind: type
    metavar: str
    meaning: str


_GROUPS = {
    "data": (
        _Option("held_out", str, "FILE", "examples to evaluate on"),
        _Option("held_out_share", float, "X", "share of the data to evaluate on instead"),
        _Option("max_prompt", int, "N", "most tokens of a prompt"),
        _Option("max_canvases", int, "N", "most canvases of an answer"),
        _Option("fill", str, "TOKEN", "behind an answer's end (default: the end of a sequence)"),
    ),
    "adapter (default: all weights of the text model are trained)": (
        _Option("rank", int, "N", "train a LoRA adapter of this rank"),
        _Option("alpha", float, "X", "over the rank: its scale"),
    ),
    "course": (
        _Option("steps", int, "N", "in all"),
        _Option("batch", int, "N", "examples computed together"),
        _Option("accumulate", int, "N", "batches that make one step"),
        _Option("optimizer", str, "NAME", " or ".join(OPTIMIZERS)),
        _Option("learning_rate", float, "X", "the highest"),
        _Option("muon_learning_rate", float, "X", "Muon's highest (default: ten times the other)"),
        _Option("warmup_share", float, "X", "share of the steps in which it rises"),
        _Option("decay", str, "FORM", " or ".join(DECAYS)),
        _Option("decay_share", float, "X", "share of the steps in which it falls"),
        _Option("final_share", float, "X", "what it falls to, as a share of the highest"),
        _Option("weight_decay", float, "X", "of matrices"),
        _Option("beta1", float, "X", "of AdamW"),
        _Option("beta2", float, "X", "of AdamW"),
        _Option("clip", float, "X", "largest norm of the gradient; 0: any"),
        _Option("noise_power", float, "X", "below 1: noisier canvases (default: 1)"),
        _Option("noise_from_answer", float, "X", "share of the noise (default: 0)"),
        _Option("average", float, "X", "of the weights over steps: the share that stays"),
        _Option("encoder_weight", float, "X", "of the encoder's loss (default: 1)"),
        _Option("self_conditioning", float, "X", "share with a first pass (default: 0.5)"),
        _Option("seed", int, "N", "of everything random"),
    ),
    "reports": (
        _Option("eval_every", int, "N", "steps between evaluations; 0: none"),
        _Option("eval_loss", int, "N", "held-out examples for the loss"),
        _Option("eval_answers", int, "N", "held-out examples that are answered"),
        _Option("save_every", int, "N", "steps between checkpoints"),
        _Option("keep", int, "N", "checkpoints that stay"),
        _Option("log_every", int, "N", "steps between lines where there is no terminal"),
    ),
    "device": (
        _Option("backend", str, "NAME", "auto, metal, cuda or cpu"),
        _Option("dtype", str, "NAME", "float32 or bfloat16 (default: the backend's)"),
        _Option("revision", str, "COMMIT", "of a hub repo"),
    ),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.epilog = _EXAMPLES
    parser.add_argument("folder", metavar="FOLDER", help="the run's folder")
    parser.add_argument("--config", metavar="FILE.toml", help="settings; options override them")
    parser.add_argument("--model", metavar="NAME", help="bundled name, folder or hub repo id")
    parser.add_argument(
        "--data", action="append", metavar="FILE", help="JSONL file of chats; repeatable"
    )
    parser.add_argument("--force", action="store_true", help="start over in a run's folder")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N",
        help="that train together on this machine's CPU; --accumulate is a multiple (default: 1)",
    )  # fmt: skip
    parser.add_argument("--offline", action="store_true", help="use what is in the cache only")
    defaults = {f.name: f.default for f in dataclasses.fields(TrainSettings)}
    for title, options in _GROUPS.items():
        group = parser.add_argument_group(title)
        for name, kind, metavar, meaning in options:
            default = defaults[name]
            shown = meaning if default is None else f"{meaning} (default: {default})"
            flag = f"--{name.replace('_', '-')}"
            group.add_argument(flag, type=kind, metavar=metavar, help=shown)
        if title.startswith("adapter"):
            group.add_argument(
                "--target", dest="targets", action="append", metavar="PATTERN",
                help="modules that get one, such as '*.q_proj'; repeatable (default: all linear "
                "layers of the text model but the experts)",
            )  # fmt: skip
            group.add_argument(
                "--vision", action="store_true", default=None,
                help="without an adapter: train the vision tower too",
            )  # fmt: skip
        if title == "course":
            group.add_argument(
                "--recompute", action="store_true", default=None,
                help="less memory: compute each layer again for its gradient",
            )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Train, reporting on stderr; the result's folder goes to stdout."""
    names = [f.name for f in dataclasses.fields(TrainSettings)]
    given = {n: v for n in names if (v := getattr(args, n, None)) is not None}
    config = None if args.config is None else Path(args.config)
    settings = TrainSettings.load(config, **given)

    from dg_mlx.train.checkpoint import steps
    from dg_mlx.train.loop import train

    if args.processes < 1:
        raise SettingsError(f"--processes is {args.processes}; it must be 1 or more.")
    folder = Path(args.folder).expanduser()
    events = train(
        settings, folder, force=args.force, offline=args.offline, processes=args.processes
    )
    report = Report(settings)
    try:
        with contextlib.closing(events), report:
            for event in events:
                report.show(event)
    except KeyboardInterrupt:
        done = steps(folder)[-1:]
        where = f"after step {done[0]}" if done else "before the first step"
        note(f"stopped {where}; run the same command again to go on")
        raise
    if report.result is not None:  # only the first of several processes has one
        print(report.result)
    return 0


class Report:
    """A bar on a terminal, else a line every `log_every` steps."""

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self._bar: Any = None
        self._tokens, self._seconds, self._begun = 0, 0.0, time.perf_counter()
        self._first = 0
        self.result: Path | None = None

    def show(self, event: Event) -> None:
        """Draw one event."""
        from dg_mlx.train.metrics import Evaluated, Finished, Saved, Started, Stepped

        match event:
            case Started():
                self._start(event)
            case Stepped():
                self._step(event)
            case Evaluated():
                self._say(_evaluation(event))
            case Saved():
                pass
            case Finished():
                self.result = event.folder

    def _start(self, event: Started) -> None:
        from tqdm import tqdm

        self._first, self._begun = event.step, time.perf_counter()
        again = f", going on after step {event.step}" if event.step else ""
        count = "endless" if event.examples is None else event.examples
        self._say(
            f"{event.trained:,} numbers to train on {count} examples ({event.held_out} "
            f"held out), about {size(event.needed_bytes)} of memory{again}"
        )
        if sys.stderr.isatty():
            self._bar = tqdm(total=event.steps, initial=event.step, unit="step", dynamic_ncols=True)

    def _step(self, event: Stepped) -> None:
        self._tokens += event.tokens
        self._seconds += event.seconds
        rate = self._tokens / self._seconds
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_postfix_str(
                f"loss {event.loss:.3f}, {rate:.0f} tok/s, {event.peak_gb:.2f} GB"
            )
            return
        if event.step % self._settings.log_every and event.step != self._settings.steps:
            return
        done = event.step - self._first
        left = (time.perf_counter() - self._begun) / done * (self._settings.steps - event.step)
        self._say(
            f"step {event.step}/{self._settings.steps}: loss {event.loss:.4f} (diffusion "
            f"{event.diffusion:.4f}, encoder {event.encoder:.4f}), rate {event.lr:.2e}, gradient "
            f"{event.grad_norm:.2f}, {rate:.0f} tok/s, {event.peak_gb:.2f} GB, {_time(left)} left"
        )

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(f"dg-mlx: {text}", file=sys.stderr)
        else:
            note(text)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _evaluation(event: Evaluated) -> str:
    text = f"step {event.step}: held-out loss {event.held_out_loss:.4f}"
    if event.exact is not None:
        text += f", {event.exact:.0%} of {event.answers} answers right"
    return text


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
