"""What stands in a run folder already: nothing, something to continue, or an outcome."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from nanonet.core.config import Config
from nanonet.core.errors import RunError
from nanonet.training.device import Hardware, choose_hardware
from nanonet.training.processes import Processes
from nanonet.training.run_folder import RunFolder, check_same, versions

Mode = Literal["new", "resume", "overwrite"]


def is_done(run: RunFolder, mode: Mode) -> bool:
    """Return whether there is nothing left to do; refuse a folder that is in the way."""
    if mode == "new" and run.path.exists() and (run.path.is_file() or any(run.path.iterdir())):
        raise RunError(
            f"{run.path} exists: continue it with --resume, replace it with --overwrite, or choose"
            " another --out"
        )
    if run.path.is_file():
        raise RunError(f"{run.path} is a file: choose another --out")
    if run.path.exists() and any(run.path.iterdir()) and not run.recognized:
        raise RunError(f"{run.path} exists and is not a run folder: choose another --out")
    return mode == "resume" and run.finished


def hardware_of(run: RunFolder, config: Config, mode: Mode, processes: Processes) -> Hardware:
    """Return the hardware choice: a resumed run keeps its own, or its bits would change.

    With another number of processes they do anyway.
    """
    chosen = choose_hardware(config.training, processes)
    if mode == "resume" and run.started:
        saved, count = run.read_hardware()
        kinds = [(torch.device(each.device).type, each.precision) for each in (saved, chosen)]
        if kinds[0] != kinds[1]:
            raise RunError(
                f"run {run.path} computed with {saved.describe()}, which this machine would not"
                f" choose ({chosen.describe()}): set training.device and training.precision, or"
                " start over with --overwrite"
            )
        return replace(saved, device=chosen.device) if count == processes.count else chosen
    return chosen


def check_resumable(
    run: RunFolder, config: Config, inputs: dict[str, Any], init: Path | None
) -> None:
    """Refuse to continue a run with other settings or data.

    Raises:
        RunError: names what differs.
    """
    saved, saved_inputs = run.read_config()
    source = saved_inputs.pop("init", {}).get("source")
    names = sorted(saved_inputs.keys() | inputs.keys())
    # Data come first: how many steps there are may follow from them.
    tables = [name for name in names if name in ("labeled", "unlabeled", "validation")]
    _check_same_data(run, saved_inputs, inputs, tables)
    check_same(saved, config, run.path)
    if init is not None and str(init) != source:
        raise RunError(f"run {run.path} started from {source}, not from {init}: leave --init away")
    _check_same_data(run, saved_inputs, inputs, names)


def _check_same_data(
    run: RunFolder, saved: dict[str, Any], inputs: dict[str, Any], names: list[str]
) -> None:
    for name in names:
        old, new = saved.get(name), inputs.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            old, new = old.get("fingerprint", old), new.get("fingerprint", new)
        if old != new:
            raise RunError(
                f"run {run.path} was started on other data ({name} differs): give the same files,"
                " or start over with --overwrite"
            )


def version_warnings(run: RunFolder) -> list[str]:
    """Return a warning where a run is resumed with other packages than it was started with."""
    before, now = run.read_json("environment.json").get("versions", {}), versions()
    changed = [f"{p} {before[p]} -> {now[p]}" for p in now if before.get(p, now[p]) != now[p]]
    if not changed:
        return []
    return [f"resumed with other versions ({', '.join(changed)}): results may differ slightly"]
