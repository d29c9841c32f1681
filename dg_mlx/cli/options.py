"""Options that several verbs share, and what they turn into."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dg_mlx.errors import ConstraintError, MediaError, PinError, SettingsError
from dg_mlx.presets import DEFAULT, PRESETS, preset
from dg_mlx.settings import GenerationSettings

from .terminal import note

if TYPE_CHECKING:
    from dg_mlx.canvas.constraint import Constraint
    from dg_mlx.engine import Engine

DEFAULT_MODEL = "nano"

SETTINGS: dict[str, tuple[str, type, str]] = {
    "--max-tokens": ("max_new_tokens", int, "longest answer, in tokens"),
    "--steps": ("max_denoising_steps", int, "most denoising steps per block"),
    "--canvas": ("canvas_length", int, "tokens that are denoised together"),
    "--entropy-bound": ("entropy_bound", float, "accept tokens up to this sum of entropy (nats)"),
    "--t-min": ("t_min", float, "temperature that the schedule falls towards"),
    "--t-max": ("t_max", float, "temperature of the first step"),
    "--confidence-threshold": ("confidence_threshold", float, "stop below this mean entropy"),
    "--stability-threshold": ("stability_threshold", int, "stop after this many equal guesses"),
}
"""Option → the setting it changes, its type, and what it means."""

HELD = {
    "max_new_tokens": ("--max-tokens", "the text around them says how long the answer is"),
    "think": ("--think", "the answer is the text itself"),
    "system": ("--system", "say it in --instruction"),
}
"""Settings that change nothing where all of a text but holes is held: option and why."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and how to load it."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME",
        help=f"bundled name, folder or hub repo id (default: {DEFAULT_MODEL})",
    )
    add_device(group)
    group.add_argument("--revision", help="branch, tag or commit of a hub repo")
    group.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter, as dg-mlx train saves")


def add_device(parser: argparse._ActionsContainer, dtype: str = "the backend's") -> None:
    """Where to run a model, in which type (`dtype` says the default), and whether to fetch it."""
    parser.add_argument(
        "--backend", default="auto", help="auto, metal, cuda or cpu (default: auto)"
    )
    parser.add_argument("--dtype", help=f"float32, bfloat16 or float16 (default: {dtype})")
    parser.add_argument("--offline", action="store_true", help="use what is in the cache only")


def add_settings(parser: argparse.ArgumentParser, *, without: Container[str] = ()) -> None:
    """How to sample. What is not given is the checkpoint's own.

    The help leaves out those in `without`. They are taken all the same, so that what is wrong with
    them can be said.
    """
    group = parser.add_argument_group("sampling (default: the checkpoint's own settings)")

    def add(option: str, name: str, meaning: str, **how: Any) -> None:
        meaning = argparse.SUPPRESS if name in without else meaning
        group.add_argument(option, dest=name, help=meaning, **how)

    add("--seed", "seed", "of the noise (default: 0)", type=int, default=0)
    add("--think", "think", "let the model think first", action="store_true")
    add("--system", "system", "system message", metavar="TEXT")
    add("--preset", "preset", f"settings under a name: {', '.join(PRESETS)}", metavar="NAME",
        default=DEFAULT)  # fmt: skip
    for option, (name, kind, meaning) in SETTINGS.items():
        add(option, name, meaning, type=kind, metavar="N" if kind is int else "X")


def check_held(args: argparse.Namespace) -> None:
    """Raise `SettingsError` for a setting of `HELD` that is given."""
    for name, (option, why) in HELD.items():
        if getattr(args, name) not in (None, False):
            raise SettingsError(f"{option} does not change how holes are filled ({why}); drop it.")


def check_length(length: int | None) -> None:
    """Raise `SettingsError` for what no text can have."""
    if length is not None and length < 1:
        raise SettingsError(f"--length is {length}; it must be 1 or more.")


def add_constraint(parser: argparse.ArgumentParser) -> None:
    """What the answer must be, and what of it is known."""
    group = parser.add_argument_group("constraint (one at most, and any pins)")
    whole = group.add_mutually_exclusive_group()
    whole.add_argument("--schema", metavar="FILE", help="the answer is JSON under this JSON Schema")
    whole.add_argument("--regex", metavar="R", help="all of the answer matches; Rust's syntax")
    whole.add_argument(
        "--choices", metavar="A,B,…", help=r"the answer is one of these; \, is a comma in one"
    )
    whole.add_argument(
        "--any-json", action="store_true", help="the answer is a JSON object or array"
    )
    group.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="POSITION=TEXT",
        help="TEXT, as it is, begins at this token of the answer, which count from 0; repeatable",
    )


def constraint_from(args: argparse.Namespace) -> Constraint | None:
    """What the options of `add_constraint` ask for. Raises `ConstraintError`."""
    if not args.any_json and args.schema is args.regex is args.choices is None:
        return None
    from dg_mlx.canvas.constraint import Constraint

    if args.schema is not None:
        return Constraint.schema(json_file(args.schema))
    if args.regex is not None:
        return Constraint.regex(args.regex)
    if args.choices is not None:
        return Constraint.choices(choices_of(args.choices))
    return Constraint.any_json()


def pins_from(args: argparse.Namespace) -> dict[int, str] | None:
    """Position → text, as --pin gives them. Raises `PinError`."""
    pins: dict[int, str] = {}
    for given in args.pin:
        number, _, text = given.partition("=")
        if not (number.isascii() and number.isdecimal() and text):
            raise PinError(
                f"--pin is {given!r}; write a token's position, =, and the text that begins there: "
                "--pin 0=yes."
            )
        position = int(number)
        if pins.setdefault(position, text) != text:
            raise PinError(
                f"--pin gives position {position} the texts {pins[position]!r} and {text!r}; keep "
                "one of them."
            )
    return pins or None


def choices_of(given: str) -> list[str]:
    r"""Texts between commas; \, is a comma, and spaces around a text do not count."""
    return [text.strip(" ").replace(r"\,", ",") for text in re.split(r"(?<!\\),", given)]


def json_file(path: str) -> Any:
    """What a JSON file holds. Raises `ConstraintError`."""
    try:
        return json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    except ValueError as error:
        why = f"is not JSON ({error})"
    raise ConstraintError(f"--schema {path} {why}; give a file with a JSON Schema.")


def open_engine(args: argparse.Namespace) -> Engine:
    """Load the model that the options name; says so when that is the default."""
    from dg_mlx import load

    if args.model is None:
        note(f"no --model given, so this is {DEFAULT_MODEL}: a toy that is part of dg-mlx")
    return load(
        args.model or DEFAULT_MODEL,
        backend=args.backend,
        dtype=args.dtype,
        offline=args.offline,
        revision=args.revision,
        adapter=args.adapter,
    )


def changes_from(args: argparse.Namespace) -> dict[str, Any]:
    """Settings that options give, by name."""
    names = (name for name, _, _ in SETTINGS.values())
    return {n: v for n in names if (v := getattr(args, n)) is not None}


def settings_from(args: argparse.Namespace, own: GenerationSettings) -> GenerationSettings:
    """The checkpoint's settings, under the preset and with the options' changes.

    Raises `SettingsError`.
    """
    return preset(args.preset).apply(own).replace(**changes_from(args))


def media_part(kind: str, path: str) -> dict[str, Any]:
    """A picture or video of a message. Raises `MediaError` when there is no such file."""
    if not Path(path).expanduser().is_file():
        raise MediaError(f"there is no {kind} {path!r}; check the path.")
    return {"type": kind, kind: str(Path(path).expanduser())}


def user_message(text: str, media: list[dict[str, Any]]) -> dict[str, Any]:
    """A turn of the user: pictures and videos first, as the checkpoint was trained."""
    if not media:
        return {"role": "user", "content": text}
    parts = [*media, {"type": "text", "text": text}] if text else media
    return {"role": "user", "content": parts}
