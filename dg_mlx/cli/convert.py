"""`dg-mlx convert`: any DiffusionGemma checkpoint to one for MLX."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

from dg_mlx.errors import CheckpointError, SettingsError
from dg_mlx.units import size

from .options import add_device
from .terminal import note

_EXAMPLES = """
examples:
  dg-mlx convert google/diffusiongemma-26B-A4B-it ./diffusiongemma-4bit
  dg-mlx convert ./diffusiongemma ./out --quant mxfp4 --recipe uniform
  dg-mlx convert ./diffusiongemma ./out --recipe my.toml --report errors.json
  dg-mlx convert ./diffusiongemma ./merged --quant none --adapter ./my-lora
  dg-mlx convert ./mlx-8bit ./mlx-bf16 --quant none
  dg-mlx convert owner/name-GGUF:Q4_K_M ./out --base google/diffusiongemma-26B-A4B-it

Sources: the hub's bf16, MLX's own packing, NVFP4 and FP8 (modelopt, compressed-tensors), GGUF.
Formats: none, 8bit, 6bit, 5bit, 4bit, 3bit, mxfp8, mxfp4, nvfp4.
Recipes say which matrices get the format: balanced (experts; the rest in 8 bits or plain),
mlx-community (as that organisation's conversions), uniform, or a file of rules.
An interrupted conversion goes on where it was when the same command is run again.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.epilog = _EXAMPLES
    parser.add_argument("source", metavar="SOURCE", help="hub repo id, folder or GGUF file")
    parser.add_argument("folder", metavar="FOLDER", help="the folder to write")
    parser.add_argument("--quant", metavar="FORMAT", help="format of the recipe (default: 4bit)")
    parser.add_argument(
        "--recipe", metavar="NAME|FILE.toml", help="which matrices get it (default: balanced)"
    )
    parser.add_argument(
        "--group-size", type=int, metavar="N", help="weights that share a scale: 32, 64 or 128"
    )
    parser.add_argument("--adapter", metavar="FOLDER", help="merge a LoRA adapter first")
    parser.add_argument(
        "--base", metavar="MODEL", help="where a GGUF file's config and tokenizer come from"
    )
    parser.add_argument("--revision", metavar="COMMIT", help="of a hub repo")
    parser.add_argument("--shard-size", type=float, metavar="GB", help="largest file (default: 5)")
    parser.add_argument("--force", action="store_true", help="replace FOLDER if it exists")
    parser.add_argument(
        "--against", metavar="FOLDER", help="compare predictions with this checkpoint's"
    )
    parser.add_argument(
        "--max-kl", type=float, metavar="X", help="fail above this mean KL divergence, in nats"
    )
    parser.add_argument(
        "--no-logits", action="store_true", help="do not run the models to compare predictions"
    )
    parser.add_argument("--report", metavar="FILE", help="write the error of every tensor as JSON")
    parser.add_argument("--upload", metavar="REPO", help="put the result on the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="make that repo private")
    add_device(parser, dtype="the source's")


def run(args: argparse.Namespace) -> int:
    """Convert, verify, report, upload."""
    _check(args)
    job = import_module("dg_mlx.convert.job")
    given = {
        "quant": args.quant,
        "recipe": args.recipe,
        "group_size": args.group_size,
        "dtype": args.dtype,
        "adapter": args.adapter,
        "base": args.base,
        "against": args.against,
        "max_kl": args.max_kl,
        "revision": args.revision,
        "shard_bytes": args.shard_size and int(args.shard_size * 1e9),
    }
    options = job.Options(
        logits=not args.no_logits,
        force=args.force,
        offline=args.offline,
        backend=args.backend,
        **{name: value for name, value in given.items() if value is not None},
    )
    try:
        with _Bars() as bars:
            report = job.convert(args.source, Path(args.folder), options, bars.update)
    except KeyboardInterrupt:
        note("stopped; run the same command again to go on")
        raise
    if args.report is not None:
        _write_report(Path(args.report).expanduser(), report)
    _print(report)
    if args.upload is not None:
        publish = import_module("dg_mlx.convert.publish")
        print(f"uploaded to {publish.upload(report.folder, args.upload, private=args.private)}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.shard_size is not None and not args.shard_size > 0:
        raise SettingsError(f"--shard-size is {args.shard_size}; it must be above 0.")
    if args.private and args.upload is None:
        raise SettingsError("--private is for --upload; add it, or drop --private.")
    if args.report is not None and not Path(args.report).expanduser().absolute().parent.is_dir():
        raise SettingsError(f"--report {args.report} is in no folder; make it first.")


class _Bars:
    """One progress bar per phase, with bytes per second and time left; silent without a TTY."""

    _NAMES = {"fetch": "fetching", "convert": "converting", "verify": "verifying"}  # noqa: RUF012

    def __init__(self) -> None:
        self._phase = ""
        self._bar: Any = None

    def update(self, phase: str, done: int, total: int) -> None:
        """Draw the state of a phase."""
        from tqdm import tqdm

        if phase != self._phase:
            self._close()
            self._phase = phase
            self._bar = tqdm(
                desc=self._NAMES[phase], total=total, initial=0, unit="B", unit_scale=True,
                disable=None,
            )  # fmt: skip
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()


def _write_report(path: Path, report: Any) -> None:
    try:
        path.write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); the checkpoint in {report.folder} is "
            "whole."
        ) from None


def _print(report: Any) -> None:
    for sentence in report.notes:
        note(sentence)
    files = "1 file" if report.files == 1 else f"{report.files} files"
    again = ", resumed" if report.resumed else ""
    print(f"{report.folder}: {size(report.stored_bytes)} in {files}")
    print(
        f"from {size(report.source_bytes)} ({report.layout}) in {report.convert_s:.1f} s{again}, "
        f"verified in {report.verify_s:.1f} s"
    )
    print(f"\n{'format':<32}{'tensors':>8}{'size':>10}{'mean error':>12}{'worst tensor':>14}")
    for name in dict.fromkeys(e.format for e in report.errors):
        same = [e for e in report.errors if e.format == name]
        total = size(sum(e.stored_bytes for e in same))
        mean = sum(e.relative_rms for e in same) / len(same)
        worst = max(e.relative_rms for e in same)
        print(f"{name:<32}{len(same):>8}{total:>10}{mean:>12.2%}{worst:>14.2%}")
    print("\nchecksums, names, shapes, types and totals are right; every value is within its bound")
    if report.divergence is not None:
        d = report.divergence
        print(
            f"predictions: mean KL {d.mean_kl:.2e} nats, same best guess {d.agreement:.2%} "
            f"({d.prompts} prompts, {d.positions} positions)"
        )
    else:
        print(f"predictions were not compared: {report.skipped}")
