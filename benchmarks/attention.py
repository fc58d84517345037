"""What attention costs on this machine's CPU: fused or by matrices, with and without gradients.

python benchmarks/attention.py [--threads N]

Prints milliseconds (medians of 9) for chunks of 1,024 tokens with the heads of MiniLM, by length of
a row. "matrices, 32 bits" is plain attention with scores and probabilities in 32 bits, as Hugging
Face's "eager" has it; "matrices" keeps bf16 as it is. `nanonet.models.attention` takes "fused", and
"matrices" where there are gradients in bf16.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

HEADS, WIDTH, TOKENS, REPEATS = 12, 32, 1024, 9
SCALE = WIDTH**-0.5


def eager(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = (query @ key.mT) * SCALE + mask.float()
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value


def matrices(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    queries, keys, values = (x.flatten(0, 1) for x in (query, key, value))
    added = mask.expand(-1, HEADS, -1, -1).flatten(0, 1)
    scores = torch.baddbmm(added, queries, keys.mT, alpha=SCALE)
    return (F.softmax(scores, dim=-1) @ values).view_as(query)


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, mask, scale=SCALE)


def milliseconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    print("| kind | tokens | gradients | matrices, 32 bits | matrices | fused |")
    print("|---|---|---|---|---|---|")
    for kind in (torch.bfloat16, torch.float32):
        for length in (7, 16, 25, 32, 50, 64, 128, 256):
            shape = (TOKENS // length, length, HEADS, WIDTH)
            mask = torch.zeros(shape[0], 1, 1, length, dtype=kind)
            for learns in (False, True):
                given = [
                    torch.randn(shape, dtype=kind).transpose(1, 2).requires_grad_(learns)
                    for _ in range(3)
                ]

                def work(attend: Callable[..., Tensor]) -> None:
                    out = attend(*given, mask)  # noqa: B023 - called at once
                    if out.requires_grad:
                        torch.autograd.grad(out.float().sum(), given)  # noqa: B023

                costs = [milliseconds(lambda f=f: work(f)) for f in (eager, matrices, fused)]
                cells = " | ".join(f"{cost:.1f}" for cost in costs)
                name = str(kind).removeprefix("torch.")
                print(f"| {name} | {length} | {'yes' if learns else 'no'} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
