"""Image metrics: closed forms, brute force and independent libraries."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.stats import entropy
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.metrics import (
    ClassifierExtractor,
    Reference,
    Statistics,
    ambiguous,
    class_histogram,
    diversity,
    features,
    frechet_distance,
    image_metrics,
    inception_score,
    kernel_inception_distance,
    nearest_neighbours,
    precision_recall,
    total_variation,
)
from sigdeg.metrics.images import MINIMUM, USUAL
from sigdeg.networks import Classifier


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(n: int, seed: int = 0) -> Tensor:
    """Grey images of 28 × 28 in [-1, 1]: smooth blobs, not noise alone."""
    coarse = normal(n, 1, 4, 4, seed=seed).float()
    return torch.nn.functional.interpolate(coarse, (28, 28), mode="bilinear").tanh()


def exact(n: int, mean: Tensor, covariance: Tensor, seed: int = 0) -> Tensor:
    """n vectors with exactly this mean and this covariance (divisor n - 1)."""
    z = normal(n, len(mean), seed=seed)
    z -= z.mean(0)
    white = torch.linalg.qr(z).Q * math.sqrt(n - 1)
    return mean + white @ torch.linalg.cholesky(covariance).T


def covariance(d: int, seed: int) -> Tensor:
    x = normal(d, 2 * d, seed=seed)
    return x @ x.T / d


@pytest.fixture(scope="module")
def network() -> Classifier:
    torch.manual_seed(0)
    return Classifier(features=16, width=8)


def test_frechet_of_diagonal_gaussians_is_the_closed_form() -> None:
    p, q = torch.rand(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    mean = torch.arange(5).double() / 4
    value = frechet_distance(exact(50, mean * 0, p.diag()), exact(70, mean, q.diag(), seed=1))
    assert value == pytest.approx(float((mean**2 + (p.sqrt() - q.sqrt()) ** 2).sum()), rel=1e-10)


def test_frechet_of_correlated_gaussians_is_the_closed_form() -> None:
    # Commuting covariances: in the shared basis the Gaussians are diagonal.
    basis = torch.linalg.qr(normal(4, 4, seed=3)).Q
    p, q = torch.tensor([[4.0, 1.0, 9.0, 0.25], [1.0, 4.0, 1.0, 1.0]]).double()
    a, b = (exact(40, basis[0] * k, basis @ v.diag() @ basis.T) for k, v in ((0, p), (2, q)))
    assert frechet_distance(a, b) == pytest.approx(4 + 1 + 1 + 4 + 0.25, rel=1e-10)


def test_frechet_agrees_with_scipy_sqrtm_and_numpy() -> None:
    a = exact(60, normal(8), covariance(8, seed=1)) + 100  # a mean far off loses no digits
    b = exact(45, normal(8, seed=4), covariance(8, seed=2)) + 100
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    shift = a.numpy().mean(0) - b.numpy().mean(0)
    expected = shift @ shift + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert expected > 1
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(Statistics.of(a), b) == frechet_distance(a, Statistics.of(b))


def test_frechet_of_equal_and_of_degenerate_sets() -> None:
    x = normal(100, 6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)
    x[:, 3:] = 0  # features that are never active
    assert frechet_distance(x, x + 0.5) == pytest.approx(6 * 0.25, rel=1e-6)
    few = normal(4, 6)  # fewer vectors than dimensions
    assert frechet_distance(few, few + 0.5) == pytest.approx(6 * 0.25, rel=1e-6)


def test_statistics() -> None:
    x = normal(20, 3)
    s = Statistics.of(x.float())
    np.testing.assert_allclose(s.covariance, np.cov(x.T), rtol=1e-5)
    np.testing.assert_allclose(s.mean, x.mean(0), atol=1e-6)
    assert (s.n, s.mean.dtype) == (20, torch.float64)
    assert Statistics.of(x[:, :1]).covariance.shape == (1, 1)


def test_weighted_statistics_are_those_of_repeated_vectors() -> None:
    x, times = normal(20, 3), torch.arange(20) % 3
    s, repeated = Statistics.of(x, times), x.repeat_interleave(times, 0)
    torch.testing.assert_close(s.mean, repeated.double().mean(0))
    np.testing.assert_allclose(s.covariance, np.cov(x.T, aweights=times), rtol=1e-9)
    alike, plain = Statistics.of(x, torch.full((20,), 7.0)), Statistics.of(x)
    torch.testing.assert_close(alike.mean, plain.mean)
    torch.testing.assert_close(alike.covariance, plain.covariance)
    for bad in (torch.ones(19), -torch.ones(20), torch.zeros(20), torch.full((20,), torch.nan)):
        with pytest.raises(SigdegError, match="expected 20 weights of at least 0 and not all 0"):
            Statistics.of(x, bad)


@pytest.mark.parametrize("n", [5, 150])  # one block, and several
def test_kid_is_the_double_loop(n: int) -> None:
    a, b = normal(n, 3), normal(n + 2, 3, seed=1) + 0.3

    def k(x: Tensor, y: Tensor) -> float:
        return float(x @ y / 3 + 1) ** 3

    def within(v: Tensor) -> float:
        pairs = [k(v[i], v[j]) for i in range(len(v)) for j in range(len(v)) if i != j]
        return sum(pairs) / len(pairs)

    across = [k(x, y) for x in a for y in b]
    expected = within(a) + within(b) - 2 * sum(across) / len(across)
    assert kernel_inception_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_kid_is_unbiased() -> None:
    # 200 estimates between equal laws: the mean is 0 within 4 standard errors, where the biased
    # estimator, pairs of a vector with itself included, has a mean far above.
    values = [
        kernel_inception_distance(normal(20, 4, seed=2 * i), normal(20, 4, seed=2 * i + 1))
        for i in range(200)
    ]
    error = np.std(values) / math.sqrt(len(values))
    bias = 2 / 20 * float((normal(9999, 4).square().mean(1) + 1).pow(3).mean() - 2)
    assert abs(np.mean(values)) < 4 * error < bias / 3


def brute_force(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    def share(points: list[list[float]], centres: list[list[float]]) -> float:
        radii = []
        for i, c in enumerate(centres):
            others = [math.dist(c, o) for j, o in enumerate(centres) if j != i]
            radii.append(sorted(others)[k - 1])
        inside = [
            any(math.dist(p, c) <= r for c, r in zip(centres, radii, strict=True)) for p in points
        ]
        return sum(inside) / len(points)

    return share(fake.tolist(), real.tolist()), share(real.tolist(), fake.tolist())


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_the_brute_force(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK", 7)  # several blocks, the last not full
    real, fake = normal(25, 3), 1.2 * normal(20, 3, seed=1) + 1.1
    expected = brute_force(real, fake, k)
    assert 0 < min(expected) < max(expected) < 1
    assert expected[0] != expected[1]
    assert precision_recall(real, fake, k) == pytest.approx(expected)


def test_precision_and_recall_by_hand() -> None:
    x = normal(30, 4)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)
    # Fakes that all are one real vector: perfect, but for a share of 1/30 of the real ones.
    precision, recall = precision_recall(x + 1e3, x[:1].expand(9, 4) + 1e3)
    assert (precision, recall) == (1, pytest.approx(1 / 30))
    # On the line with k = 1: the balls of real 0, 1, 5, 6 are [-1, 2] and [4, 7], of fake 2, 4,
    # 10, 14 they are [0, 6], [6, 14] and [10, 18].
    real, fake = (torch.tensor(v)[:, None] for v in ([0.0, 1, 5, 6], [2.0, 4, 10, 14]))
    assert precision_recall(real, fake, 1) == (2 / 4, 1)
    assert precision_recall(real, fake + 10, 1) == (0, 0)


def test_the_limit_takes_the_same_vectors_each_time() -> None:
    x, y = normal(300, 2), normal(300, 2, seed=1)
    assert precision_recall(x, y, limit=100) == precision_recall(x, y, limit=100)
    assert precision_recall(x, y, limit=100) != precision_recall(x, y)
    # Sorted data: the subset is not its beginning.
    assert diversity(x.sort(0).values, limit=150) == pytest.approx(diversity(x), rel=0.2)


def test_diversity_is_the_mean_distance() -> None:
    x = normal(150, 3)
    assert diversity(x) == pytest.approx(float(torch.pdist(x).mean()), rel=1e-10)
    assert diversity(x[:1].expand(5, 3)) == 0
    # Two independent draws of N(0, 1) differ by N(0, 2): the mean distance is 2 / sqrt(pi).
    assert diversity(normal(5000, 1)) == pytest.approx(2 / math.sqrt(math.pi), rel=0.03)


def test_nearest_neighbours_find_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    training, samples = images(200, seed=1), images(90)
    samples[17] = training[140]
    found = nearest_neighbours(samples, training)
    expected = torch.cdist(samples.flatten(1).double(), training.flatten(1).double()).amin(1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    assert found[17] == 0
    assert (found.argmin(), (found < 1e-3).sum()) == (17, 1)


def test_inception_score_of_known_laws() -> None:
    one_hot = torch.eye(10).repeat(20, 1)
    assert inception_score(one_hot) == pytest.approx(10)
    assert inception_score(torch.full((40, 10), 0.1)) == pytest.approx(1)
    assert inception_score(one_hot[:1].repeat(40, 1)) == pytest.approx(1)
    # Half the images of class 0 for sure, half undecided between two classes.
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).repeat(10, 1)
    divergence = (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2
    assert inception_score(p, splits=2) == pytest.approx(math.exp(divergence))


def test_inception_score_agrees_with_scipy() -> None:
    p = (2 * normal(60, 5)).softmax(1)
    expected = math.exp(entropy(p, p.mean(0, keepdim=True), axis=1).mean())
    assert expected > 1.5
    assert inception_score(p, splits=1) == pytest.approx(expected, rel=1e-12)


def test_histogram_and_total_variation_by_hand() -> None:
    p = class_histogram(torch.tensor([0, 2, 2, 3]), 5)
    assert p.tolist() == [0.25, 0, 0.5, 0.25, 0]
    q = torch.tensor([0.25, 0.25, 0.25, 0.0, 0.25])
    assert total_variation(p, q) == 0.5
    assert total_variation(p, p) == 0
    assert total_variation(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 1


def test_extractor_gives_the_networks_features_for_any_batch(network: Classifier) -> None:
    x = images(11)
    network.scale.fill_(2.0)
    found = ClassifierExtractor(network, batch=4).extract(x)
    for batch in (1, 11, 64):
        other = ClassifierExtractor(network, batch=batch).extract(x)
        torch.testing.assert_close(other, found, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        expected, probabilities = network.features(x), network(x).softmax(1)
    network.scale.fill_(1.0)
    torch.testing.assert_close(found.features, expected.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.probabilities, probabilities.double(), rtol=1e-5, atol=1e-6)
    assert found.features.std(0).max() > 1e-2
    assert not found.features.requires_grad
    extractor = ClassifierExtractor(network)
    assert torch.equal(extractor.features(x), extractor.extract(x).features)
    assert torch.equal(extractor.probabilities(x), extractor.extract(x).probabilities)


def test_digest_follows_the_weights(network: Classifier) -> None:
    digest = ClassifierExtractor(network).digest
    other = Classifier(features=16, width=8)
    assert ClassifierExtractor(other).digest != digest
    other.load_state_dict(network.state_dict())
    assert ClassifierExtractor(other).digest == digest
    assert len(bytes.fromhex(digest)) == 32
    other.scale += 1e-6
    assert ClassifierExtractor(other).digest != digest


def test_extractor_refuses_what_are_no_images(network: Classifier) -> None:
    extractor = ClassifierExtractor(network)
    with pytest.raises(SigdegError, match=r"lie in \[-1, 1\], got values from 0 to 255"):
        extractor.features(torch.tensor([0, 255], dtype=torch.uint8).repeat(392).view(1, 1, 28, 28))
    with pytest.raises(SigdegError, match="got values from nan"):
        extractor.features(torch.full((1, 1, 28, 28), torch.nan))
    with pytest.raises(SigdegError, match=r"shape \(n, c, h, w\), got \(28, 28\)"):
        extractor.features(torch.zeros(28, 28))
    with pytest.raises(SigdegError, match=r"shape \(n, c, h, w\), got \(0, 1, 28, 28\)"):
        extractor.features(torch.zeros(0, 1, 28, 28))
    with pytest.raises(SigdegError, match="takes images of shape"):
        extractor.features(torch.zeros(1, 3, 28, 28))
    with pytest.raises(SigdegError, match="at least 1 image"):
        ClassifierExtractor(network, batch=0)


def test_image_metrics(network: Classifier) -> None:
    extractor = ClassifierExtractor(network)
    real, fake, training = images(MINIMUM), images(MINIMUM, seed=1), images(100, seed=2)
    reference = Reference.from_images(real, extractor)
    with pytest.warns(UserWarning, match=f"{MINIMUM} .* images: with fewer than {USUAL}"):
        values = image_metrics(fake, reference, extractor, training)
    x, y = extractor.extract(fake), extractor.extract(real)
    precision, recall = precision_recall(y.features, x.features)
    assert values == {
        "fid": frechet_distance(x.features, y.features),
        "inception_score": inception_score(x.probabilities),
        "kid": kernel_inception_distance(x.features, y.features),
        "precision": precision,
        "recall": recall,
        "diversity": diversity(x.features),
        "nearest": float(nearest_neighbours(fake, training).mean()),
    }
    assert reference.describe() == {"n": MINIMUM, "extractor": "mnist", "digest": extractor.digest}
    with pytest.warns(UserWarning, match="biased upwards"):
        inverted = image_metrics(-(fake.abs()), reference, extractor)
    assert "nearest" not in inverted
    assert inverted["fid"] > 10 * values["fid"]
    assert inverted["kid"] > 10 * abs(values["kid"])
    assert inverted["precision"] < precision


def test_image_metrics_warn_below_the_usual_number_only(
    network: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (MINIMUM, USUAL) == (2_048, 10_000)
    extractor = ClassifierExtractor(network)
    real = images(MINIMUM)
    reference = Reference.from_images(real, extractor)
    monkeypatch.setattr("sigdeg.metrics.images.USUAL", MINIMUM)
    # A warning is an error in the tests.
    assert image_metrics(real, reference, extractor)["fid"] == pytest.approx(0, abs=1e-8)


def test_image_metrics_refuse_few_images_and_another_extractor(network: Classifier) -> None:
    extractor = ClassifierExtractor(network)
    few = Reference.from_images(images(3), extractor)
    enough = Reference(normal(USUAL, 16), torch.ones(USUAL, 1), "mnist", extractor.digest)
    with pytest.raises(SigdegError, match=f"at least {MINIMUM} generated images, got 2047"):
        image_metrics(torch.zeros(MINIMUM - 1, 1, 28, 28), enough, extractor)
    with pytest.raises(SigdegError, match=f"at least {MINIMUM} real images, got 3"):
        image_metrics(torch.zeros(1, 1, 28, 28).expand(USUAL, -1, -1, -1), few, extractor)
    other = ClassifierExtractor(Classifier(features=16, width=8))
    with pytest.raises(SigdegError, match=r"reference is of the extractor mnist \w{8}, not of"):
        image_metrics(torch.zeros(1, 1, 28, 28), few, other)


def test_bad_features_are_refused() -> None:
    x = normal(9, 3)
    for metric in (frechet_distance, kernel_inception_distance, precision_recall):
        with pytest.raises(SigdegError, match="features have 3 dimensions and 2"):
            metric(x, x[:, :2])
        with pytest.raises(SigdegError, match=r"shape \(n, d\), n at least \d, got \(1, 3\)"):
            metric(x, x[:1])
        with pytest.raises(SigdegError, match="must be finite"):
            metric(x / 0, x)
    with pytest.raises(SigdegError, match=r"n at least 4, got \(3, 3\)"):
        precision_recall(x, x[:3])
    for k, limit in ((0, 9), (3, 3)):
        with pytest.raises(SigdegError, match=f"below the limit {limit}, got {k}"):
            precision_recall(x, x, k, limit)
    with pytest.raises(SigdegError, match=r"n at least 2, got \(1, 3\)"):
        diversity(x[:1])
    with pytest.raises(SigdegError, match="all but the first dimension must agree"):
        nearest_neighbours(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 2, 8))


def test_ambiguous_images_are_those_of_no_probable_class() -> None:
    p = torch.tensor([[0.95, 0.05], [0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], dtype=torch.float64)
    assert ambiguous(p) == 0.5
    assert ambiguous(p, 0.7) == 0.25
    assert ambiguous(p, 0.4) == 0


def test_bad_probabilities_and_labels_are_refused() -> None:
    with pytest.raises(SigdegError, match=r"of shape \(n, classes\), got \(2,\)"):
        ambiguous(torch.ones(2))
    with pytest.raises(SigdegError, match="at least 0 and sum to 1"):
        ambiguous(torch.tensor([[0.5, 0.6]]))
    with pytest.raises(SigdegError, match=r"n at least the 10 splits, got \(9, 2\)"):
        inception_score(torch.full((9, 2), 0.5))
    for bad in ([[0.5, 0.6]], [[1.5, -0.5]], [[torch.nan, 1.0]]):
        with pytest.raises(SigdegError, match="at least 0 and sum to 1"):
            inception_score(torch.tensor(bad), splits=1)
    with pytest.raises(SigdegError, match="sum to 1"):
        total_variation(torch.tensor([0.5, 0.5]), torch.tensor([3.0, 4.0]))
    with pytest.raises(SigdegError, match="two laws of one shape"):
        total_variation(torch.tensor([0.5, 0.5]), torch.ones(1))
    with pytest.raises(SigdegError, match="labels of 3 classes lie in 0 to 2, got 0 to 3"):
        class_histogram(torch.tensor([0, 3]), 3)
    for bad in (torch.tensor([0.0, 1.0]), torch.zeros(0, dtype=torch.long), torch.eye(2).long()):
        with pytest.raises(SigdegError, match="expected whole numbers"):
            class_histogram(bad, 3)
