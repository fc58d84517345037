"""One cell in its own process: ``python -m nanonet.benchmark.cell FOLDER``.

Reads ``FOLDER/spec.json`` and writes ``FOLDER/result.json``; an error is one line on standard
error and a status other than 0.
"""

import json
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanonet.core.errors import NanoNetError
from nanonet.core.files import write_json

SPEC, RESULT, RUN = "spec.json", "result.json", "run"


def run_cell(folder: Path) -> dict[str, Any]:
    """Make the cell of a folder, write its result and return it.

    Raises:
        NanoNetError: see `Method.run`.
    """
    start = time.perf_counter()  # before torch is imported
    import nanonet.benchmark.peers  # noqa: F401 (registers its kinds)
    from nanonet.benchmark.methods import KINDS, Files
    from nanonet.data.readers import Columns

    spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    identity, paths = spec["identity"], spec["files"]
    files = Files(
        Path(paths["labeled"]),
        Path(paths["unlabeled"]),
        Path(paths["test"]),
        Columns(*paths["test_columns"]),
    )
    kind = KINDS.get(identity["kind"])
    shutil.rmtree(folder / RUN, ignore_errors=True)
    measured = kind.run(
        identity["plan"], files, identity["seed"], folder / RUN, threads=spec["threads"]
    )
    result: dict[str, Any] = {
        **identity,
        **measured,
        "wall_seconds": round(time.perf_counter() - start, 3),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / RESULT, result)
    if not spec["keep_run"]:
        shutil.rmtree(folder / RUN, ignore_errors=True)
    return result


if __name__ == "__main__":
    try:
        run_cell(Path(sys.argv[1]))
    except NanoNetError as error:
        sys.exit(" ".join(str(error).splitlines()))
