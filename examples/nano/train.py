"""Train nano: the mixture of tasks under the settings of nano.toml.

    python start.py start --from ../../dg_mlx/nano
    python train.py run --model start --steps 1800 --processes 2

Run it again and it goes on. One process does it too, in nearly twice the time.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from mixture import Mixture

from dg_mlx.cli.train import Report
from dg_mlx.config import ModelConfig
from dg_mlx.train.loop import train
from dg_mlx.train.settings import TrainSettings


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the run's")
    parser.add_argument("--model", required=True, help="what start.py wrote")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    settings = TrainSettings.load(
        Path(__file__).with_name("nano.toml"),
        model=options.model,
        steps=options.steps,
        vision=ModelConfig.load(Path(options.model)).vision is not None,
    )
    events = train(settings, options.folder, open_source=Mixture, processes=options.processes)
    with contextlib.closing(events), Report(settings) as report:
        for event in events:
            report.show(event)


if __name__ == "__main__":
    main()
