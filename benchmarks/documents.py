"""How long summarizers take for one document, side by side.

    python benchmarks/documents.py BUNDLE ... --data test.parquet [--words 950 1050]

Takes the first documents of so many words (a column ``sentences``), and gives each to every bundle
in turn, in rounds. Prints, for each bundle, the mean over documents of the least and of the median
time, in ms.
"""

import argparse
import statistics
import time
from pathlib import Path

import pyarrow.parquet as pq

from nanonet import Summarizer


def main() -> None:
    """Time all bundles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--words", type=int, nargs=2, default=[950, 1050], metavar=("LOW", "HIGH"))
    parser.add_argument("--documents", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    low, high = options.words
    rows = pq.read_table(options.data, columns=["sentences"]).column(0).to_pylist()
    texts = [r for r in rows if low <= sum(len(s.split()) for s in r) <= high]
    texts = texts[: options.documents]
    if not texts:
        raise SystemExit(f"error: {options.data} has no document of {low} to {high} words")
    loaded = {name: Summarizer.load(name, threads=options.threads) for name in options.bundles}
    times: dict[str, list[list[float]]] = {name: [[] for _ in texts] for name in loaded}
    for _ in range(options.rounds):
        for name, summarizer in loaded.items():
            for own, text in zip(times[name], texts, strict=True):
                start = time.perf_counter()
                summarizer.summarize([text])
                own.append(1e3 * (time.perf_counter() - start))
    print(f"{len(texts)} documents, {options.rounds} rounds, threads {options.threads}; ms")
    for name, found in times.items():
        least, median = (statistics.mean(map(f, found)) for f in (min, statistics.median))
        print(f"{name}: least {least:.1f}, median {median:.1f}")


if __name__ == "__main__":
    main()
