"""How far generated pictures are from real ones, in the features of any network."""

import torch
from torch import Tensor


def require_finite(features: Tensor) -> Tensor:
    """Comparisons with nan are false: it would lie outside of everything, without a word."""
    if not features.isfinite().all():
        raise ValueError("features must be finite, got nan or infinity")
    return features


class Statistics:
    """Mean and covariance of features [n, f], in float64 on their device."""

    def __init__(self, features: Tensor):
        # Sums of products of 50,000 features in float32 would be off by more than what pairs of samplers differ.
        if len(features) < 2:
            raise ValueError(f"a covariance needs 2 points or more, got {len(features)}")
        features = require_finite(features).double()
        self.mean = features.mean(0)
        self.covariance = features.T.cov()


def square_root(matrix: Tensor) -> Tensor:
    """Of a symmetric positive semi-definite matrix [f, f]."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


class FrechetDistance:
    """The squared Frechet distance between Gaussians of two sets' mean and covariance (arXiv 1706.08500, equation 6).

    |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)); called FID where the features are those of one Inception network.
    """

    def __init__(self, real: Tensor):
        """@real: features [n, f]."""
        self.real = Statistics(real)
        self.root = square_root(self.real.covariance)

    def __call__(self, generated: Tensor) -> float:
        """@generated: features [m, f]. Small m makes the distance larger: compare equal numbers only."""
        other = Statistics(generated)
        # tr (C_1 C_2)^(1/2) through the symmetric C_1^(1/2) C_2 C_1^(1/2), which has the same eigenvalues.
        cross = torch.linalg.eigvalsh(self.root @ other.covariance @ self.root).clamp_min(0).sqrt().sum()
        traces = self.real.covariance.trace() + other.covariance.trace()
        return ((self.real.mean - other.mean).square().sum() + traces - 2 * cross).item()


class PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991, section 2), k = 3 unless told otherwise.

    Each set's manifold is the union of balls around its points, as large as the distance to the k-th nearest point of
    the same set. Precision is the share of generated points inside the real manifold, recall the share of real points
    inside the generated one.
    """

    def __init__(self, real: Tensor, k: int = 3, rows: int = 4096):
        """@real: features [n, f]; distances are held for so many @rows at a time."""
        self.real, self.k, self.rows = real, k, rows
        self.radii = self.radii_of(real)

    def radii_of(self, points: Tensor) -> Tensor:
        """The distance of each point to its k-th nearest other one, [n]."""
        require_finite(points)
        if len(points) <= self.k:
            raise ValueError(f"precision and recall need more than {self.k} points, got {len(points)}")
        # The nearest of all is the point itself.
        return torch.cat(
            [distances(piece, points).kthvalue(self.k + 1, dim=1).values for piece in points.split(self.rows)]
        )

    def __call__(self, generated: Tensor) -> tuple[float, float]:
        """@generated: features [m, f]. Returns precision and recall."""
        radii = self.radii_of(generated)
        inside_real, covered = [], torch.zeros(len(self.real), dtype=torch.bool, device=self.real.device)
        for piece, piece_radii in zip(generated.split(self.rows), radii.split(self.rows), strict=True):
            between = distances(piece, self.real)
            inside_real.append((between <= self.radii).any(1))
            covered |= (between <= piece_radii[:, None]).any(0)
        return torch.cat(inside_real).double().mean().item(), covered.double().mean().item()


def distances(a: Tensor, b: Tensor) -> Tensor:
    """[n, f], [m, f] -> [n, m]."""
    return torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")
