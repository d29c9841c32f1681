"""`dg-mlx generate`: one prompt, one answer."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dg_mlx.errors import PromptError, SettingsError
from dg_mlx.events import Committed, Done, Event, Reply, Stats, collect

from .input import prompt_text
from .options import (
    add_constraint,
    add_model,
    add_settings,
    constraint_from,
    media_part,
    open_engine,
    pins_from,
    settings_from,
    user_message,
)
from .terminal import empty_answer, note, stats_line, write
from .trust import explained, plain, rows, shades, visible

if TYPE_CHECKING:
    from dg_mlx.processor import Processor

_EXAMPLES = r"""
The prompt may come from stdin, or both: stdin then follows the prompt as its context.

examples:
  dg-mlx generate --model nano $'A 1.3.\nB .41.\nC ....\nD ..21'
  dg-mlx generate --model google/diffusiongemma-26B-A4B-it --image cat.jpg "What is this?"
  dg-mlx generate --model ./my-checkpoint --json "Summarise:" < notes.txt
  dg-mlx generate --model ./my-checkpoint --schema person.json "Who wrote this?" < letter.txt
  dg-mlx generate --model ./my-checkpoint --choices yes,no --explain "Is 91 a prime?"
  dg-mlx generate --model nano --pin 2=2 $'A ....\nB .41.\nC ....\nD ..21'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.epilog = _EXAMPLES
    parser.add_argument("prompt", nargs="?", help="the prompt; without it, stdin")
    parser.add_argument(
        "--image", action="append", default=[], metavar="PATH", help="a picture; repeatable"
    )
    parser.add_argument(
        "--video", action="append", default=[], metavar="PATH", help="a video; repeatable"
    )
    parser.add_argument("--tools", metavar="FILE", help="JSON list of tools the model may call")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the answer as one JSON object")
    form.add_argument("--explain", action="store_true", help="shade each token by its probability")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="text as blocks are committed; with --json, a line per event, then the whole reply",
    )
    parser.add_argument("--stats", action="store_true", help="always write what it cost to stderr")
    add_model(parser)
    add_settings(parser)
    add_constraint(parser)


def run(args: argparse.Namespace) -> int:
    """Answer."""
    if args.explain and args.stream:
        raise SettingsError("--explain shows the answer as a whole; drop --stream.")
    media = [media_part("image", p) for p in args.image]
    media += [media_part("video", p) for p in args.video]
    messages = [{"role": "system", "content": args.system}] if args.system is not None else []
    messages.append(
        user_message(prompt_text(args.prompt, verb="generate", optional=bool(media)), media)
    )
    tools = None if args.tools is None else _tools(args.tools)
    pins, constraint = pins_from(args), constraint_from(args)
    engine = open_engine(args)
    events = engine.stream(
        messages,
        settings=settings_from(args, engine.settings),
        seed=args.seed,
        pins=pins,
        constraint=constraint,
        tools=tools,
        thinking=args.think,
    )
    reply = collect(_shown(events, args))
    _finish(reply, args, engine.processor)
    if not reply.text and not reply.tool_calls:
        note(empty_answer(reply.reason, reply.thought))
    if args.stats or sys.stderr.isatty():
        print(stats_line(reply.stats), file=sys.stderr)
    return 0


def as_json(event: Event) -> dict[str, Any]:
    """An event as plain data; arrays become lists."""
    data = plain(event)
    if isinstance(event, Done):
        data["stats"] = stats_json(event.stats)
    return {"event": type(event).__name__.lower(), **data}


def stats_json(stats: Stats) -> dict[str, Any]:
    """The stats with what follows from them."""
    derived = {n: getattr(stats, n) for n in ("steps", "tokens_per_step", "tokens_per_second")}
    return {**dataclasses.asdict(stats), **derived}


def _shown(events: Iterator[Event], args: argparse.Namespace) -> Iterator[Event]:
    """Pass events on, writing what the options ask for as they come."""
    for event in events:
        if args.stream and args.json:
            write(json.dumps(as_json(event), ensure_ascii=False) + "\n")
        elif args.stream and isinstance(event, Committed):
            write(event.text)
        yield event


def _finish(reply: Reply, args: argparse.Namespace, processor: Processor) -> None:
    """What is written once the answer is complete."""
    if args.json:
        whole = {
            **plain(reply),
            "stats": stats_json(reply.stats),
            "trust": rows(reply.ids, reply.trust, processor.piece),
        }
        # After a stream of events, the last line carries the same keys, as an event of its own.
        head = {"event": "reply"} if args.stream else {}
        write(json.dumps(head | whole, ensure_ascii=False) + "\n")
        return
    if args.think and reply.thought:
        write(f"thought: {reply.thought.strip()}\n", sys.stderr)
    if args.explain:
        # Made harmless already; `write` would spoil the shades.
        sys.stdout.write(explained(visible(reply, processor), reply.trust, shaded=shades()))
        sys.stdout.flush()
    else:
        if not args.stream:
            write(reply.text)
        if reply.text and not reply.text.endswith("\n"):
            write("\n")
    for call in reply.tool_calls:
        write(json.dumps(call, ensure_ascii=False) + "\n")


def _tools(path: str) -> list[dict[str, Any]]:
    try:
        tools = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptError(f"--tools {path} cannot be read ({error}); give a JSON file.") from None
    if not isinstance(tools, list) or not tools or not all(isinstance(t, dict) for t in tools):
        raise PromptError(
            f'--tools {path} must be a JSON list of objects like {{"type": "function", "function": '
            '{"name": …, "parameters": …}}.'
        )
    return tools
