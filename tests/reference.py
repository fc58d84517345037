"""Every method as a plain statement of itself: what `test_recipes` holds the engine to.

Written from the methods' texts, not from the package, of which nothing is imported. Learners are
Hugging Face layers of their own (nothing is shared), rows are read one by one (nothing is padded),
every loss is spelt out where it is used, every learner has an optimizer of its own in every phase.
Chance and the rows of a step are handed in, so that both sides see the same.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labels_reference import agree_on, classify, co_train, propagate, rank_of_clearness, tf_idf

Rows = list[Tensor]  # token ids of one text each, (tokens,)
Trained = Literal["biases", "layers", "all"]
Log = list[dict[str, float]]  # by step, unweighted losses by "<learner>.<objective>"


class Output(NamedTuple):
    """What a learner makes of R rows: layers' values in the order of rows and real tokens."""

    logits: Tensor  # (R, C)
    pooled: Tensor  # (R, H)
    states: list[Tensor]  # embedding output and each layer's, (tokens, H)
    scores: list[Tensor]  # each layer's attention before the softmax, (heads x pairs of tokens,)


class Learner(nn.Module):
    """Some layers of a BERT, mean pooling, and a head z = scale (W h + b)."""

    def __init__(
        self,
        name: str,
        model: Any,
        layers: tuple[int, ...],
        classes: int,
        start: dict[str, Tensor],
        trained: Trained,
    ) -> None:
        super().__init__()
        own = copy.deepcopy(model)
        self.name = name
        self.layer_map = layers  # counted from 1
        self.embeddings = own.embeddings
        self.layers = nn.ModuleList(own.encoder.layer[i - 1] for i in layers)
        self.head = nn.Linear(model.config.hidden_size, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # PS-NET and DisCo train all weights behind a plain head, the others biases, or all but the
        # tables of embeddings, and a head on normalised vectors.
        self.normalize, self.scale = (False, 1.0) if trained == "all" else (True, 10.0)
        for key, parameter in self.named_parameters():
            is_table = key.startswith("embeddings.") and "LayerNorm" not in key
            of_layers = trained == "layers" and not is_table
            biases = key.endswith("bias") or key.startswith("head.")
            parameter.requires_grad_(trained == "all" or of_layers or biases)
            if key in start:
                parameter.data += start[key]

    def embed(self, row: Tensor) -> Tensor:
        """Return the embedding output (tokens, H)."""
        return self.embeddings(input_ids=row[None])[0]

    def read(self, rows: Rows, visible: Rows | None = None, noise: Rows | None = None) -> Output:
        """Read rows.

        Args:
            rows: token ids.
            visible: by row, which tokens may be attended to; all where None.
            noise: by row, what is added to the embedding output (tokens, H).
        """
        outputs = []
        for i, row in enumerate(rows):
            hidden = self.embed(row) + (0.0 if noise is None else noise[i])
            seen = torch.ones(len(row)) if visible is None else visible[i].float()
            outputs.append(self._read_row(hidden, seen))
        pooled = torch.stack([vector for vector, _, _ in outputs])
        x = pooled / pooled.norm(dim=-1, keepdim=True) if self.normalize else pooled
        logits = self.scale * (x @ self.head.weight.T + self.head.bias)
        states = [torch.cat(layer) for layer in zip(*(s for _, s, _ in outputs), strict=True)]
        scores = [torch.cat(layer) for layer in zip(*(a for _, _, a in outputs), strict=True)]
        return Output(logits, pooled, states, scores)

    def _read_row(self, hidden: Tensor, seen: Tensor) -> tuple[Tensor, Rows, Rows]:
        mask = torch.where(seen > 0, 0.0, torch.finfo(torch.float32).min)[None, None, None, :]
        states, scores = [hidden], []
        for layer in self.layers:
            scores.append(attention_scores(layer.attention.self, hidden).flatten())
            hidden = layer(hidden[None], attention_mask=mask)[0]
            states.append(hidden)
        return (hidden * seen[:, None]).sum(0) / seen.sum(), states, scores

    def target(self, rows: Rows) -> Output:
        """Read rows as they are, without gradient."""
        with torch.no_grad():
            return self.read(rows)


def attention_scores(attention: Any, hidden: Tensor) -> Tensor:
    """Return q k / sqrt(d) of a self-attention, (heads, tokens, tokens)."""
    heads = attention.num_attention_heads
    query, key = (
        part(hidden).view(len(hidden), heads, -1).transpose(0, 1)
        for part in (attention.query, attention.key)
    )
    return query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])


@dataclass(frozen=True)
class Task:
    """What a method is given.

    Attributes:
        model: the pretrained encoder.
        classes: their number.
        start: by learner and parameter, what is added to the pretrained weights and to heads of
            zeros, so that nobody starts as a copy of another.
        labeled: labelled texts.
        labels: their class indexes.
        unlabeled: unlabelled texts.
        draws: by step, the indexes of its labelled and of its unlabelled texts.
        uniform: numbers in [0, 1), (tokens,) for each row that a student reads in a phase, given
            the step, the student's number from 0 and those rows.
        normal: the same, N(0, 1) and (tokens, H).
    """

    model: Any
    classes: int
    start: dict[str, dict[str, Tensor]]
    labeled: Rows
    labels: Tensor
    unlabeled: Rows
    draws: list[tuple[Any, Any]]
    uniform: Callable[[int, int, Rows], Rows]
    normal: Callable[[int, int, Rows], Rows]

    @property
    def steps(self) -> int:
        """Return N."""
        return len(self.draws)

    def teacher(self, trained: Trained = "biases") -> Learner:
        """Return the whole encoder with a head."""
        layers = tuple(range(1, len(self.model.encoder.layer) + 1))
        return self._learner("teacher", layers, trained)

    def students(self, *layer_maps: tuple[int, ...], trained: Trained = "biases") -> list[Learner]:
        """Return students cut out of the encoder."""
        names = [f"student{k + 1}" for k in range(len(layer_maps))]
        return [
            self._learner(name, layers, trained)
            for name, layers in zip(names, layer_maps, strict=True)
        ]

    def _learner(self, name: str, layers: tuple[int, ...], trained: Trained) -> Learner:
        return Learner(name, self.model, layers, self.classes, self.start.get(name, {}), trained)

    def batch(self, step: int) -> tuple[Rows, Tensor, Rows]:
        """Return the labelled texts of a step, their labels, and the unlabelled texts."""
        own, other = self.draws[step]
        return [self.labeled[i] for i in own], self.labels[own], [self.unlabeled[i] for i in other]


class Optimizers:
    """One AdamW per learner of a phase; gradients are clipped learner by learner."""

    def __init__(
        self, learners: list[Learner], encoder: float, head: float, clip: float = 1.0
    ) -> None:
        self.learners = learners
        self.clip = clip
        self.adams = []
        for learner in learners:
            groups: list[dict[str, Any]] = [{"params": [], "lr": r} for r in (encoder, head)]
            for key, parameter in learner.named_parameters():
                if parameter.requires_grad:
                    groups[key.startswith("head.")]["params"].append(parameter)
            self.adams.append(torch.optim.AdamW(groups, weight_decay=0.0))
        self.peaks = (encoder, head)

    def step(
        self, losses: list[dict[str, Tensor]], factor: float, **weights: float
    ) -> dict[str, float]:
        """Update every learner by its own losses, and return them.

        Args:
            losses: of each learner, by objective.
            factor: of the learning rates.
            weights: of objectives; 1 where none is given.
        """
        log = {}
        for learner, adam, own in zip(self.learners, self.adams, losses, strict=True):
            adam.zero_grad()
            sum(weights.get(name, 1.0) * loss for name, loss in own.items()).backward()
            trained = [p for p in learner.parameters() if p.requires_grad]
            nn.utils.clip_grad_norm_(trained, self.clip)
            for group, peak in zip(adam.param_groups, self.peaks, strict=True):
                group["lr"] = peak * factor
            adam.step()
            log |= {f"{learner.name}.{name}": loss.item() for name, loss in own.items()}
            adam.zero_grad()
        return log


# Schedules, of the share of a phase's steps that is done.


def linear(done: float, warmup: float = 0.0) -> float:
    """Rise to 1 during the warm-up, then fall to 0."""
    return done / warmup if done < warmup else (1.0 - done) / (1.0 - warmup)


def inverse_sqrt(done: float, warmup: float) -> float:
    """Rise to 1 during the warm-up, then fall as 1/sqrt(t)."""
    return done / warmup if done < warmup else math.sqrt(warmup / done)


def ramp(done: float, share: float) -> float:
    """Rise to 1 during the first ``share``, then stay."""
    return min(1.0, done / share)


# Losses.


def kl(target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(softmax(target) || softmax(logits)), a mean over rows."""
    p, log_q = target.softmax(-1), logits.log_softmax(-1)
    return (p * (p.log() - log_q)).sum(-1).mean()


def cosine(target: Tensor, vectors: Tensor) -> Tensor:
    """Return 1 - cosine similarity, a mean over rows."""
    unit = [v / v.norm(dim=-1, keepdim=True) for v in (target, vectors)]
    return 1.0 - (unit[0] * unit[1]).sum(-1).mean()


def mutual(own: list[Output], k: int, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return student k's mean distance from what the other students say, held fixed."""
    others = [o.logits.detach() for j, o in enumerate(own) if j != k]
    return sum(distance(z, own[k].logits) for z in others) / len(others)


# Views.


def cut_tokens(uniform: Rows, share: float) -> Rows:
    """Return which tokens stay visible: a share is hidden by chance, the first one never."""
    visible = [numbers >= share for numbers in uniform]
    for row in visible:
        row[0] = True
    return visible


def adversary(learner: Learner, rows: Rows, normal: Rows, inner_steps: int) -> Rows:
    """Return noise that moves a learner's logits (PS-NET's virtual adversary).

    From 1e-5 N(0, 1), each inner step goes along the gradient of the squared differences between
    the logits with noise and without, which PS-NET's code sums, and scales the noise to norm 1 per
    token.
    """
    clean = learner.target(rows).logits
    noise = [1e-5 * numbers for numbers in normal]
    for _ in range(inner_steps):
        for d in noise:
            d.requires_grad_()
        loss = F.mse_loss(learner.read(rows, noise=noise).logits, clean, reduction="sum")
        gradients = torch.autograd.grad(loss, noise)
        moved = [d.detach() + 1e-3 * g for d, g in zip(noise, gradients, strict=True)]
        noise = [d / (d.norm(dim=-1, keepdim=True) + 1e-6) for d in moved]
    return noise


# Methods. Each returns what it logs and its learners; layer maps are those of a four-layer
# encoder and two-layer students.

Result = tuple[Log, list[Learner]]


def supervised(task: Task) -> Result:
    """Everybody learns from the labels, on his own."""
    learners = [task.teacher(), *task.students((2, 4), (1, 4))]
    optimizers = Optimizers(learners, 1e-2, 1e-2)
    log: Log = []
    for t in range(task.steps):
        x, y, _ = task.batch(t)
        losses = [{"supervised": F.cross_entropy(one.read(x).logits, y)} for one in learners]
        log.append(optimizers.step(losses, linear(t / task.steps)))
    return log, learners


def nanonet(
    task: Task,
    neighbours: int = 20,
    labels: str = "co-trained",
    trained: Trained = "biases",
) -> Result:
    """Prepare the teacher, propagate the labels, then learn together."""
    teacher, students = task.teacher(), task.students((2, 4), (1, 4), trained=trained)
    preparation = Optimizers([teacher], 5e-3, 1e-2)
    teaching = Optimizers([teacher], 5e-3, 1e-2)
    learning = Optimizers(students, 2e-2 if trained == "biases" else 3e-4, 1e-2)
    first, last = task.steps // 6, 2 * task.steps // 3  # of the teacher's steps with soft labels
    log: Log = []
    for t in range(first):
        x, y, _ = task.batch(t)
        losses = [{"supervised": F.cross_entropy(teacher.read(x).logits, y)}]
        log.append(preparation.step(losses, linear(t / first)))

    places = teacher.target(task.labeled).pooled, teacher.target(task.unlabeled).pooled
    q = propagate(places[0], task.labels, places[1], neighbours)
    if labels != "neighbours":
        q, agreement = agree_on(q, classify(places[0], task.labels, places[1]))
    if labels == "co-trained":
        places = tuple(F.normalize(v.double(), dim=-1) for v in places)
        texts = tf_idf([ids.tolist() for ids in (*task.labeled, *task.unlabeled)])
        q = co_train(q, agreement, places, texts, task.labels)
    classes, confidence = q.argmax(1), rank_of_clearness(q)
    for t in range(first, task.steps):
        done = (t - first) / (task.steps - first)
        x, y, u = task.batch(t)
        drawn = task.draws[t][1]

        target = teacher.target(u)  # from before the teacher's update
        row: dict[str, float] = {}
        if t < last:
            logits = teacher.read(x + u).logits
            z_x, z_u = logits[: len(x)], logits[len(x) :]
            by_row = F.cross_entropy(z_u, classes[drawn], reduction="none")
            losses = [
                {
                    "supervised": F.cross_entropy(z_x, y),
                    "propagation": (confidence[drawn] * by_row).mean(),
                }
            ]
            row = teaching.step(losses, linear((t - first) / (last - first)))

        own = []
        for k, student in enumerate(students):
            uniform = task.uniform(t, k, x + u)[len(x) :]
            own.append(student.read(u, visible=cut_tokens(uniform, 0.1)))
        losses = [
            {
                "supervised": F.cross_entropy(student.read(x).logits, y),
                "prediction_distillation": kl(target.logits, own[k].logits),
                "representation_distillation": cosine(target.pooled, own[k].pooled),
                "mutual": mutual(own, k, kl),
            }
            for k, student in enumerate(students)
        ]
        log.append(row | learning.step(losses, linear(done), mutual=0.5 * ramp(done, 0.2)))
    return log, [teacher, *students]


BLOCKS = ((1, 2), (3, 4))
IMITATED = ((0, 1, 2), (2, 3, 4))  # the embedding output imitates the state that enters the block


def psnet(task: Task, beta: float = 1.0) -> Result:
    """PS-NET: four updates in each step, each with optimizers of its own."""
    teacher, students = task.teacher(trained="all"), task.students(*BLOCKS, trained="all")
    supervision = Optimizers(students, 3e-4, 3e-4, clip=math.inf)
    teaching = Optimizers([teacher], 2e-5, 2e-5, clip=math.inf)
    representation = Optimizers(students, 7e-4, 7e-4)
    prediction = Optimizers(students, 5e-4, 5e-4, clip=math.inf)
    log: Log = []
    for t in range(task.steps):
        done = t / task.steps
        x, y, u = task.batch(t)

        losses = [{"supervised": F.cross_entropy(s.read(x).logits, y)} for s in students]
        row = supervision.step(losses, inverse_sqrt(done, 0.2))

        z = teacher.read(x).logits
        losses = [{"supervised": F.cross_entropy(z, y)}]
        if beta < 1.0:  # what the students have to say
            answers = [student.target(x).logits.softmax(-1) for student in students]
            losses[0]["feedback"] = _mean(F.cross_entropy(z, p) for p in answers)
        rate = inverse_sqrt(done, 0.2)
        row |= teaching.step(losses, rate, supervised=beta, feedback=1.0 - beta)

        target = teacher.target(u)
        own = [_under_attack(task, t, k, student, u) for k, student in enumerate(students)]
        losses = [
            {
                "representation_distillation": _hidden(own[k], target, IMITATED[k]),
                "attention_distillation": _mean(
                    F.mse_loss(scores, target.scores[i - 1])
                    for scores, i in zip(own[k].scores, student.layer_map, strict=True)
                ),
            }
            for k, student in enumerate(students)
        ]
        row |= representation.step(losses, linear(done, 0.1))

        own = [_under_attack(task, t, k, student, u) for k, student in enumerate(students)]
        losses = [
            {
                "prediction_distillation": F.mse_loss(own[k].logits, target.logits),
                "mutual": mutual(own, k, F.mse_loss),
            }
            for k in range(len(students))
        ]
        row |= prediction.step(losses, linear(done, 0.1), mutual=ramp(done, 0.1))
        log.append(row)
    return log, [teacher, *students]


def _under_attack(task: Task, t: int, k: int, student: Learner, u: Rows) -> Output:
    """Read rows under adversarial noise whose inner steps grow to 5."""
    noise = adversary(student, u, task.normal(t, k, u), 5 * t // task.steps)
    return student.read(u, noise=noise)


def _hidden(own: Output, target: Output, layers: tuple[int, ...]) -> Tensor:
    """Return the MSE between hidden states, a mean over the student's."""
    pairs = zip(own.states, layers, strict=True)
    return _mean(F.mse_loss(state, target.states[i]) for state, i in pairs)


def _mean(values: Any) -> Tensor:
    return torch.stack(list(values)).mean()


def disco(task: Task) -> Result:
    """DisCo: students alone; one sees adversarial noise, the other loses tokens."""
    students = task.students(*BLOCKS, trained="all")
    learning = Optimizers(students, 3e-4, 3e-4)
    log: Log = []
    for t in range(task.steps):
        done = t / task.steps
        x, y, u = task.batch(t)
        normal = task.normal(t, 0, x + u)[len(x) :]
        noise = adversary(students[0], u, normal, 5 * t // task.steps)
        visible = cut_tokens(task.uniform(t, 1, x + u)[len(x) :], 0.2)
        own = [students[0].read(u, noise=noise), students[1].read(u, visible=visible)]
        losses = [
            {
                "supervised": F.cross_entropy(student.read(x).logits, y),
                "mutual": mutual(own, k, F.mse_loss),
            }
            for k, student in enumerate(students)
        ]
        log.append(learning.step(losses, linear(done, 0.1), mutual=ramp(done, 0.1)))
    return log, students


def distill(task: Task) -> Result:
    """Offline distillation: the teacher learns and rests, then the students imitate it."""
    teacher, students = task.teacher(), task.students((2, 4), (1, 4))
    teaching = Optimizers([teacher], 5e-3, 1e-2)
    learning = Optimizers(students, 2e-2, 1e-2)
    half = task.steps // 2
    log: Log = []
    for t in range(half):
        x, y, _ = task.batch(t)
        losses = [{"supervised": F.cross_entropy(teacher.read(x).logits, y)}]
        log.append(teaching.step(losses, linear(t / half)))
    for t in range(half, task.steps):
        x, y, u = task.batch(t)
        target = teacher.target(u)
        own = [student.read(u) for student in students]
        losses = [
            {
                "supervised": F.cross_entropy(student.read(x).logits, y),
                "prediction_distillation": kl(target.logits, own[k].logits),
                "representation_distillation": cosine(target.pooled, own[k].pooled),
            }
            for k, student in enumerate(students)
        ]
        log.append(learning.step(losses, linear((t - half) / (task.steps - half))))
    return log, [teacher, *students]


def self_training(task: Task, threshold: float = 0.9) -> Result:
    """One student learns from the labels, then also from its own confident answers."""
    (student,) = task.students((2, 4))
    preparation = Optimizers([student], 1e-2, 1e-2)
    learning = Optimizers([student], 1e-2, 1e-2)
    first = task.steps // 4
    log: Log = []
    for t in range(first):
        x, y, _ = task.batch(t)
        losses = [{"supervised": F.cross_entropy(student.read(x).logits, y)}]
        log.append(preparation.step(losses, linear(t / first)))
    for t in range(first, task.steps):
        x, y, u = task.batch(t)
        confidence, answers = student.target(u).logits.softmax(-1).max(-1)
        visible = cut_tokens(task.uniform(t, 0, x + u)[len(x) :], 0.1)
        by_row = F.cross_entropy(student.read(u, visible).logits, answers, reduction="none")
        losses = [
            {
                "supervised": F.cross_entropy(student.read(x).logits, y),
                "pseudo_label": by_row[confidence >= threshold].sum() / len(u),
            }
        ]
        log.append(learning.step(losses, linear((t - first) / (task.steps - first))))
    return log, [student]


def warmup(task: Task, tables: bool) -> Result:
    """The warm-up of PS-NET and DisCo: students imitate hidden states of the encoder as it is.

    All their weights learn, those of the embedding tables only where ``tables``.
    """
    teacher, students = task.teacher(), task.students(*BLOCKS, trained="all")
    for student in students:
        for key, parameter in student.named_parameters():
            parameter.requires_grad_(tables or not key.endswith("_embeddings.weight"))
    learning = Optimizers(students, 5e-4, 5e-4)
    log: Log = []
    for t in range(task.steps):
        _, _, u = task.batch(t)
        target = teacher.target(u)
        losses = [
            {"representation_distillation": _hidden(student.read(u), target, layers)}
            for student, layers in zip(students, IMITATED, strict=True)
        ]
        log.append(learning.step(losses, linear(t / task.steps, 0.1)))
    return log, students


METHODS: dict[str, Callable[..., Result]] = {
    "disco": disco,
    "distill": distill,
    "nanonet": nanonet,
    "psnet": psnet,
    "self-training": self_training,
    "supervised": supervised,
}
