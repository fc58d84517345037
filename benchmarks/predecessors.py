"""The predecessors' training step in plain torch, on the same encoder and rows.

PS-NET's loop (arXiv 2412.00883) as our notes on its published code tell it: in 32 bits, every row
padded to 256 tokens, dropout in every pass, the teacher's targets included; four objectives take
turns in a step, each with forward passes and optimizers of its own; all weights are trained;
students imitate hidden states and attention maps of a block of the teacher's layers, averaged over
padding too; one gradient norm spans all students. Left out: the adversarial views.

What differs from it: students are cut out of MiniLM, as ours are (PS-NET: small BERTs of their
own); attention maps are those after the softmax, which Hugging Face's BERT returns, at the same
cost. Targets are computed without a graph, which is the cheaper reading.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH = 256  # tokens that every row is padded to
LAYERS = 3  # of a student
RATES = {"supervision": 3e-4, "teacher": 2e-5, "representation": 7e-4, "prediction": 5e-4}
NORM = 1.0
MUTUAL = 1.0  # weight of mutual learning


class Classifier(nn.Module):
    """An encoder with a linear head on its first token."""

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Any]:
        """Return logits (B, C), and hidden states and attention maps of all layers."""
        out = self.encoder(
            ids, attention_mask=mask, output_hidden_states=True, output_attentions=True
        )
        return self.head(out.last_hidden_state[:, 0]), out


class Predecessors:
    """A teacher and two students, and their step."""

    def __init__(self, encoder: Any, classes: int, students: int = 2) -> None:
        self.teacher = Classifier(encoder, classes)
        depth = len(encoder.encoder.layer)
        self.blocks = [0, depth - LAYERS][:students]  # the layers before each student's block
        self.students = []
        for start in self.blocks:
            student = copy.deepcopy(self.teacher)
            block = student.encoder.encoder.layer[start : start + LAYERS]
            student.encoder.encoder.layer = nn.ModuleList(block)
            self.students.append(student)
        for module in (self.teacher, *self.students):
            module.train()  # dropout in every pass
        self.optimizers = {
            name: [torch.optim.AdamW(s.parameters(), lr=RATES[name]) for s in self.students]
            for name in ("supervision", "representation", "prediction")
        }
        rate = RATES["teacher"]
        self.optimizers["teacher"] = [torch.optim.AdamW(self.teacher.parameters(), lr=rate)]

    def step(self, labeled: list[Any], labels: Any, unlabeled: list[Any]) -> None:
        """Do one step on token ids of labelled and unlabelled rows."""
        x, y, u = pad(labeled), torch.as_tensor(labels), pad(unlabeled)
        for student in self.students:
            F.cross_entropy(student(*x)[0], y).backward()
        self._update("supervision")
        F.cross_entropy(self.teacher(*x)[0], y).backward()
        self._update("teacher")
        self._imitate(u)
        self._update("representation")
        self._predict(u)
        self._update("prediction")

    def _imitate(self, rows: tuple[Tensor, Tensor]) -> None:
        """Distil hidden states, embedding output included, and attention maps."""
        with torch.no_grad():
            target = self.teacher(*rows)[1]
        for student, start in zip(self.students, self.blocks, strict=True):
            own = student(*rows)[1]
            states = zip(own.hidden_states, target.hidden_states[start:], strict=False)
            maps = zip(own.attentions, target.attentions[start:], strict=False)
            torch.stack([F.mse_loss(a, b) for a, b in [*states, *maps]]).sum().backward()

    def _predict(self, rows: tuple[Tensor, Tensor]) -> None:
        """Distil the teacher's logits, and learn from each other's."""
        with torch.no_grad():
            target = self.teacher(*rows)[0]
        logits = [student(*rows)[0] for student in self.students]
        total = torch.zeros(())
        for own in logits:
            peers = [F.mse_loss(own, other.detach()) for other in logits if other is not own]
            total = total + F.mse_loss(own, target) + MUTUAL * torch.stack(peers).mean()
        total.backward()

    def _update(self, name: str) -> None:
        learners = [self.teacher] if name == "teacher" else self.students
        nn.utils.clip_grad_norm_([p for m in learners for p in m.parameters()], NORM)
        for optimizer in self.optimizers[name]:
            optimizer.step()
            optimizer.zero_grad()


def pad(rows: list[Any]) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, both (B, `LENGTH`)."""
    ids = torch.zeros(len(rows), LENGTH, dtype=torch.long)
    for place, row in zip(ids, rows, strict=True):
        place[: len(row)] = torch.as_tensor(row)
    return ids, (ids != 0).long()
