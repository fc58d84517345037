"""Trains runs, one after the other: what the tests start in several processes at once.

``python many.py FOLDER BACKBONE JOBS``: jobs are JSON, (name, recipe, settings, mode, tables) each.
"""

import json
import sys
from pathlib import Path

import torch

from exact import make_exact
from nanonet.training.train import train
from tiny import make_settings, make_tables


def main() -> None:
    torch.set_num_threads(1)
    make_exact(setattr)
    folder, backbone = Path(sys.argv[1]), sys.argv[2]
    for name, recipe, settings, mode, tables in json.loads(sys.argv[3]):
        config = make_settings(backbone, *settings, recipe=recipe)
        train(config, lambda t=tables: make_tables(**t), folder / name, mode=mode)


if __name__ == "__main__":
    main()
