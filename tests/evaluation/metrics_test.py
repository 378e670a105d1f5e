"""The distances that judge pictures, beside closed forms: metrics_test.py EVALUATION_FOLDER"""

import sys

import torch

sys.path.insert(0, sys.argv[1])
from metrics import FrechetDistance, PrecisionRecall  # noqa: E402

torch.manual_seed(0)


def standard(n: int, f: int) -> torch.Tensor:
    """Features whose sample mean is 0 and whose sample covariance is the identity."""
    x = torch.randn(n, f, dtype=torch.float64)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).mT


# Covariances that commute: the distance is that of the means and of the deviations.
a, b = standard(500, 7), standard(300, 7)
deviations_a, deviations_b = torch.rand(7) + 0.5, torch.rand(7) + 0.5
means_a, means_b = torch.randn(7), torch.randn(7)
got = FrechetDistance(a * deviations_a + means_a)(b * deviations_b + means_b)
expected = ((means_a - means_b).square() + (deviations_a - deviations_b).square()).double().sum().item()
assert abs(got - expected) < 1e-6 * expected, (got, expected)  # the deviations are float32

# Covariances that do not commute: tr (A B)^(1/2) of 2x2 matrices is (tr AB + 2 det(AB)^(1/2))^(1/2).
mix_a, mix_b = torch.tensor([[1.0, 0.3], [0.0, 2.0]]).double(), torch.tensor([[0.5, -0.4], [0.9, 1.0]]).double()
covariance_a, covariance_b = mix_a.T @ mix_a, mix_b.T @ mix_b
product = covariance_a @ covariance_b
cross = (product.trace() + 2 * product.det().sqrt()).sqrt()
expected = (covariance_a.trace() + covariance_b.trace() - 2 * cross).item()
a, b = standard(400, 2) @ mix_a, standard(200, 2) @ mix_b
assert abs(FrechetDistance(a)(b) - expected) < 1e-12, (FrechetDistance(a)(b), expected)
assert abs(FrechetDistance(a)(a)) < 1e-12

# Precision and recall, beside their definition, in pieces smaller than the sets.
real, generated = torch.randn(60, 3), torch.randn(45, 3) * 1.5 + 1


def inside(point: torch.Tensor, others: torch.Tensor, k: int) -> bool:
    for other in others:
        radius = sorted((other - each).norm().item() for each in others if each is not other)[k]  # [0] is itself
        if (point - other).norm().item() <= radius:
            return True
    return False


for k in (1, 3):
    precision, recall = PrecisionRecall(real, k=k, rows=17)(generated)
    expected = sum(inside(point, real, k) for point in generated) / len(generated)
    assert 0 < expected < 1 and precision == expected, (precision, expected)
    expected = sum(inside(point, generated, k) for point in real) / len(real)
    assert 0 < expected < 1 and recall == expected, (recall, expected)

assert PrecisionRecall(real)(real) == (1, 1)
assert PrecisionRecall(real)(real + 100) == (0, 0)
two = torch.cat([torch.randn(50, 3), torch.randn(50, 3) + 100])
assert PrecisionRecall(two)(two[:50] + 1e-3) == (1, 0.5), "half of what is real is never drawn"
try:
    PrecisionRecall(real[:3])
    raise AssertionError("three points have no third nearest other")
except ValueError as error:
    assert "more than 3 points, got 3" in str(error)

# What is not a number is refused: beside nan everything is outside, and agrees.
for bad in (float("nan"), float("inf"), -float("inf")):
    spoilt = real.clone()
    spoilt[7, 1] = bad
    for judge in (FrechetDistance, PrecisionRecall):
        for attempt in (lambda: judge(spoilt), lambda: judge(real)(spoilt)):  # noqa: B023
            try:
                attempt()
                raise AssertionError(f"{bad} must be refused by {judge.__name__}")
            except ValueError as error:
                assert "features must be finite, got nan or infinity" in str(error)
try:
    FrechetDistance(real)(real[:1])
    raise AssertionError("one point has no covariance")
except ValueError as error:
    assert "2 points or more, got 1" in str(error)
print("the metrics are what their papers define")
