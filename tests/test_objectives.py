import dataclasses

import pytest
import torch
from torch import Tensor

from nanonet.core.errors import ConfigError
from nanonet.models.cohort import LearnerOutput
from nanonet.objectives import OBJECTIVES, Objective
from nanonet.objectives.base import SoftTargets, build_objectives
from nanonet.objectives.distillation import (
    PredictionDistillation,
    RepresentationDistillation,
    imitated_layers,
)
from nanonet.objectives.functional import cosine_distance, logits_distance, soft_cross_entropy
from nanonet.objectives.mutual import Mutual
from nanonet.objectives.supervised import Feedback, Supervised

ROWS, CLASSES, WIDTH, TOKENS, DEPTH = 5, 3, 4, 11, 6


class FixedStep:
    """A `StepView` of given outputs; notes what is asked for."""

    def __init__(self, students: int, layer_map=(2, 4, 6)) -> None:
        generator = torch.Generator().manual_seed(0)

        def output(layers: int) -> LearnerOutput:
            def draw(*shape: int) -> Tensor:
                return torch.randn(*shape, generator=generator)

            states = tuple(draw(TOKENS, WIDTH).requires_grad_() for _ in range(layers + 1))
            logits, pooled = draw(ROWS, CLASSES), draw(ROWS, WIDTH)
            return LearnerOutput(logits.requires_grad_(), pooled.requires_grad_(), states)

        self.students = [f"student{k + 1}" for k in range(students)]
        self.labels = torch.tensor([0, 2, 1, 1, 0])
        self.map = layer_map
        self.outputs = {name: output(len(layer_map)) for name in self.students}
        self.outputs["teacher"] = output(DEPTH)
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
    assert not objective.needs_hidden_states()


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
    assert objective.needs_hidden_states()
    close(objective.loss("student1", step), torch.stack(terms).mean())


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
