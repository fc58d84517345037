"""Layer 4: what learners learn from. Importing this package registers every objective."""

from nanonet.objectives import consistency, distillation, mutual, propagation, supervised
from nanonet.objectives.base import OBJECTIVES, Objective, StepView

__all__ = [
    "OBJECTIVES",
    "Objective",
    "StepView",
    "consistency",
    "distillation",
    "mutual",
    "propagation",
    "supervised",
]
