"""Layer 6: scoring a run or a bundle on labelled data, and texts that it would learn from.

A bundle needs no torch.
"""

from nanonet.scoring.classification import Scores, evaluate_bundle, evaluate_run
from nanonet.scoring.suggestions import Suggestions, suggest_by_bundle, suggest_by_run

__all__ = [
    "Scores",
    "Suggestions",
    "evaluate_bundle",
    "evaluate_run",
    "suggest_by_bundle",
    "suggest_by_run",
]
