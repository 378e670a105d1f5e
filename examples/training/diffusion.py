"""The diffusion process of the bundled networks: noise schedule, training loss and a plain DDIM sampler.

Notation: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon, t in [0, T). Pictures are in [-1, 1].
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

NUM_TRAIN_TIMESTEPS = 1000
BETA_START = 1e-4
BETA_END = 2e-2

Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, t, y) -> epsilon and v, as dit.DiT.forward


class LinearSchedule(nn.Module):
    """DDPM's linear schedule (arXiv 2006.11239) and what the loss needs of it, as float32 tables [T]."""

    alpha_bar: Tensor
    log_sigma: Tensor
    epsilon_weight: Tensor
    log_beta: Tensor
    log_posterior_variance: Tensor
    mean_error_scale: Tensor

    def __init__(self):
        super().__init__()
        beta = torch.linspace(BETA_START, BETA_END, NUM_TRAIN_TIMESTEPS, dtype=torch.float64)
        alpha_bar = (1 - beta).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        snr = alpha_bar / (1 - alpha_bar)

        # At t = 0 the posterior variance is 0. The loss takes that of t = 1; no sampler adds noise in its last step.
        posterior_variance = beta * (1 - before) / (1 - alpha_bar)
        posterior_variance[0] = posterior_variance[1]
        # mean of q(x_{t-1} | x_t, x_0) minus the network's = sqrt(mean_error_scale) * (epsilon' - epsilon)
        mean_error_scale = (beta * before.sqrt() / (1 - alpha_bar)) ** 2 / snr

        # Two corrections to the plain epsilon-MSE. Below t = 130 it is scaled down as in min-SNR-5 (arXiv 2303.09556):
        # what is left of the noise there decides little that can be seen. Above, 1 / alpha_bar turns it into the MSE of
        # v, up to 5 times: at high noise epsilon is nearly x_t itself, and its MSE tiny exactly where class and
        # structure are decided.
        epsilon_weight = (5 / snr).clamp(max=1) * (1 / alpha_bar).clamp(max=5)

        for name, table in {
            "alpha_bar": alpha_bar,
            "log_sigma": -0.5 * snr.log(),
            "epsilon_weight": epsilon_weight,
            "log_beta": beta.log(),
            "log_posterior_variance": posterior_variance.log(),
            "mean_error_scale": mean_error_scale,
        }.items():
            self.register_buffer(name, table.float())

    def add_noise(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise

    def losses(self, network: Network, x_0: Tensor, t: Tensor, y: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The hybrid loss of learned-range variance (arXiv 2102.09672), and the unweighted epsilon-MSE; each [n].

        The variational term sees the predicted mean detached: it trains v, and leaves epsilon to its MSE.
        """
        epsilon, v = network(self.add_noise(x_0, t, noise), t, y).float().chunk(2, dim=1)
        squared_error = (epsilon - noise).square()
        mse = squared_error.mean(dim=(1, 2, 3))

        log_q = self.log_posterior_variance[t].view(-1, 1, 1, 1)
        log_p = log_q + (v + 1) / 2 * (self.log_beta[t].view(-1, 1, 1, 1) - log_q)
        mean_error = self.mean_error_scale[t].view(-1, 1, 1, 1) * squared_error.detach()
        divergence = 0.5 * (log_p - log_q + (log_q - log_p).exp() + mean_error * (-log_p).exp() - 1)
        # L_simple + 0.001 L_vlb; L_vlb is a sum over T = 1000 timesteps and this is one of them: the factors cancel.
        return self.epsilon_weight[t] * mse + divergence.mean(dim=(1, 2, 3)), mse

    def draw_timesteps(self, n: int, log_sigma_mean: float = -0.4, log_sigma_std: float = 1.2) -> Tensor:
        """n timesteps, int64 [n], stratified: half of them uniform, half log-normal in sigma (arXiv 2206.00364).

        The log-normal half is centred on t = 220, higher than EDM's, and so closer to where classes are decided.
        """
        device = self.log_sigma.device
        uniform = (torch.arange(n - n // 2, device=device) + torch.rand(n - n // 2, device=device)) / (n - n // 2)
        quantile = (torch.arange(n // 2, device=device) + torch.rand(n // 2, device=device)) / max(1, n // 2)
        log_sigma = log_sigma_mean + log_sigma_std * math.sqrt(2) * torch.erfinv(2 * quantile - 1)
        t = torch.cat([(uniform * NUM_TRAIN_TIMESTEPS).long(), torch.searchsorted(self.log_sigma, log_sigma)])
        return t.clamp(0, NUM_TRAIN_TIMESTEPS - 1)


@torch.no_grad()
def ddim(
    network: Network,
    schedule: LinearSchedule,
    x: Tensor,
    y: Tensor,
    null_class: int,
    steps: int = 50,
    guidance_scale: float = 1.5,
) -> Tensor:
    """Deterministic DDIM (arXiv 2010.02502) with classifier-free guidance, x_0 clipped to [-1, 1].

    x [n, 3, size, size]: pure noise; y [n]: classes. Returns x_0 [n, 3, size, size].
    """
    timesteps = torch.linspace(NUM_TRAIN_TIMESTEPS - 1, 0, steps).round().long().tolist()
    alpha_bars = schedule.alpha_bar.tolist()
    labels = torch.cat([y, torch.full_like(y, null_class)])
    for t, t_next in itertools.pairwise([*timesteps, -1]):
        output = network(torch.cat([x, x]), torch.full_like(labels, t), labels).float()
        conditional, unconditional = output[:, : x.shape[1]].chunk(2)
        epsilon = unconditional + guidance_scale * (conditional - unconditional)
        alpha_bar, alpha_bar_next = alpha_bars[t], alpha_bars[t_next] if t_next >= 0 else 1.0
        x_0 = ((x - math.sqrt(1 - alpha_bar) * epsilon) / math.sqrt(alpha_bar)).clamp(-1, 1)
        epsilon = (x - math.sqrt(alpha_bar) * x_0) / math.sqrt(1 - alpha_bar)
        x = math.sqrt(alpha_bar_next) * x_0 + math.sqrt(1 - alpha_bar_next) * epsilon
    return x
