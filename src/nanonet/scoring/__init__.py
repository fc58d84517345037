"""Layer 6: scoring a run or a bundle on labelled data. A bundle is scored without torch."""

from nanonet.scoring.classification import Scores, evaluate_bundle, evaluate_run

__all__ = ["Scores", "evaluate_bundle", "evaluate_run"]
