import numpy as np
import pytest
import torch

from nanonet.data.augment import token_cutoff
from nanonet.data.batching import RowStream, StepBatches
from nanonet.tasks.tokenization import length_chunks, pad


def draws(n: int = 200):
    """Random lengths, long-tailed as real texts are."""
    for seed in range(n):
        rng = np.random.default_rng(seed)
        size = int(rng.integers(0, 60))
        yield rng, np.minimum(rng.geometric(0.05, size), 256).astype(np.int64)


def test_chunks_hold_every_row_once_and_keep_their_bounds():
    for rng, lengths in draws():
        padding = float(rng.choice([0.0, 0.05, 0.15, 1.0]))
        budget = int(rng.choice([16, 128, 4096])) if rng.random() < 0.7 else None
        chunks = length_chunks(lengths, padding, budget)
        assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
        longest = [int(lengths[chunk].max()) for chunk in chunks]
        assert longest == sorted(longest, reverse=True)
        for chunk in chunks:
            padded, real = len(chunk) * lengths[chunk].max(), lengths[chunk].sum()
            assert padded <= (1 + padding) * real
            assert budget is None or padded <= budget or len(chunk) == 1


def test_chunks_without_bounds_are_one():
    assert len(length_chunks([5] * 100, 0.0)) == 1
    assert len(length_chunks([1, 2, 3], 10.0)) == 1
    assert length_chunks([], 0.1) == []
    assert [c.tolist() for c in length_chunks([5], 0.1, 1)] == [[0]]


def test_padding_is_on_the_right_and_only_to_the_longest():
    ids, mask = pad([np.array([7, 8]), np.array([9, 9, 9])])
    assert ids.tolist() == [[7, 8, 0], [9, 9, 9]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("n", [1, 7, 64])
@pytest.mark.parametrize("count", [1, 5, 7, 100])
def test_every_row_once_per_pass(n, count):
    stream = RowStream(n, seed=0, stream=1)
    rows = np.concatenate([stream.rows(s, count) for s in range(0, 4 * n * count, count)])
    passes = rows[: len(rows) // n * n].reshape(-1, n)
    assert (np.sort(passes, axis=1) == np.arange(n)).all()
    if n > 7:
        assert len({tuple(p) for p in passes}) == len(passes)  # another order each pass


def test_streams_and_seeds_are_different():
    orders = {
        tuple(RowStream(50, seed, stream).rows(0, 50)) for seed in (0, 1, 2) for stream in (0, 1)
    }
    assert len(orders) == 6


def batches(seed: int = 0, **changes) -> StepBatches:
    rng = np.random.default_rng(5)
    settings = {
        "labeled_lengths": rng.integers(3, 40, 10),
        "unlabeled_lengths": rng.integers(3, 40, 90),
        "labeled_batch": 4,
        "unlabeled_batch": 16,
        "token_budget": 250,
        "seed": seed,
    }
    return StepBatches(**(settings | changes))


def test_a_step_is_a_pure_function_of_seed_and_step():
    forwards = [batches().draw(step) for step in range(40)]
    backwards = [batches().draw(step) for step in reversed(range(40))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert (a[0] == b[0]).all()
        assert (a[1] == b[1]).all()
    assert any((a[0] != batches(seed=1).draw(i)[0]).any() for i, a in enumerate(forwards))


def test_token_budget_cuts_unlabelled_rows_and_never_labelled_ones():
    source = batches()
    cut = 0
    for step in range(60):
        labeled, unlabeled = source.draw(step)
        assert len(labeled) == 4
        assert source.unlabeled_lengths[unlabeled].sum() <= 250
        whole = batches(token_budget=10**9).draw(step)[1]
        assert (unlabeled == whole[: len(unlabeled)]).all()
        if len(unlabeled) < 16:
            cut += 1
            assert source.unlabeled_lengths[whole[: len(unlabeled) + 1]].sum() > 250
    assert cut > 0
    tight = batches(token_budget=1)
    assert all(len(tight.draw(step)[0]) == 4 for step in range(9))
    assert all(len(tight.draw(step)[1]) == 1 for step in range(9))


def test_steps_cover_both_streams_once_per_pass():
    source = batches(token_budget=10**9, labeled_batch=5, unlabeled_batch=15)
    steps = [source.draw(step) for step in range(6)]
    labeled = np.concatenate([s[0] for s in steps]).reshape(3, 10)
    unlabeled = np.concatenate([s[1] for s in steps])
    assert (np.sort(labeled, axis=1) == np.arange(10)).all()
    assert (np.sort(unlabeled) == np.arange(90)).all()


def test_batches_larger_than_the_data_hold_each_row_once():
    source = batches(labeled_batch=99, unlabeled_batch=999, token_budget=10**9)
    labeled, unlabeled = source.draw(3)
    assert sorted(labeled) == list(range(10))
    assert sorted(unlabeled) == list(range(90))


def test_no_unlabelled_text():
    empty = np.empty(0, dtype=np.int64)
    assert len(batches(unlabeled_lengths=empty).draw(0)[1]) == 0


def test_token_cutoff():
    mask = (torch.arange(40)[None] < torch.tensor([[40], [1], [12]])).long()

    def cut(seed: int, share: float = 0.3):
        return token_cutoff(mask, share, torch.Generator().manual_seed(seed))

    seen = torch.stack([cut(seed) for seed in range(200)])
    assert (seen <= mask).all()  # padding stays hidden
    assert (seen[:, :, 0] == 1).all()  # the first token stays
    shown = seen[:, 0, 1:].float().mean()
    assert abs(float(shown) - 0.7) < 0.02
    assert seen.dtype == mask.dtype
    assert torch.equal(cut(1), cut(1))
    assert not torch.equal(cut(1), cut(2))
    assert torch.equal(cut(0, share=0.0), mask)
