"""Layer 7: estimators in the manner of scikit-learn, for texts."""

from nanonet.estimators.classifier import NanoNetClassifier
from nanonet.estimators.multilabel import NanoNetMultilabelClassifier
from nanonet.estimators.summarizer import NanoNetSummarizer

__all__ = ["NanoNetClassifier", "NanoNetMultilabelClassifier", "NanoNetSummarizer"]
