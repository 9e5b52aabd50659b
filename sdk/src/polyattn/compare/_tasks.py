"""What is predicted, from what, and how well: values, predictions and scores of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import PolyattnError

from .results import Metric

if TYPE_CHECKING:
    from ._folds import Part

ACCURACY = Metric(
    "accuracy", "accuracy", True, "share of the test vectors whose class has the largest weight",
    percent=True, best=1.0,
)  # fmt: skip
LOG_LOSS = Metric(
    "log-loss", "log-loss", False, "mean −ln of the weight on the true class, in nats", best=0.0
)
NDCG = Metric(
    "ndcg", "nDCG@10", True,
    "how well the ten training vectors with the largest weights share the class, first ones "
    "counting more", best=1.0,
)  # fmt: skip
R2 = Metric("r2", "R²", True, "share of the variance that is predicted", best=1.0)
MAE = Metric("mae", "MAE", False, "mean absolute error, in standard deviations", best=0.0)

TIE_BREAK = 1e-3
"""Weight of the log-loss beside the error rate: 2 of it count less than one vector of 400."""


class NotFiniteError(PolyattnError):
    """A mechanism returned NaN or infinity."""

    def __init__(self, output: Array) -> None:
        super().__init__(int(output.size - np.isfinite(output).sum()), output.size)

    def __str__(self) -> str:
        count, size = self.args
        return f"{count:,} of {size:,} outputs are not finite"


class Task(ABC):
    """A task gives values to the keys, and makes predictions of what comes out."""

    metrics: ClassVar[tuple[Metric, ...]]
    ranks: ClassVar[bool] = False
    """Looks at the weights of single keys, too."""

    @abstractmethod
    def values(self, part: Part) -> Array:
        """The values of the keys, in the dtype of the keys."""

    @abstractmethod
    def predict(self, output: Array, part: Part) -> Array:
        """Predictions from the smoother's output."""

    @abstractmethod
    def score(self, metric: str, prediction: Array, part: Part) -> float:
        """A metric of the predictions for the queries."""

    @abstractmethod
    def tuning(self, metric: str, prediction: Array, part: Part) -> tuple[float, float]:
        """The loss by which sharpness is tuned where rows are ranked by `metric`.

        With it comes what to show of it: the score of :meth:`tuned_for`.
        """

    def tuned_for(self, metric: str) -> str:
        """The metric that sharpness is tuned for where rows are ranked by `metric`."""
        return metric


class Classification(Task):
    """Values are one-hot labels, so that the output is the weight on each class."""

    metrics = (ACCURACY, LOG_LOSS, NDCG)
    ranks = True

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def values(self, part: Part) -> Array:
        return np.eye(self.classes, dtype=part.key.dtype)[part.key_target]

    def predict(self, output: Array, part: Part) -> Array:
        """Class probabilities.

        Weights below 0 count as 0, and the rest is divided by its sum. Then one key more is
        added whose label is spread like those of the training data: that bounds the log-loss,
        decides ties, and stands in where all weights are 0.
        """
        output = _finite(output)
        keys = part.key_target
        prior = np.bincount(keys, minlength=self.classes) / len(keys)
        weights = np.maximum(output, 0)
        total = weights.sum(axis=1, keepdims=True)
        share = np.where(total > 0, weights / np.where(total > 0, total, 1), prior)
        return (len(keys) * share + prior) / (len(keys) + 1)

    def score(self, metric: str, prediction: Array, part: Part) -> float:
        # Some thousand times in a comparison: scikit-learn's checks would take most of the time.
        truth = part.query_target
        if metric == "accuracy":
            return float((prediction.argmax(axis=1) == truth).mean())
        return float(-np.log(prediction[np.arange(len(truth)), truth]).mean())

    def ranking_score(self, weights: Array, part: Part) -> float:
        """NDCG@10 of the keys in the order of their weights; relevant are those of the class."""
        from sklearn.metrics import ndcg_score

        relevant = part.query_target[:, None] == part.key_target[None, :]
        return float(ndcg_score(relevant, _finite(weights), k=10))

    def tuning(self, metric: str, prediction: Array, part: Part) -> tuple[float, float]:
        log_loss = self.score("log-loss", prediction, part)
        if metric != "accuracy":
            return log_loss, log_loss
        accuracy = self.score("accuracy", prediction, part)
        # Accuracy goes in steps: the log-loss decides where two values stand on the same one.
        return 1 - accuracy + TIE_BREAK * log_loss, accuracy

    def tuned_for(self, metric: str) -> str:
        """Log-loss in place of nDCG, which soft-max weights of any sharpness share."""
        return "accuracy" if metric == "accuracy" else "log-loss"


class Regression(Task):
    """Values are numbers: the target, or hidden coordinates; standardised on the training data.

    A column of ones goes with them, by which the output is divided: a smoother averages.
    """

    metrics = (R2, MAE)

    def values(self, part: Part) -> Array:
        target = part.key_target
        return np.column_stack([target, np.ones(len(target))]).astype(part.key.dtype)

    def predict(self, output: Array, part: Part) -> Array:
        output = _finite(output)
        total = output[:, -1:]
        mean = part.key_target.mean(axis=0)
        predicted = np.where(total > 0, output[:, :-1] / np.where(total > 0, total, 1), mean)
        return predicted

    def score(self, metric: str, prediction: Array, part: Part) -> float:
        from sklearn.metrics import mean_absolute_error, r2_score

        truth = part.query_target
        if metric == "r2":
            # Weighted by variance, as a coordinate that hardly varies in the test part has any R².
            return float(r2_score(truth, prediction, multioutput="variance_weighted"))
        return float(mean_absolute_error(truth, prediction))

    def tuning(self, metric: str, prediction: Array, part: Part) -> tuple[float, float]:
        score = self.score(metric, prediction, part)
        return (1 - score if metric == "r2" else score), score


def _finite(output: Array) -> Array:
    output = output.astype(np.float64, copy=False)
    if not np.isfinite(output).all():
        raise NotFiniteError(output)
    return output
