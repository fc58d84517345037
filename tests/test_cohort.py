import pytest
import torch
from torch import nn

from nanonet.core.config import CohortConfig, Config
from nanonet.core.errors import ConfigError
from nanonet.models.backbones import Backbone
from nanonet.models.cohort import build_cohort
from nanonet.models.encoders import wrap_model
from nanonet.models.heads import LinearHead, pool
from nanonet.models.learner import Chunk, ChunkView
from test_backbones import make_batch
from test_peft import make_cohort
from tiny import bert_config, make_model


def randomize_heads(cohort) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in cohort:
        for parameter in cohort[name].head.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)


def chunked(lengths: list[int], groups: list[list[int]]):
    """One padded batch of all rows, and the same rows in chunks with padding of their own."""
    ids, mask = make_batch(lengths)
    chunks = []
    for rows in groups:
        longest = max(lengths[i] for i in rows)
        chunks.append(Chunk(torch.tensor(rows), ids[rows, :longest], mask[rows, :longest]))
    return ids, mask, chunks


def test_names_and_maps():
    _, cohort = make_cohort("bert", "bitfit", "bitfit")
    assert list(cohort) == ["teacher", "student1", "student2"]
    assert cohort.has_teacher
    assert cohort.students == ["student1", "student2"]
    assert [cohort[n].layer_map for n in cohort] == [(1, 2, 3, 4), (2, 4), (1, 4)]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_reading_in_chunks_equals_one_padded_batch(family, pooling):
    _, cohort = make_cohort(family, "bitfit", "bitfit")
    randomize_heads(cohort)
    lengths = [5, 30, 3, 28, 6]
    ids, mask, chunks = chunked(lengths, [[1, 3], [4, 0], [2]])
    for name in cohort:
        learner = cohort[name]
        learner.pooling = pooling
        out = learner.read(chunks, keep=frozenset({"hidden_states"}))
        with torch.no_grad():
            embedded = learner.encoder.embed(ids)
            states = [embedded, *learner.encoder.run_layers(embedded, mask)]
            pooled = pool(learner.encoder.finish(states[-1]), mask, pooling)
            logits = learner(ids, mask)
        torch.testing.assert_close(out.logits, logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(out.pooled, pooled, rtol=0, atol=1e-5)
        assert len(out.hidden_states) == 1 + len(learner.layer_map)
        for ours, whole in zip(out.hidden_states, states, strict=True):
            # Real tokens only, in the order of rows and tokens.
            torch.testing.assert_close(ours, whole[mask.bool()], rtol=0, atol=1e-5)
        assert learner.read(chunks).hidden_states == ()


def test_a_view_hides_tokens_from_the_learner():
    _, cohort = make_cohort("bert", "bitfit", "bitfit")
    randomize_heads(cohort)
    ids, mask, _ = chunked([6, 6], [[0, 1]])
    chunk = Chunk(torch.arange(2), ids, mask)
    visible = mask.clone()
    visible[0, 3] = 0
    view = ChunkView(visible)
    learner = cohort["student1"]
    full, seen = learner.read([chunk]), learner.read([chunk], [view])
    assert not torch.equal(full.logits[0], seen.logits[0])
    torch.testing.assert_close(full.logits[1], seen.logits[1])
    changed = ids.clone()
    changed[0, 3] = ids[0, 3] % 30 + 5
    other = learner.read([Chunk(torch.arange(2), changed, mask)], [view])
    torch.testing.assert_close(seen.logits, other.logits)


def test_mean_pooling_is_over_real_tokens():
    hidden = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    expected = torch.stack([hidden[0, :2].mean(0), hidden[1].mean(0)])
    torch.testing.assert_close(pool(hidden, mask, "mean"), expected)
    torch.testing.assert_close(pool(hidden, mask, "cls"), hidden[:, 0])
    assert pool(hidden.bfloat16(), mask, "mean").dtype == torch.float32
    assert torch.isfinite(pool(hidden, torch.zeros_like(mask), "mean")).all()


@pytest.mark.parametrize("normalize", [True, False])
def test_head_starts_undecided_and_is_what_it_says(normalize):
    head = LinearHead(4, 3, normalize, scale=5.0)
    x = torch.randn(7, 4)
    assert (head(x) == 0).all()
    nn.init.normal_(head.linear.weight)
    nn.init.normal_(head.linear.bias)
    unit = x / x.norm(dim=-1, keepdim=True) if normalize else x
    expected = 5.0 * (unit @ head.linear.weight.T + head.linear.bias)
    torch.testing.assert_close(head(x), expected)


def test_logits_are_in_32_bits_under_autocast_too():
    _, cohort = make_cohort("bert", "bitfit", "bitfit")
    randomize_heads(cohort)
    ids, mask, chunks = chunked([5, 9], [[0, 1]])
    for name in cohort:
        learner = cohort[name]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            out, logits = learner.read(chunks), learner(ids, mask)
        assert out.logits.dtype == out.pooled.dtype == logits.dtype == torch.float32
        torch.testing.assert_close(out.logits, learner.head(out.pooled), rtol=0, atol=0)


def test_own_tensors_go_out_and_in():
    _, source = make_cohort("bert", "bitfit", "head")
    randomize_heads(source)
    _, target = make_cohort("bert", "bitfit", "head")
    tensors = {name: t.clone() for name, t in source.own_tensors().items()}
    assert "teacher.encoder.layers.0.output.dense.bias" in tensors
    assert {n for n in tensors if n.startswith("student1.")} == {
        "student1.head.linear.weight",
        "student1.head.linear.bias",
    }
    target.load_own_tensors(tensors)
    assert all(torch.equal(t, tensors[n]) for n, t in target.own_tensors().items())


def test_own_tensors_that_do_not_fit_change_nothing():
    _, cohort = make_cohort("bert", "head", "head")
    good = {name: t.clone() + 1 for name, t in cohort.own_tensors().items()}
    for bad in (
        {k: v for k, v in good.items() if k != "student2.head.linear.bias"},
        good | {"student2.head.linear.bias": torch.zeros(9)},
        good | {"extra": torch.zeros(1)},
    ):
        with pytest.raises(ValueError, match=r"extra|student2\.head\.linear\.bias"):
            cohort.load_own_tensors(bad)
        assert all((t == 0).all() for t in cohort.own_tensors().values())


def test_nobody_to_train_is_refused():
    backbone = Backbone("x", wrap_model(make_model(bert_config())), "", "mean", "")
    with pytest.raises(ConfigError, match="nobody would learn"):
        build_cohort(backbone, Config(cohort=CohortConfig(teacher=False, students=0)), 2)


@pytest.mark.parametrize(("teacher", "students"), [(False, 2), (True, 0), (True, 1)])
def test_cohorts_without_a_teacher_or_students(teacher, students):
    backbone = Backbone("x", wrap_model(make_model(bert_config())), "", "mean", "")
    settings = CohortConfig(teacher=teacher, students=students, student_layers=2)
    cohort = build_cohort(backbone, Config(cohort=settings), 2)
    assert cohort.has_teacher == teacher
    assert len(cohort.students) == students
