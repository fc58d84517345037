import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanonet.core.config import PhaseConfig
from nanonet.core.errors import ConfigError
from nanonet.core.strict import build
from nanonet.models.attention import PACKED, WATCHED, register_attention
from nanonet.models.cohort import TEACHER
from nanonet.models.encoders import wrap_model
from nanonet.models.learner import LearnerOutput
from nanonet.objectives import OBJECTIVES, Objective
from nanonet.objectives.base import SoftTargets, build_objectives
from nanonet.objectives.consistency import Consistency, PseudoLabel
from nanonet.objectives.distillation import (
    AttentionDistillation,
    PredictionDistillation,
    RepresentationDistillation,
    imitated_layers,
)
from nanonet.objectives.functional import cosine_distance, logits_distance, soft_cross_entropy
from nanonet.objectives.mutual import Mutual
from nanonet.objectives.supervised import Feedback, Supervised
from nanonet.training.evaluation import predict_logits
from nanonet.training.optim import make_optimizer
from nanonet.training.plan import Phase, Plan
from nanonet.training.propagation import SoftLabels
from nanonet.training.step import PhaseStep
from nanonet.training.train import train
from test_backbones import make_batch
from test_engine import FP32, dropout, make_engine, phase_step
from test_training import losses
from tiny import bert_config, make_model, make_settings, make_tables, modernbert_config

ROWS, CLASSES, WIDTH, TOKENS, DEPTH = 5, 3, 4, 11, 6
PAIRS, HEADS = 27, 2


def draw_logits(generator: torch.Generator) -> LearnerOutput:
    logits = 3 * torch.randn(ROWS, CLASSES, generator=generator)
    return LearnerOutput(logits, torch.zeros(ROWS, WIDTH))


class FixedStep:
    """A `StepView` of given outputs; notes what is asked for."""

    def __init__(self, students: int, layer_map=(2, 4, 6)) -> None:
        generator = torch.Generator().manual_seed(0)

        def output(layers: int) -> LearnerOutput:
            def draw(*shape: int) -> Tensor:
                return torch.randn(*shape, generator=generator)

            states = tuple(draw(TOKENS, WIDTH).requires_grad_() for _ in range(layers + 1))
            logits, pooled = draw(ROWS, CLASSES), draw(ROWS, WIDTH)
            maps = {
                f"attention_{kind}": tuple(
                    draw(PAIRS, HEADS).requires_grad_() for _ in range(layers)
                )
                for kind in ("scores", "probabilities")
            }
            return LearnerOutput(logits.requires_grad_(), pooled.requires_grad_(), states, maps)

        self.students = [f"student{k + 1}" for k in range(students)]
        self.labels = torch.tensor([0, 2, 1, 1, 0])
        self.class_weights: Tensor | None = None
        self.map = layer_map
        self.outputs = {name: output(len(layer_map)) for name in self.students}
        self.outputs["teacher"] = output(DEPTH)
        self.answers = {name: draw_logits(generator) for name in self.outputs}
        self.asked: set[tuple[str, str]] = set()
        self.read_soft_labels = False
        probabilities = torch.randn(ROWS, CLASSES, generator=generator).softmax(-1)
        self._soft_labels = SoftTargets(probabilities, torch.rand(ROWS, generator=generator))

    @property
    def soft_labels(self):
        self.read_soft_labels = True
        return self._soft_labels

    def layer_map(self, learner):
        return self.map

    def own(self, learner, stream):
        self.asked.add(("own", stream))
        return self.outputs[learner]

    def teacher(self, stream):
        self.asked.add(("teacher", stream))
        return self.outputs["teacher"]

    def peer(self, learner, stream):
        self.asked.add(("peer", stream))
        return self.outputs[learner]

    def clean(self, learner, stream):
        self.asked.add(("clean", stream))
        return self.answers[learner]


def log_softmax(z: Tensor) -> Tensor:
    """By hand, in 64 bits."""
    z = z.double()
    return z - z.exp().sum(-1, keepdim=True).log()


def kl(z: Tensor, target: Tensor, tau: float) -> Tensor:
    q = log_softmax(target / tau)
    return tau**2 * (q.exp() * (q - log_softmax(z / tau))).sum() / len(z)


def close(loss: Tensor, expected: Tensor) -> None:
    assert loss.ndim == 0
    torch.testing.assert_close(loss.double(), expected.double(), rtol=0, atol=1e-6)


def test_supervised():
    step = FixedStep(2)
    z = log_softmax(step.outputs["student1"].logits)
    close(Supervised().loss("student1", step), -z[torch.arange(ROWS), step.labels].mean())
    assert step.asked == {("own", "labeled")}
    step.class_weights = torch.tensor([0.5, 2.0, 7.0])[:CLASSES]
    own = step.class_weights[step.labels]
    picked = z[torch.arange(ROWS), step.labels]
    close(Supervised().loss("student1", step), -(own * picked).sum() / own.sum())


@pytest.mark.parametrize("students", [1, 2, 3])
def test_feedback(students):
    step = FixedStep(students)
    z = log_softmax(step.outputs["teacher"].logits)
    terms = [-(log_softmax(step.outputs[s].logits).exp() * z).sum() / ROWS for s in step.students]
    close(Feedback().loss("teacher", step), sum(terms) / students)
    assert step.asked == {("own", "labeled"), ("peer", "labeled")}


@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_prediction_distillation(tau):
    step = FixedStep(2)
    own, target = step.outputs["student2"].logits, step.outputs["teacher"].logits
    close(PredictionDistillation(temperature=tau).loss("student2", step), kl(own, target, tau))
    squared = (own - target).pow(2).sum() / (ROWS * CLASSES)
    close(PredictionDistillation(distance="mse").loss("student2", step), squared)
    assert step.asked == {("own", "unlabeled"), ("teacher", "unlabeled")}


@pytest.mark.parametrize("students", [2, 3])
@pytest.mark.parametrize("distance", ["kl", "mse"])
def test_mutual(students, distance):
    step = FixedStep(students)
    for name in step.students:
        own = step.outputs[name].logits
        others = [step.outputs[s].logits for s in step.students if s != name]
        terms = [kl(own, z, 2.0) if distance == "kl" else (own - z).pow(2).mean() for z in others]
        loss = Mutual(distance=distance, temperature=2.0).loss(name, step)
        close(loss, sum(t.double() for t in terms) / (students - 1))
    assert step.asked == {("own", "unlabeled"), ("peer", "unlabeled")}


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (1 - (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).mean()


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_pooled_representations(distance):
    step = FixedStep(2)
    own, target = step.outputs["student1"].pooled, step.outputs["teacher"].pooled
    expected = cosine(own, target) if distance == "cosine" else (own - target).pow(2).mean()
    objective = RepresentationDistillation(distance=distance)
    close(objective.loss("student1", step), expected)
    assert objective.parts() == frozenset()


@pytest.mark.parametrize("distance", ["cosine", "mse"])
@pytest.mark.parametrize(
    ("layer_map", "targets"),
    [((2, 4, 6), (0, 2, 4, 6)), ((4, 5, 6), (3, 4, 5, 6)), ((1, 2), (0, 1, 2)), ((5,), (4, 5))],
)
def test_hidden_states_are_compared_with_the_layers_they_were_cut_from(
    layer_map, targets, distance
):
    step = FixedStep(2, layer_map)
    assert imitated_layers(layer_map) == targets
    own, teacher = step.outputs["student1"].hidden_states, step.outputs["teacher"].hidden_states
    terms = []
    for state, layer in zip(own, targets, strict=True):
        other = teacher[layer]
        terms.append(
            cosine(state, other) if distance == "cosine" else (state - other).pow(2).mean()
        )
    objective = RepresentationDistillation(level="hidden", distance=distance)
    assert objective.parts() == {"hidden_states"}
    close(objective.loss("student1", step), torch.stack(terms).mean())


@pytest.mark.parametrize("maps", ["scores", "probabilities"])
@pytest.mark.parametrize("layer_map", [(2, 4, 6), (4, 5), (1,)])
def test_attention_is_compared_with_the_layers_it_was_cut_from(layer_map, maps):
    step = FixedStep(2, layer_map)
    kind = f"attention_{maps}"
    own, teacher = (step.outputs[n].attention[kind] for n in ("student2", "teacher"))
    terms = [
        (m.double() - teacher[layer - 1].double()).pow(2).sum() / (PAIRS * HEADS)
        for m, layer in zip(own, layer_map, strict=True)
    ]
    objective = AttentionDistillation(maps=maps)
    assert objective.parts() == {kind}
    close(objective.loss("student2", step), sum(terms) / len(terms))
    assert step.asked == {("own", "unlabeled"), ("teacher", "unlabeled")}


@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_consistency(tau):
    step = FixedStep(2)
    own, clean = step.outputs["student2"].logits, step.answers["student2"].logits
    close(Consistency(temperature=tau).loss("student2", step), kl(own, clean, tau))
    squared = (own - clean).pow(2).sum() / (ROWS * CLASSES)
    close(Consistency(distance="mse").loss("student2", step), squared)
    assert step.asked == {("own", "unlabeled"), ("clean", "unlabeled")}


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.9, 1.0])
def test_pseudo_labels(threshold):
    step = FixedStep(2)
    answers = log_softmax(step.answers["student1"].logits).exp()
    counts = []
    expected = torch.zeros((), dtype=torch.float64)
    for row, z in zip(answers, log_softmax(step.outputs["student1"].logits), strict=True):
        best = max(range(CLASSES), key=lambda c: float(row[c]))
        counts.append(float(row[best]) >= threshold)
        expected = expected - counts[-1] * z[best] / ROWS
    assert sum(counts) == {0.0: 5, 0.6: 3, 0.9: 1, 1.0: 0}[threshold]
    loss = PseudoLabel(threshold=threshold).loss("student1", step)
    close(loss, expected)
    loss.backward()
    grad = step.outputs["student1"].logits.grad
    assert (grad.abs().sum(-1) > 0).tolist() == counts  # the others teach nothing
    assert step.asked == {("own", "unlabeled"), ("clean", "unlabeled")}


def test_an_answer_as_sure_as_the_threshold_counts():
    step = FixedStep(1)
    own = step.outputs["student1"].logits
    everyone = -log_softmax(own)[:, 0].mean()
    for first, threshold in ((0.0, 0.5), (1e4, 1.0)):  # p is 0.5 and 1 without rounding
        answers = torch.tensor([[first, 0.0, -1e4]]).repeat(ROWS, 1)
        step.answers["student1"] = LearnerOutput(answers, answers)
        close(PseudoLabel(threshold=threshold).loss("student1", step), everyone)
    nothing = PseudoLabel(threshold=1.0)
    step.answers["student1"] = LearnerOutput(torch.zeros(ROWS, CLASSES), answers)
    close(nothing.loss("student1", step), torch.zeros(()))


@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_a_distance_from_itself_is_zero(kind):
    z = torch.randn(4, 3)
    assert abs(float(logits_distance(z, z, kind, 2.0))) < 1e-6
    assert abs(float(cosine_distance(z, 3 * z))) < 1e-6


def test_soft_cross_entropy_with_hard_targets_is_cross_entropy():
    z, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    hard = torch.nn.functional.one_hot(labels, 3).float()
    expected = torch.nn.functional.cross_entropy(z, labels)
    torch.testing.assert_close(soft_cross_entropy(z, hard), expected)


def test_extreme_logits_stay_finite():
    z = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    fixed = z.detach()
    loss = logits_distance(z, -fixed, "kl", 1.0) + soft_cross_entropy(z, fixed.softmax(-1))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


def test_ramp_up():
    objective = Mutual(weight=2.0, ramp_up=0.2)
    assert [objective.weight_at(p) for p in (0.0, 0.05, 0.1, 0.2, 0.9)] == [0.0, 0.5, 1.0, 2.0, 2.0]
    assert Mutual(weight=2.0).weight_at(0.0) == 2.0


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_reads_what_it_declares(name):
    kind = OBJECTIVES.get(name)
    assert issubclass(kind, Objective)
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    step = FixedStep(2)
    loss = kind().loss("student1", step)
    assert loss.requires_grad
    assert {stream for _, stream in step.asked} == kind.streams
    assert (("teacher", "unlabeled") in step.asked) == kind.needs_teacher
    assert any(who == "peer" for who, _ in step.asked) == (kind.min_students > 0)
    assert step.read_soft_labels == kind.needs_soft_labels


def test_building_from_tables():
    tables = {
        "supervised": {},
        "mutual": {"weight": 0.5, "distance": "mse"},
        "feedback": {"weight": 0},
    }
    made = build_objectives(tables, "students")
    assert made == {"supervised": Supervised(), "mutual": Mutual(weight=0.5, distance="mse")}


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"mutal": {}}, r"phases\.p\.objectives\.mutal: unknown objective.*did you mean 'mutual'"),
        ({"mutual": {"wait": 1}}, r"unknown key 'phases\.p\.objectives\.mutual\.wait'.*'weight'"),
        ({"mutual": {"weight": -1}}, "mutual.weight' is -1.0, but must be at least 0"),
        ({"mutual": {"temperature": 0}}, "mutual.temperature' is 0.0, but must be at least 0.01"),
        ({"mutual": {"ramp_up": 1.5}}, "must be at most 1"),
        ({"mutual": {"distance": "l2"}}, "must be one of 'kl', 'mse'"),
        ({"mutual": {"weight": 0, "wait": 1}}, "unknown key"),
    ],
)
def test_wrong_tables(tables, expected):
    with pytest.raises(ConfigError, match=expected):
        build_objectives(tables, "p")


# on real cohorts


def watched(config):
    """A maker of a configuration whose attention can be watched."""

    def make():
        register_attention()
        return config(attn_implementation=WATCHED)

    return make


ATTENTION = "phases.students.objectives.attention_distillation"
PLAIN = "views.token_cutoff=0"


@pytest.mark.parametrize("own", [WATCHED, PACKED])
@pytest.mark.parametrize("config", [bert_config, modernbert_config])
def test_attention_of_our_own_computes_what_others_do(config, own):
    ids, mask = make_batch([14, 3, 9])
    outputs = []
    for name in (own, "eager"):
        register_attention()
        encoder = wrap_model(make_model(config(attn_implementation=name)))
        assert encoder.config._attn_implementation == name
        with torch.no_grad():
            states = encoder.run_layers(encoder.embed(ids), mask)
        outputs.append(torch.stack(states)[:, mask.bool()])
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)
    assert outputs[0].std() > 0.01


def maps_by_hand(config, layer_map, row) -> dict[str, list[Tensor]]:
    """Each layer's maps (pairs, heads) of one row without padding, from Hugging Face's model."""
    model = make_model(config(attn_implementation="eager"))
    modern = hasattr(model, "layers")
    layers = model.layers if modern else model.encoder.layer
    kept = nn.ModuleList(layers[i - 1] for i in layer_map)
    if modern:
        model.layers = kept
    else:
        model.encoder.layer = kept
    ids = torch.from_numpy(row)[None]
    with torch.no_grad():
        out = model(input_ids=ids, output_attentions=True, output_hidden_states=True)
        scores = []
        for layer, hidden in zip(kept, out.hidden_states, strict=False):
            if modern:
                qkv = layer.attn.Wqkv(layer.attn_norm(hidden)).view(1, -1, 3, HEADS, 16)
                q, k = (qkv[:, :, i].transpose(1, 2) for i in (0, 1))
                places = torch.arange(len(row))[None]
                cos, sin = model.rotary_emb(hidden, places, layer.attention_type)

                def turn(x, cos=cos, sin=sin):
                    first, second = x.chunk(2, dim=-1)
                    return x * cos + torch.cat([-second, first], -1) * sin

                q, k = turn(q), turn(k)
            else:
                attention = layer.attention.self
                q, k = (
                    linear(hidden).view(1, -1, HEADS, 16).transpose(1, 2)
                    for linear in (attention.query, attention.key)
                )
            scores.append(q @ k.transpose(2, 3) / 4.0)  # the root of 16

    def pairs(maps):
        return [m[0].permute(1, 2, 0).reshape(-1, HEADS) for m in maps]

    return {"scores": pairs(scores), "probabilities": pairs(out.attentions)}


@pytest.mark.parametrize("padding", [0.0, 1.0])
@pytest.mark.parametrize("maps", ["scores", "probabilities"])
@pytest.mark.parametrize("config", [bert_config, modernbert_config])
def test_attention_maps_are_those_of_hugging_face(config, maps, padding):
    engine = make_engine(
        f"{ATTENTION}.maps={maps}",
        f"training.max_padding={padding}",
        PLAIN,
        model=watched(config),
    )
    assert engine.plan.watches_attention
    phase, view = phase_step(engine, "students")
    batch = view._batch
    padded = sum(int((c.attention_mask == 0).sum()) for c in batch.chunks(phase.streams))
    assert (padded > 0) == (padding > 0)
    depth = len(engine.cohort["teacher"].layer_map)
    for student in engine.cohort.students:
        layer_map = engine.cohort[student].layer_map
        expected = {}
        for stream, rows in (("labeled", batch.labeled), ("unlabeled", batch.unlabeled)):
            assert len({len(row) for row in rows}) > 2
            found = [maps_by_hand(config, layer_map, row)[maps] for row in rows]
            expected[stream] = [torch.cat(layer) for layer in zip(*found, strict=True)]
            ours = view.own(student, stream).attention
            assert ours.keys() == {f"attention_{maps}"}
            assert len(ours[f"attention_{maps}"]) == 2
            for a, b in zip(ours[f"attention_{maps}"], expected[stream], strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        whole = [maps_by_hand(config, range(1, depth + 1), row)[maps] for row in batch.unlabeled]
        teacher = [torch.cat(layer) for layer in zip(*whole, strict=True)]
        terms = [
            (own - teacher[layer - 1]).pow(2).mean()
            for own, layer in zip(expected["unlabeled"], layer_map, strict=True)
        ]
        loss = phase.objectives["attention_distillation"].loss(student, view)
        torch.testing.assert_close(loss, sum(terms) / 2, rtol=1e-4, atol=1e-5)
        assert loss > (1e-2 if maps == "scores" else 1e-4)


def test_no_map_and_no_hidden_state_is_kept_that_nobody_reads():
    for settings, kinds in (
        ([], set()),
        ([f"{ATTENTION}.weight=0"], set()),
        ([f"{ATTENTION}.weight=0.1"], {"attention_scores"}),
        ([f"{ATTENTION}.maps=probabilities"], {"attention_probabilities"}),
    ):
        engine = make_engine(*settings, model=watched(bert_config))
        assert engine.plan.parts == kinds
        _, view = phase_step(engine, "students")
        for output in (view.own("student1", "unlabeled"), view.teacher("unlabeled")):
            assert set(output.attention) == kinds
            assert output.hidden_states == ()


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_run_takes_attention_that_can_be_watched_where_it_is_read(
    tmp_path, request, monkeypatch, weight, family
):
    from nanonet.training import train as module

    asked = []
    load = module.load_backbone

    def note(name, pooling, attention):
        asked.append(attention)
        return load(name, pooling, attention)

    monkeypatch.setattr(module, "load_backbone", note)
    folder = request.getfixturevalue(f"tiny_{family}_folder")
    config = make_settings(folder, f"{ATTENTION}.weight={weight}", "training.log_every=1")
    train(config, make_tables, tmp_path / "run")
    assert asked == [WATCHED if weight else PACKED]
    logged = losses(tmp_path / "run")[-1]["losses"]
    names = [f"{s}.attention_distillation" for s in ("student1", "student2")]
    assert all((name in logged) == (weight > 0) for name in names)
    assert all(logged[name] > 0 for name in names if weight)


@pytest.mark.parametrize("distance", ["kl", "mse"])
def test_consistency_needs_a_view_or_dropout(distance):
    table = f"phases.students.objectives.consistency.distance={distance}"
    found = {}
    for settings in ((PLAIN,), ("views.token_cutoff=0.4",), (PLAIN, *dropout(0.3))):
        engine = make_engine(table, *settings)
        if len(settings) > 1:
            engine.cohort.train()
        phase, view = phase_step(engine, "students")
        own = view.own("student1", "unlabeled").logits
        clean = torch.from_numpy(
            predict_logits(engine.cohort["student1"], view._batch.unlabeled, FP32)
        )
        loss = phase.objectives["consistency"].loss("student1", view)
        expected = kl(own, clean, 1.0) if distance == "kl" else (own - clean).pow(2).mean()
        torch.testing.assert_close(loss.double(), expected.double(), rtol=0, atol=1e-4)
        found[settings] = loss.item()
        assert not view.clean("student1", "unlabeled").logits.requires_grad
        # No gradient through the clean side.
        own_parameters = list(engine.cohort["student1"].own_parameters().values())
        gradients = [
            torch.autograd.grad(value, own_parameters, retain_graph=True, allow_unused=True)
            for value in (loss, expected)
        ]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    plain, *others = found.values()
    assert plain == pytest.approx(0, abs=1e-8)
    assert min(others) > 1e-5


TABLES = [
    *((name, {}) for name in OBJECTIVES if name not in ("pseudo_label", "feedback")),
    ("feedback", {}),
    ("pseudo_label", {"threshold": 0.0}),
    ("representation_distillation", {"level": "hidden", "distance": "mse"}),
    ("attention_distillation", {"maps": "probabilities"}),
    ("consistency", {"distance": "mse"}),
]


def one_phase(name: str, settings: dict):
    """An engine whose students see the text under a view, and a phase of one objective."""
    engine = make_engine("views.token_cutoff=0.4", model=watched(bert_config))
    rng, count = np.random.default_rng(0), len(engine.rows.unlabeled)
    probabilities = rng.dirichlet([1, 1, 1], count).astype(np.float32)
    engine.soft_labels = SoftLabels(probabilities, rng.random(count).astype(np.float32))
    learners = (TEACHER,) if name == "feedback" else tuple(engine.cohort.students)
    objective = build(OBJECTIVES.get(name), settings)
    config = PhaseConfig("teacher" if name == "feedback" else "students", clip_norm=0.0)
    return engine, Phase("p", learners, {name: objective}, config)


def gradients_of(cohort) -> dict[str, Tensor]:
    named = ((n.removeprefix("learners."), p.grad) for n, p in cohort.named_parameters())
    return {name: gradient.clone() for name, gradient in named if gradient is not None}


def learn(name: str, settings: dict, step: int = 3):
    """What is logged, and the gradients that the optimizer meets, at a step of six."""
    engine, phase = one_phase(name, settings)
    optimizer, met = make_optimizer(phase, engine.cohort), {}
    optimizer.step = lambda: met.update(gradients_of(engine.cohort))
    engine.plan, engine.optimizers = Plan((phase,), ()), {"p": optimizer}
    return engine._run_phase(phase, engine._draw(step), step, {}), met


@pytest.mark.parametrize(("name", "settings"), TABLES)
def test_every_objective_reaches_the_learner_alone(name, settings):
    logged, together = learn(name, settings)
    engine, phase = one_phase(name, settings)
    assert set(logged) == {f"{learner}.{name}" for learner in phase.learners}
    assert all(np.isfinite(value) and value > 0 for value in logged.values())
    batch = engine._draw(3)
    for learner in phase.learners:
        view = PhaseStep(engine.cohort, phase, batch, engine._views, 0, 3, 6, phase.parts)
        phase.objectives[name].loss(learner, view).backward()
        alone = gradients_of(engine.cohort)
        engine.cohort.zero_grad()
        # Nobody else gets a gradient, and what it gets does not depend on who learns beside it.
        assert alone.keys() == {key for key in together if key.startswith(f"{learner}.")}
        for key, gradient in alone.items():
            torch.testing.assert_close(gradient, together[key], rtol=1e-4, atol=1e-6)
        assert max(float(gradient.abs().max()) for gradient in alone.values()) > 1e-6


@pytest.mark.parametrize(("name", "settings"), TABLES)
def test_weight_and_ramp_up_scale_the_gradient_and_not_what_is_logged(name, settings):
    logged, once = learn(name, settings)
    for changes, factor in (
        ({"weight": 3.0}, 3.0),
        ({"ramp_up": 1.0}, 0.5),  # half of the steps are done
        ({"ramp_up": 0.25}, 1.0),
        ({"weight": 4.0, "ramp_up": 1.0}, 2.0),
    ):
        value, found = learn(name, settings | changes)
        assert value == logged
        assert found.keys() == once.keys()
        for key, gradient in once.items():
            torch.testing.assert_close(found[key], factor * gradient, rtol=1e-4, atol=1e-6)
    _, nothing = learn(name, settings | {"ramp_up": 0.5}, step=0)
    assert all((gradient == 0).all() for gradient in nothing.values())
