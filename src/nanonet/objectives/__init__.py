"""Layer 4: what learners learn from. Importing this package registers every objective."""

from nanonet.objectives import distillation, mutual, propagation, supervised
from nanonet.objectives.base import OBJECTIVES, Objective, StepView

__all__ = [
    "OBJECTIVES",
    "Objective",
    "StepView",
    "distillation",
    "mutual",
    "propagation",
    "supervised",
]
