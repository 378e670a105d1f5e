"""Muon (Jordan et al., 2024): momentum, then the nearest orthogonal matrix, as the update of hidden weight matrices.

The same arithmetic as `torch.optim.Muon`, but matrices of one shape are orthogonalised together: a DiT has some
seventy, each too small to occupy a GPU by itself.
"""

import math

import torch
from torch import Tensor, nn


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Pushes every singular value of each matrix [n, rows, columns], rows <= columns, to about 1; bfloat16.

    A Newton-Schulz iteration with the coefficients of https://kellerjordan.github.io/posts/muon/: fast, and not exact;
    the singular values end between 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


class Muon:
    """Optimises (parameter, parts) pairs: a weight [rows, columns] counts as `parts` matrices stacked along its rows.

    The attention's qkv weight is three matrices, whose scales have nothing to do with each other.
    """

    def __init__(
        self, weights: list[tuple[nn.Parameter, int]], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ):
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.buckets: dict[tuple[int, int], list[tuple[nn.Parameter, int]]] = {}
        for parameter, parts in weights:
            rows, columns = parameter.shape[0] // parts, parameter.shape[1]
            self.buckets.setdefault((rows, columns), []).append((parameter, parts))
        self.momenta = {
            shape: torch.zeros(sum(parts for _, parts in bucket), *shape, device=bucket[0][0].device)
            for shape, bucket in self.buckets.items()
        }

    @torch.no_grad()
    def step(self, skip: Tensor) -> None:
        """One update; where `skip` (bool, on the device) is true, the gradients count as zero and the weights stay."""
        # Products and masks, not torch.where with a number: that copies the number to the device and waits for it.
        lr = ~skip * self.lr
        for (rows, columns), bucket in self.buckets.items():
            gradients = torch.cat([parameter.grad.view(parts, rows, columns) for parameter, parts in bucket])
            gradients.masked_fill_(skip, 0.0)
            momentum = self.momenta[rows, columns]
            momentum.lerp_(gradients, 1 - self.momentum)
            update = gradients.lerp_(momentum, self.momentum)  # Nesterov
            update = orthogonalize(update) if rows <= columns else orthogonalize(update.mT).mT
            update = update.float() * (lr * math.sqrt(max(1.0, rows / columns)))

            parameters = [parameter for parameter, _ in bucket]
            pieces = update.split([parts for _, parts in bucket])
            updates = [piece.reshape_as(p) for piece, p in zip(pieces, parameters, strict=True)]
            torch._foreach_mul_(parameters, 1 - lr * self.weight_decay)
            torch._foreach_sub_(parameters, updates)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{rows}x{columns}": momentum for (rows, columns), momentum in self.momenta.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for (rows, columns), momentum in self.momenta.items():
            momentum.copy_(state[f"{rows}x{columns}"])
