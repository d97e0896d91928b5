"""How good generated sounds are: the mathematics alone, on embeddings and class probabilities.

Fréchet audio distance: Kilgour et al., "Fréchet Audio Distance", 2019. The other two as the
AudioLDM papers report them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

LEAST_PROBABILITY = 1e-6  # added to every class, so that one that is missed costs 13.8 at most


@dataclass(frozen=True)
class Estimate:
    """A figure and its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Fréchet (Wasserstein-2) distance between the Gaussians fitted to two sets of
    embeddings, (n, d) and (m, d).

    |mean_x - mean_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), with covariances over n - 1. For S_x =
    A'A and S_y = B'B the last trace is the sum of the singular values of A B', so neither a matrix
    root nor a product of covariances is formed, and covariances of low rank do no harm.

    Raises:
        ValueError: fewer than two embeddings, different widths, or NaN.
    """
    for name, set_ in (("first", x), ("second", y)):
        if set_.ndim != 2 or len(set_) < 2 or not np.isfinite(set_).all():
            raise ValueError(
                f"the {name} set is {set_.shape}: a distance needs two or more finite embeddings"
            )
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"embeddings of different widths: {x.shape[1]} and {y.shape[1]}")
    (mean_x, a), (mean_y, b) = _gaussian(x), _gaussian(y)
    common = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    distance = np.square(mean_x - mean_y).sum() + np.square(a).sum() + np.square(b).sum()
    return float(max(0.0, distance - 2 * common))


def _gaussian(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and a factor (min(n, d), d) whose Gram matrix is the covariance."""
    x = x.astype(np.float64)
    mean = x.mean(0)
    return mean, np.asarray(np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode="r"))


def kl_divergences(reference: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """KL(reference || generated) in nats of each pair of class probabilities (n, k): (n,)."""
    if reference.shape != generated.shape:
        raise ValueError(f"{reference.shape} against {generated.shape}: give pairs")
    p, q = (x.astype(np.float64) + LEAST_PROBABILITY for x in (reference, generated))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    return (p * np.log(p / q)).sum(-1)


def cosine_similarities(text: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """Of each pair of embeddings (n, d): (n,). The CLAP score is their mean."""
    text, audio = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (text, audio))
    return (text * audio).sum(-1)


def bootstrap(
    statistic: Callable[..., float],
    *counts: int,
    resamples: int = 1000,
    share: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A statistic of clips, and the interval that it spreads over when clips are drawn again.

    Resampled sets repeat clips, which makes a Fréchet distance larger than it is. The quantiles are
    therefore taken about the resamples' own mean and laid about the value of the whole set.

    Args:
        statistic: called with one array of indices for each count.
        counts: clips in each set that is resampled on its own.
        share: of the resamples inside the interval.
    """
    random = np.random.default_rng(seed)
    value = statistic(*(np.arange(count) for count in counts))
    drawn = [
        statistic(*(random.integers(count, size=count) for count in counts))
        for _ in range(resamples)
    ]
    tail = (1 - share) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail)) - np.mean(drawn)
    return Estimate(float(value), float(value + low), float(value + high))


@dataclass(frozen=True)
class ClipFeatures:
    """What networks computed of a set of clips.

    Attributes:
        embedded, reference: embeddings of the clips and of what they are compared with, (n, d) and
            (m, d).
        paired: whether clip i belongs to reference i; then both are resampled together.
        of_clips: by name, a figure of each clip (n,), whose mean counts.
    """

    embedded: np.ndarray
    reference: np.ndarray
    paired: bool
    of_clips: dict[str, np.ndarray] = field(default_factory=dict)

    def estimates(self, **options) -> dict[str, Estimate]:
        """ "fad", and the means of `of_clips`. Options as in `bootstrap`."""
        return {"fad": self._distance(**options)} | {
            name: mean_estimate(values, **options) for name, values in self.of_clips.items()
        }

    def over(self, other: "ClipFeatures", **options) -> dict[str, Estimate]:
        """The same less the other's, for two sets of clips that belong to the same references."""
        x, y, reference = self.embedded, other.embedded, self.reference
        distance = bootstrap(
            lambda i: frechet_distance(x[i], reference[i]) - frechet_distance(y[i], reference[i]),
            len(x),
            **options,
        )
        return {"fad": distance} | {
            name: mean_estimate(values - other.of_clips[name], **options)
            for name, values in self.of_clips.items()
        }

    def _distance(self, **options) -> Estimate:
        x, y = self.embedded, self.reference
        if self.paired:
            return bootstrap(lambda i: frechet_distance(x[i], y[i]), len(x), **options)
        return bootstrap(lambda i, j: frechet_distance(x[i], y[j]), len(x), len(y), **options)


def mean_estimate(values: np.ndarray, **options) -> Estimate:
    """The mean of (n,), with its bootstrap interval."""
    return bootstrap(lambda index: float(values[index].mean()), len(values), **options)


def share_estimate(count: int, total: int, z: float = 1.96) -> Estimate:
    """`count` of `total` as a share, with the interval of Wilson (1927), which holds for few.

    Args:
        z: the normal quantile; 1.96 gives 95 %.
    """
    share, spread = count / total, z**2 / total
    centre = (share + spread / 2) / (1 + spread)
    reach = (spread * (share * (1 - share) + spread / 4)) ** 0.5 / (1 + spread)
    return Estimate(share, centre - reach, centre + reach)
