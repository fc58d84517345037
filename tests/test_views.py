"""Data views: what a learner that trains sees of the text, and what it does not."""

import dataclasses
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanonet.core.config import TrainingConfig, ViewConfig, ViewsConfig
from nanonet.core.errors import ConfigError
from nanonet.data.augment import feature_cutoff, shuffled_positions, span_cutoff, token_cutoff
from nanonet.models.encoders import wrap_model
from nanonet.models.learner import Chunk, ChunkView
from nanonet.training.device import Hardware, choose_hardware, shrink_frozen
from nanonet.training.evaluation import autocast, predict_logits
from nanonet.training.train import train
from nanonet.training.views import adversarial_noise, is_plain, make_views, view_generator
from test_backbones import make_batch, roberta_config
from test_engine import FP32, Record, make_engine, phase_step, run, same, tensors
from test_resume import clockless, interrupted
from test_training import losses
from tiny import bert_config, make_model, make_settings, make_tables, modernbert_config

FAMILIES = {"bert": bert_config, "modernbert": modernbert_config, "roberta": roberta_config}
PERTURBED = {"token_cutoff": 0.2, "span_cutoff": 0.2, "feature_cutoff": 0.2, "shuffle": 0.5}
ALL = [
    *(f"views.{key}={value}" for key, value in PERTURBED.items()),
    "views.dropout=0.1",
    "views.adversarial=3",
]
MIXED = "training.max_padding=1"  # labelled and unlabelled rows share chunks
LENGTHS = [1, 2, 3, 9, 14, 30]


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mask_of(lengths: list[int]) -> Tensor:
    return (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()


def hidden_places(mask: Tensor, seen: Tensor) -> list[list[int]]:
    """Where each row has real tokens that cannot be seen."""
    assert seen.shape == mask.shape
    assert seen.dtype == mask.dtype
    assert (seen <= mask).all()  # padding stays padding
    return [row.nonzero()[:, 0].tolist() for row in mask - seen]


# token level


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_token_cutoff_hides_its_share_and_never_the_first(share):
    mask = mask_of([1, 5, *[200] * 60])
    places = hidden_places(mask, token_cutoff(mask, share, chance()))
    assert all(0 not in row for row in places)
    assert sum(map(len, places[2:])) / (60 * 199) == pytest.approx(share, abs=0.02)
    assert len({tuple(row) for row in places[2:]}) == (1 if share == 0.0 else 60)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_span_cutoff_hides_one_span_of_the_row_s_share(share):
    mask = mask_of(LENGTHS)
    starts: dict[int, set[int]] = {length: set() for length in LENGTHS}
    for seed in range(200):
        places = hidden_places(mask, span_cutoff(mask, share, chance(seed)))
        for length, row in zip(LENGTHS, places, strict=True):
            assert len(row) == min(round(share * length), length - 1)
            assert 0 not in row
            if row:
                assert row == list(range(row[0], row[-1] + 1))
                starts[length].add(row[0])
    for length, found in starts.items():  # any place will do, the last tokens included
        count = min(round(share * length), length - 1)
        assert found == (set(range(1, length - count + 1)) if count else set())


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_shuffled_positions_are_an_exchange_within_the_row(share):
    mask = mask_of(LENGTHS)
    in_order = torch.arange(30).repeat(len(LENGTHS), 1)
    moved = 0
    for seed in range(50):
        positions = shuffled_positions(mask, share, chance(seed))
        assert torch.equal(positions.sort(-1).values, in_order)
        assert (positions[:, 0] == 0).all()
        assert torch.equal(positions[mask == 0], in_order[mask == 0])
        moved += int((positions != in_order).sum())
    assert (moved == 0) == (share == 0.0)
    movable = 50 * sum(n - 1 for n in LENGTHS)
    assert moved / movable < share + 0.05  # some keep their places by chance
    assert moved / movable >= 0.7 * share


def test_feature_cutoff_cuts_whole_features_of_a_row():
    factor = feature_cutoff(50, 400, 0.3, chance())
    assert factor.shape == (50, 1, 400)
    assert set(factor.unique().tolist()) == {0.0, 1.0}
    assert float(1 - factor.mean()) == pytest.approx(0.3, abs=0.02)
    assert not torch.equal(factor[0], factor[1])
    assert (feature_cutoff(3, 8, 0.0, chance()) == 1).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda g: token_cutoff(mask_of(LENGTHS), 0.5, g),
        lambda g: span_cutoff(mask_of(LENGTHS), 0.5, g),
        lambda g: shuffled_positions(mask_of(LENGTHS), 0.5, g),
        lambda g: feature_cutoff(6, 30, 0.5, g),
    ],
)
def test_chance_comes_from_the_generator_alone(view):
    torch.manual_seed(1)
    first = view(chance(3))
    torch.manual_seed(2)
    assert torch.equal(view(chance(3)), first)
    assert not torch.equal(view(chance(4)), first)


# what an encoder makes of a view


def make_chunk(lengths: list[int], seed: int = 0) -> Chunk:
    return Chunk(torch.arange(len(lengths)), *make_batch(lengths, seed=seed))


def states_of(encoder, ids, mask, positions=None):
    with torch.no_grad():
        return encoder.run_layers(encoder.embed(ids, positions), mask, positions)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_positions_in_order_change_nothing(family):
    encoder = wrap_model(make_model(FAMILIES[family]()))
    ids, mask = make_batch([12, 3, 7])
    in_order = torch.arange(12).repeat(3, 1)
    with torch.no_grad():
        assert torch.equal(encoder.embed(ids), encoder.embed(ids, in_order))
    for a, b in zip(
        states_of(encoder, ids, mask), states_of(encoder, ids, mask, in_order), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_other_positions_are_those_of_hugging_face(family):
    model = make_model(FAMILIES[family]())
    encoder = wrap_model(model)
    # Not beyond ModernBERT's window of 4 to each side, which is by place here.
    lengths = [5, 3, 4] if family == "modernbert" else [30, 3, 17]
    ids, mask = make_batch(lengths)
    positions = shuffled_positions(mask, 1.0, chance())
    first = 2 if family == "roberta" else 0  # its padding index and one more
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask, position_ids=positions + first)
        plain = model(input_ids=ids, attention_mask=mask)
        ours = encoder.finish(states_of(encoder, ids, mask, positions)[-1])
    real = mask.bool()
    torch.testing.assert_close(ours[real], theirs.last_hidden_state[real], rtol=0, atol=1e-5)
    assert (ours - plain.last_hidden_state)[real].abs().max() > 1e-2


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_hidden_token_has_no_influence(family):
    learner = make_engine(model=FAMILIES[family]).cohort["student1"]
    chunk = make_chunk([11, 6])
    for hide in (token_cutoff, span_cutoff):
        view = ChunkView(hide(chunk.attention_mask, 0.4, chance()))
        hidden = (chunk.attention_mask - view.mask).bool()
        assert hidden.any()
        others = chunk.input_ids.clone()
        others[hidden] = (others[hidden] + 7) % 30 + 5
        changed = dataclasses.replace(chunk, input_ids=others)
        with torch.no_grad():
            before, after = (learner.read([c], [view]).logits for c in (chunk, changed))
            assert torch.equal(before, after)
            before, after = (learner.read([c]).logits for c in (chunk, changed))
            assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_feature_cutoff_silences_features_of_the_embedding_output(family):
    learner = make_engine(model=FAMILIES[family]).cohort["student1"]
    chunk = make_chunk([9, 4])
    factor = feature_cutoff(2, 32, 0.4, chance())
    view = ChunkView(chunk.attention_mask, features=factor)
    with torch.no_grad():
        plain, seen = (
            learner.read([chunk], v, keep=frozenset({"hidden_states"})) for v in (None, [view])
        )
    real = chunk.attention_mask.bool()
    cut = (factor == 0).expand(2, 9, 32)[real]
    assert cut.any()
    assert (seen.hidden_states[0][cut] == 0).all()
    assert torch.equal(seen.hidden_states[0][~cut], plain.hidden_states[0][~cut])
    assert not torch.allclose(seen.logits, plain.logits, atol=1e-3)


# in a step


def views_of(engine, learner: str, step: int = 3, seed: int = 0, rows: int = 0):
    """How a learner sees the rows of step ``rows``; their chunks; the number of labelled rows."""
    batch = engine._draw(rows)
    phase, view = phase_step(engine, "students", step, seed=seed, batch=batch)
    chunks = batch.chunks(phase.streams)
    return view._views_of(learner, chunks, True), chunks, len(batch.labeled)


def parts(view: ChunkView) -> dict[str, Tensor]:
    return {key: value for key, value in vars(view).items() if value is not None}


@pytest.mark.parametrize("model", [bert_config, modernbert_config])
@pytest.mark.parametrize("setting", [*(f"views.{k}=0.5" for k in PERTURBED), "views.adversarial=6"])
def test_every_view_changes_the_unlabelled_rows_and_no_labelled_one(setting, model):
    engine = make_engine(setting, MIXED, "views.token_cutoff=0", setting, model=model)
    plain = make_engine(MIXED, "views.token_cutoff=0", model=model)
    seen, chunks, labeled = views_of(engine, "student1")
    assert any((c.rows < labeled).any() and (c.rows >= labeled).any() for c in chunks)
    for view, chunk in zip(seen, chunks, strict=True):
        spared, own = chunk.rows < labeled, parts(view)
        in_order = torch.arange(chunk.input_ids.shape[1]).expand_as(chunk.input_ids)
        assert torch.equal(view.mask[spared], chunk.attention_mask[spared])
        if "positions" in own:
            assert torch.equal(view.positions[spared], in_order[spared])
        if "features" in own:
            assert (view.features[spared] == 1).all()
        if "noise" in own:
            assert (view.noise[spared] == 0).all()
            assert (view.noise[~spared] != 0).all()
    ours = phase_step(engine, "students", step=3)[1]
    theirs = phase_step(plain, "students", step=3)[1]
    for stream, equal in (("labeled", True), ("unlabeled", False)):
        a, b = (step.own("student1", stream).logits for step in (ours, theirs))
        assert torch.allclose(a, b, atol=1e-5) == equal
        # Neither targets nor what the learner answers on the clean text is changed.
        torch.testing.assert_close(ours.clean("student1", stream).logits, b, rtol=0, atol=1e-5)
        a, b = (step.teacher(stream).logits for step in (ours, theirs))
        assert torch.equal(a, b)


def test_views_are_a_function_of_seed_step_and_learner():
    def found(*settings, learner="student1", step=3, seed=0, noise=0):
        torch.manual_seed(noise)
        engine = make_engine(*ALL, *settings)
        engine.cohort.eval()  # dropout would have its part in adversarial noise
        return [parts(view) for view in views_of(engine, learner, step, seed)[0]]

    def differing(a, b):
        return {k for x, y in zip(a, b, strict=True) for k in x if not torch.equal(x[k], y[k])}

    first = found()
    assert first[0].keys() == {"mask", "positions", "features", "noise"}
    assert differing(first, found(noise=1)) == set()
    for other in (found(learner="student2"), found(step=4), found(seed=1)):
        assert differing(first, other) == {"mask", "positions", "features", "noise"}
    # The generators of steps, learners and seeds do not meet by permuting numbers either.
    draws = [view_generator(*numbers).initial_seed() for numbers in np.ndindex(3, 4, 3)]
    assert len(set(draws)) == len(draws)


def test_a_learner_of_its_own_view_takes_the_rest_from_the_common_one():
    views = ViewsConfig(
        shuffle=0.5,
        dropout=0.1,
        learners={"student2": {"token_cutoff": 0.3, "dropout": 0.2}},
    )
    common = ViewConfig(shuffle=0.5, dropout=0.1)
    assert views.of("student1") == common
    own = dataclasses.replace(common, token_cutoff=0.3, dropout=0.2)
    assert views.of("student2") == own
    assert views.of("teacher") == ViewConfig()
    assert is_plain(views.of("teacher"))
    assert not is_plain(views.of("student1"))
    assert is_plain(ViewConfig(dropout=0.5))  # it changes the learner, not what it sees


def test_a_learner_s_own_view_applies_to_it_alone():
    common = ["views.token_cutoff=0", "views.shuffle=0.5"]
    engine = make_engine(*common, "views.learners.student2.token_cutoff=0.3")
    plain = make_engine(*common)
    for learner, hides in (("student1", False), ("student2", True)):
        views, chunks, _ = views_of(engine, learner)
        pairs = list(zip(views, chunks, strict=True))
        assert any((v.mask != c.attention_mask).any() for v, c in pairs) == hides
        without = views_of(plain, learner)[0]
        moved = [not torch.equal(v.positions, v.positions.sort(-1).values) for v in views]
        assert any(moved)
        if not hides:
            assert all(
                torch.equal(a.positions, b.positions) for a, b in zip(views, without, strict=True)
            )
    assert views_of(engine, "teacher")[0] is None


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("views.learners.student3.token_cutoff=0.1", "views.learners.student3 names no learner"),
        ("views.learners.studnet1.shuffle=1", "did you mean 'student1'"),
        ("views.learners.student1.tokencutoff=0.1", "did you mean 'token_cutoff'"),
        ("views.learners.student1.shuffle=2", "student1.shuffle' is 2.0, but must be at most 1"),
        ("views.learners.teacher.dropout=1", "teacher.dropout' is 1.0, but must be at most 0.9"),
    ],
)
def test_views_that_are_refused(setting, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        make_engine(setting)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_teacher_hands_on_what_it_makes_of_the_clean_text(share):
    engine = make_engine(
        f"views.learners.teacher.token_cutoff={share}",
        "phases.teacher.objectives.prediction_distillation.weight=1",  # to read both streams
    )
    targets: dict = {}
    _, view = phase_step(engine, "teacher", targets=targets)
    own = view.own("teacher", "unlabeled").logits
    target = phase_step(engine, "students", targets=targets)[1].teacher("unlabeled").logits
    clean = predict_logits(engine.cohort["teacher"], engine._draw(0).unlabeled, FP32)
    np.testing.assert_allclose(target.numpy(), clean, atol=1e-4)
    assert np.allclose(own.detach().numpy(), clean, atol=1e-4) == (share == 0.0)
    assert view.clean("teacher", "unlabeled").logits.equal(target)


# dropout


def dropouts(learner) -> set[float]:
    modules = list(learner.modules())
    plain = {m.p for m in modules if isinstance(m, nn.Dropout)}
    return plain | {m.attention_dropout for m in modules if hasattr(m, "attention_dropout")}


@pytest.mark.parametrize("model", [bert_config, modernbert_config])
def test_dropout_belongs_to_the_learner(model):
    own = "views.learners.student2.dropout=0.4"
    engine = make_engine("views.dropout=0.2", own, model=model)
    expected = {"teacher": 0.0, "student1": 0.2, "student2": 0.4}
    modes = {}

    def look(step):
        modes.update({name: engine.cohort[name].training for name in engine.cohort})

    run(engine, Record(look))
    for name, share in expected.items():
        assert dropouts(engine.cohort[name]) == {share}
        assert modes[name] == (share > 0)
        assert not engine.cohort[name].training  # afterwards


@pytest.mark.parametrize("model", [bert_config, modernbert_config])
def test_dropout_reaches_the_attention_and_spares_targets(model):
    engine = make_engine("views.dropout=0.5", "views.token_cutoff=0", model=model)
    student = engine.cohort["student1"]
    names = [
        (name, module)
        for name, module in student.named_modules()
        if isinstance(module, nn.Dropout) and not name.endswith("attention.self.dropout")
    ]
    for _, module in names:
        module.p = 0.0  # what is left is the attention's
    student.train()
    reads, cleans = [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        _, view = phase_step(engine, "students")
        reads.append(view.own("student1", "unlabeled").logits)
        cleans.append(view.clean("student1", "unlabeled").logits)
        assert student.training  # the target has left it as it was
    assert not torch.allclose(*reads, atol=1e-3)
    assert torch.equal(*cleans)
    clean = predict_logits(student, engine._draw(0).unlabeled, FP32)
    np.testing.assert_allclose(cleans[0].numpy(), clean, atol=1e-4)


# adversarial noise


@contextmanager
def added(module: nn.Module, noise: Tensor):
    """Add noise to what a module returns."""
    handle = module.register_forward_hook(lambda _module, _inputs, out: out + noise)
    try:
        yield
    finally:
        handle.remove()


def noise_by_hand(model, head, chunk: Chunk, steps: int, rate: float, start: Tensor) -> Tensor:
    """PS-NET's rule, with Hugging Face's model and torch alone."""

    def logits(noise: Tensor) -> Tensor:
        with added(model.embeddings, noise):
            out = model(input_ids=chunk.input_ids, attention_mask=chunk.attention_mask)
        mask = chunk.attention_mask[..., None].float()
        mean = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
        return 10 * (mean / mean.norm(dim=-1, keepdim=True) @ head.weight.T + head.bias)

    clean = logits(torch.zeros_like(start)).detach()
    noise = start
    for _ in range(steps):
        noise = noise.detach().requires_grad_()
        loss = (logits(noise) - clean).pow(2).sum()
        loss.backward()
        noise = noise.detach() + rate * noise.grad
        noise = noise / (noise.pow(2).sum(-1, keepdim=True).sqrt() + 1e-6)
    return noise


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("rate", [1e-3, 1.0])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_adversarial_noise_is_ps_net_s(family, steps, rate):
    teacher = make_engine(model=FAMILIES[family]).cohort["teacher"]
    model = make_model(FAMILIES[family]())  # of the same weights
    chunk = make_chunk([12, 5, 9])
    view = ChunkView(chunk.attention_mask)
    noise = adversarial_noise(teacher, chunk, view, steps, rate, chance(5))
    start = 1e-5 * torch.randn((3, 12, 32), generator=chance(5))
    expected = noise_by_hand(model, teacher.head.linear, chunk, steps, rate, start)
    torch.testing.assert_close(noise, expected, rtol=0, atol=1e-5)
    if steps == 0:
        assert torch.equal(noise, start)
    else:
        real = chunk.attention_mask.bool()
        torch.testing.assert_close(noise.norm(dim=-1)[real], torch.ones(26), rtol=0, atol=0.1)
    if steps == 4:  # the gradient has had its part in it
        straight = start / start.norm(dim=-1, keepdim=True)
        assert (noise - straight).abs().max() > 0.05 * rate


@pytest.mark.parametrize("family", list(FAMILIES))
def test_noise_is_that_of_the_whole_batch_however_it_is_cut_into_chunks(family):
    teacher = make_engine(model=FAMILIES[family]).cohort["teacher"]
    model = make_model(FAMILIES[family]())
    view = ViewConfig(adversarial=4, adversarial_rate=5.0)
    chunks = [  # rows 0 and 1 are labelled
        dataclasses.replace(make_chunk([12, 9, 11], seed=1), rows=torch.tensor([4, 0, 2])),
        dataclasses.replace(make_chunk([6, 5], seed=2), rows=torch.tensor([1, 3])),
    ]
    seen = make_views(view, teacher, chunks, 2, 0.8, chance(5))
    generator = chance(5)
    for chunk, ours in zip(chunks, seen, strict=True):
        start = 1e-5 * torch.randn((*chunk.input_ids.shape, 32), generator=generator)
        noise = noise_by_hand(model, teacher.head.linear, chunk, 3, 5.0, start)
        expected = torch.where((chunk.rows >= 2)[:, None, None], noise, 0)
        torch.testing.assert_close(ours.noise, expected, rtol=0, atol=1e-4)


def test_inner_steps_grow_with_the_run():
    engine = make_engine("views.token_cutoff=0")
    learner, chunk = engine.cohort["student1"], make_chunk([7, 4])
    for setting, progress, steps in (
        (5, 0.0, 0),
        (5, 0.19, 0),
        (5, 0.2, 1),
        (5, 0.5, 2),
        (5, 0.99, 4),
        (1, 0.99, 0),
    ):
        view = ViewConfig(adversarial=setting, adversarial_rate=2.0)
        (seen,) = make_views(view, learner, [chunk], 0, progress, chance(1))
        plain = ChunkView(chunk.attention_mask)
        expected = adversarial_noise(learner, chunk, plain, steps, 2.0, chance(1))
        assert torch.equal(seen.noise, expected)


def test_the_noise_of_a_step_has_the_inner_steps_of_its_place_in_the_run(monkeypatch):
    asked = []

    def note(learner, chunk, view, steps, rate, generator, own):
        asked.append((steps, rate))
        return torch.zeros(*chunk.input_ids.shape, learner.encoder.hidden_size)

    monkeypatch.setattr("nanonet.training.views.adversarial_noise", note)
    only = ["views.learners.student2.adversarial=4", "views.adversarial_rate=0.5"]
    run(make_engine(*only, MIXED))
    steps = [s for s, _ in asked]
    assert sorted(set(steps)) == [0, 1, 2, 3]  # floor(4 t / 6)
    assert steps == sorted(steps)
    assert {rate for _, rate in asked} == {0.5}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_adversarial_noise_moves_the_logits_more_than_other_noise(family):
    learner = make_engine(model=FAMILIES[family]).cohort["student1"]
    moved: dict[str, list[float]] = {"adversarial": [], "random": []}
    for seed in range(6):
        chunk = make_chunk([14, 9, 5, 12], seed=seed)
        plain = ChunkView(chunk.attention_mask)
        noise = adversarial_noise(learner, chunk, plain, 6, 10.0, chance(seed))
        other = F.normalize(torch.randn(noise.shape, generator=chance(seed)), dim=-1)
        other *= noise.norm(dim=-1, keepdim=True)
        with torch.no_grad():
            clean = learner.read([chunk]).logits
            for kind, value in (("adversarial", noise), ("random", other)):
                view = dataclasses.replace(plain, noise=value)
                logits = learner.read([chunk], [view]).logits
                moved[kind].append(float(F.mse_loss(logits, clean)))
    assert np.mean(moved["adversarial"]) > 1.5 * np.mean(moved["random"])


@pytest.mark.parametrize("method", ["bitfit", "full"])
def test_making_noise_leaves_no_gradient_anywhere(method):
    settings = [f"cohort.student_peft={method}", f"cohort.teacher_peft={method}"]
    engine = make_engine(*settings)
    chunk = make_chunk([7, 4])
    for name in engine.cohort:
        view = ChunkView(chunk.attention_mask)
        noise = adversarial_noise(engine.cohort[name], chunk, view, 3, 1.0, chance())
        assert not noise.requires_grad
    assert all(p.grad is None for p in engine.cohort.parameters())


def test_noise_respects_the_rest_of_the_view():
    """What cannot be seen gets no gradient: its noise keeps its direction."""
    learner, chunk = make_engine().cohort["student1"], make_chunk([12, 8])
    view = ChunkView(token_cutoff(chunk.attention_mask, 0.5, chance(2)))
    noise = adversarial_noise(learner, chunk, view, 3, 10.0, chance())
    start = 1e-5 * torch.randn(noise.shape, generator=chance())
    turned = 1 - F.cosine_similarity(noise, start, dim=-1)
    seen = view.mask.bool()
    assert turned[~seen].max() < 1e-5
    assert turned[seen].min() > 1e-3


@pytest.mark.parametrize("model", [bert_config, modernbert_config])
@pytest.mark.parametrize("method", ["bitfit", "full"])
def test_adversarial_noise_in_bf16(model, method):
    if choose_hardware(TrainingConfig(device="cpu")).precision != "bf16":
        pytest.skip("this processor has no bf16 instructions")
    engine = make_engine(f"cohort.student_peft={method}", "views.adversarial=6", model=model)
    shrink_frozen(engine.cohort)
    engine.hardware = Hardware("cpu", "bf16", "eager", 1)
    phase, view = phase_step(engine, "students", step=4)
    with autocast(engine.hardware):
        total = sum(o.loss("student1", view) for o in phase.objectives.values())
        (seen, *_), chunks, labeled = views_of(engine, "student1", step=4, rows=4)
    total.backward()
    # autocast keeps casts of weights: those of the clean pass must not serve where it learns.
    own = engine.cohort["student1"].own_parameters()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in own.values())
    assert seen.noise.dtype == torch.float32
    real = (chunks[0].rows >= labeled)[:, None] & seen.mask.bool()
    norms = seen.noise[real].norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(len(norms)), rtol=0, atol=0.1)
    assert run(engine).steps[-1] == 6


# a whole run


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_run_with_every_view_learns_and_continues_to_the_bit(tmp_path, request, family):
    folder = request.getfixturevalue(f"tiny_{family}_folder")
    own = "views.learners.student2.token_cutoff=0.4"
    teacher = ["views.learners.teacher.shuffle=0.3", "views.learners.teacher.dropout=0.1"]
    config = make_settings(folder, *ALL, own, *teacher)
    expected = train(config, make_tables, tmp_path / "whole")
    interrupted(config, tmp_path / "parts", 3)
    torch.manual_seed(99)
    summary = train(config, make_tables, tmp_path / "parts", mode="resume")
    assert clockless(summary) == clockless(expected)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    plain = train(make_settings(folder), make_tables, tmp_path / "plain")
    assert plain["weights_sha256"] != expected["weights_sha256"]


@pytest.mark.parametrize("setting", ALL)
def test_every_view_changes_what_is_learnt(setting):
    without = make_engine("views.token_cutoff=0")
    engine = make_engine("views.token_cutoff=0", setting)
    run(without)
    run(engine)
    for learner, equal in (("teacher.", True), ("student1.", False), ("student2.", False)):
        assert same(tensors(engine), tensors(without), learner) == equal
