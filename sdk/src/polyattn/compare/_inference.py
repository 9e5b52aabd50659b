"""What can be said from a few random splits: intervals, and paired differences.

Random splits share most of their training data, so their scores are not independent and the
usual standard error is too small. Nadeau and Bengio (2003, doi:10.1023/A:1024068626366) correct
the variance by the ratio of test to training size: s² (1/J + n_test/n_train).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .results import Estimate, Metric

LEVEL = 0.05
"""Differences with a smaller p-value are real."""


def estimate(splits: Sequence[float], ratio: float, metric: Metric | None = None) -> Estimate:
    """Mean and 95 % interval of a score over splits; `ratio` is test size over training size.

    With a metric, the interval ends at its best possible value.
    """
    from scipy.stats import t

    values = np.asarray(splits, np.float64)
    mean = float(values.mean())
    error = _standard_error(values, ratio)
    reach = float(t.ppf(1 - LEVEL / 2, len(values) - 1)) * error
    low, high = mean - reach, mean + reach
    if metric is not None:
        if metric.higher_is_better:
            high = min(high, metric.best)
        else:
            low = max(low, metric.best)
    return Estimate(mean, error, low, high, tuple(float(x) for x in values))


def p_value(differences: Sequence[float], ratio: float) -> float:
    """Of the hypothesis that the mean difference is 0: corrected resampled t-test, two-sided."""
    from scipy.stats import t

    values = np.asarray(differences, np.float64)
    mean, error = float(values.mean()), _standard_error(values, ratio)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return 1.0 if abs(mean) <= 1e-12 else 0.0
    return float(2 * t.sf(abs(mean) / error, len(values) - 1))


def _standard_error(values: np.ndarray, ratio: float) -> float:
    return math.sqrt(float(values.var(ddof=1)) * (1 / len(values) + ratio))
