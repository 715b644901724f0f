"""A probability from a few signals, and the threshold of it that errs as often on one side as on the other."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def fit_logistic(x: Floats, y: npt.NDArray[np.bool_], weight: Floats) -> Floats:
    """Fit by Newton's method with a light ridge, which a few signals and hundreds of rows hardly feel."""
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-(x @ w)))
        gradient = x.T @ (weight * (p - y)) + 1e-2 * w
        hessian = (x.T * (weight * p * (1 - p))) @ x + 1e-2 * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        w -= step
        if np.abs(step).max() < 1e-9:
            break
    return w


def equal_error(right: Floats, wrong: Floats) -> float:
    """Return the threshold that refuses as large a share of the right ones as it lets through of the wrong ones."""
    candidates = np.unique(np.concatenate([right, wrong]))
    refused = np.array([(right < t).mean() for t in candidates])
    answered = np.array([(wrong >= t).mean() for t in candidates])
    return float(candidates[np.argmin(np.abs(refused - answered))])
