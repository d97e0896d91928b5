"""What scripts/metrics.py computes, against closed forms, scipy's matrix root, and known orders."""

import math

import numpy as np
import pytest

from scripts.evaluate.metrics import (
    LEAST_PROBABILITY,
    bootstrap,
    cosine_similarities,
    frechet_distance,
    kl_divergences,
    mean_estimate,
    share_estimate,
)

EXACT = 1e-9  # float64, distances of about 1
ROOT = 1e-6  # scipy's root of a product of covariances, which loses half of the digits


def exact_set(mean, covariance, count: int = 200) -> np.ndarray:
    """Points with exactly this mean and covariance."""
    width = len(mean)
    points = np.random.default_rng(0).standard_normal((count, width))
    points -= points.mean(0)
    points = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T)).T)
    return mean + points @ np.linalg.cholesky(np.asarray(covariance, float)).T


def random_set(seed: int, count: int, width: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((count, width)) @ random.standard_normal((width, width))


def test_gaussians_with_known_moments():
    x = exact_set([1.0, 2.0, 3.0], np.diag([4.0, 1.0, 9.0]))
    y = exact_set([0.0, 2.0, 5.0], np.diag([1.0, 1.0, 16.0]))
    # Commuting covariances: the sum of (standard deviation - standard deviation)^2.
    assert frechet_distance(x, y) == pytest.approx(1 + 4 + 1 + 0 + 1, abs=EXACT)


def test_gaussians_in_a_plane():
    """tr of the root of a 2 x 2 product P: sqrt(tr P + 2 sqrt(det P))."""
    s, t = np.array([[2.0, 0.8], [0.8, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    product = s @ t
    root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    expected = np.trace(s) + np.trace(t) - 2 * root
    found = frechet_distance(exact_set([0.0, 0.0], s), exact_set([0.0, 0.0], t))
    assert found == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("count,width", [(500, 8), (64, 64), (10, 40)])
def test_a_set_has_no_distance_from_itself(count, width):
    x = random_set(1, count, width)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=EXACT * np.square(x).sum())


@pytest.mark.parametrize("n,m,width", [(300, 200, 8), (100, 80, 32)])
def test_against_scipys_matrix_root(n, m, width):
    linalg = pytest.importorskip("scipy.linalg")
    x, y = random_set(1, n, width), random_set(2, m, width) + 1
    s, t = np.cov(x.T), np.cov(y.T)
    shift = x.mean(0) - y.mean(0)
    expected = shift @ shift + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=ROOT)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=ROOT)


def test_more_noise_is_farther():
    x, noise = random_set(1, 400, 16), np.random.default_rng(3).standard_normal((400, 16))
    distances = [frechet_distance(x, x + level * noise) for level in (0.0, 0.5, 1.0, 2.0)]
    assert distances == sorted(distances) and distances[1] > 0.1


@pytest.mark.parametrize("x", [np.ones((1, 3)), np.ones(3), np.full((4, 3), np.nan)])
def test_sets_without_a_gaussian_are_refused(x):
    with pytest.raises(ValueError, match="two or more finite"):
        frechet_distance(x, np.ones((4, 3)))


def test_widths_must_agree():
    with pytest.raises(ValueError, match="3 and 4"):
        frechet_distance(np.ones((4, 3)), np.ones((4, 4)))


def test_divergence_of_given_distributions():
    p, q = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75], [0.5, 0.5]])
    expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), math.log(2)]
    rounding = 20 * LEAST_PROBABILITY  # of one class: its share times a logarithm up to 13.8
    assert kl_divergences(p, q) == pytest.approx(expected, abs=rounding)
    assert kl_divergences(p, p) == pytest.approx([0, 0], abs=EXACT)


def test_a_missed_class_costs_a_finite_amount():
    wrong = kl_divergences(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    assert wrong == pytest.approx([-math.log(LEAST_PROBABILITY)], rel=1e-4)


def test_similarity_is_the_cosine():
    text, audio = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[2.0, 0.0], [-4.0, 3.0]])
    assert cosine_similarities(text, audio) == pytest.approx([1, 0])


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).standard_normal(400)
    found = mean_estimate(values, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (found.value - half, found.value + half), abs=0.05 * half
    )


def test_interval_of_a_distance_covers_the_truth():
    """Two Gaussians at a known distance, many times: 95 % intervals hold what an experiment of the
    same size gives on average.
    """
    random = np.random.default_rng(1)
    trials = []
    for trial in range(60):
        x, y = random.standard_normal((100, 4)), 1 + random.standard_normal((100, 4))
        trials.append(
            bootstrap(
                lambda i, j, x=x, y=y: frechet_distance(x[i], y[j]),
                100,
                100,
                resamples=100,
                seed=trial,
            )
        )
    mean = np.mean([found.value for found in trials])
    covered = np.mean([found.low <= mean <= found.high for found in trials])
    assert covered >= 0.85  # of 60: below this with probability 0.003 if it is 0.95


@pytest.mark.parametrize(("count", "total"), [(0, 60), (1, 7), (30, 60), (60, 60)])
def test_the_interval_of_a_share_is_wilsons(count, total):
    scipy = pytest.importorskip("scipy.stats")
    expected = scipy.binomtest(count, total).proportion_ci(0.95, method="wilson")
    found = share_estimate(count, total)
    assert found.value == count / total
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-5)
