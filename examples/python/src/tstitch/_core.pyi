"""The C++ half of tstitch. What `tstitch` exports of it is public, the rest is private."""

import builtins
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

version: str
with_cuda: bool
backends: list[str]
routings: list[dict[str, str]]
spacings: list[dict[str, str]]
update_rules: list[dict[str, Any]]
profiles: list[tuple[str, str]]
presets: list[tuple[str, str]]

def diagnostics() -> list[str]:
    """Every fallback since the process began, a sentence each; empty where all went as intended."""

class NoiseLevel:
    """How much picture and how much noise x holds: x = alpha x_0 + sigma noise."""

    alpha: float
    sigma: float
    @property
    def log_snr_half(self) -> float:
        """log(alpha / sigma), lambda of arXiv 2206.00927."""
    def __init__(self, alpha: float, sigma: float) -> None: ...

class Step:
    """All that a routing rule may know of a step."""

    #: 0 for the noisiest step.
    index: int
    #: Steps in the whole plan.
    count: int
    #: Training timestep, fractional under some spacings.
    t: float
    #: The timestep that the step leads to; 0 at the clean picture.
    t_to: float
    #: Of x before the step.
    from_level: NoiseLevel
    #: Of x after it.
    to_level: NoiseLevel
    def __init__(
        self, index: int, count: int, t: float, from_level: NoiseLevel, to_level: NoiseLevel, t_to: float
    ) -> None: ...

class NoiseSchedule:
    """The noise schedule that a network was trained with. t is in [0, noisiest]."""

    @staticmethod
    def linear(num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """beta rises linearly (arXiv 2006.11239); the defaults are those of DDPM and DiT."""
    @staticmethod
    def scaled_linear(
        num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> NoiseSchedule:
        """sqrt(beta) rises linearly; the defaults are those of Stable Diffusion."""
    @staticmethod
    def cosine(num_train_timesteps: int = 1000) -> NoiseSchedule:
        """alphas_cumprod follows a squared cosine (arXiv 2102.09672, Eq. 17)."""
    @staticmethod
    def flow(num_train_timesteps: int = 1000, shift: float = 1.0) -> NoiseSchedule:
        """Flow matching (arXiv 2210.02747): alpha = 1 - t / T, sigma = t / T."""
    @staticmethod
    def from_betas(betas: Sequence[float], name: str = "from_betas") -> NoiseSchedule:
        """One a training timestep, each inside (0, 1)."""
    @staticmethod
    def from_alphas_cumprod(alphas_cumprod: Sequence[float], name: str = "from_alphas_cumprod") -> NoiseSchedule:
        """One a training timestep, inside (0, 1), strictly decreasing; the last may be 0."""
    def with_zero_terminal_snr(self) -> NoiseSchedule:
        """The last timestep moved to pure noise (arXiv 2305.08891, Algorithm 1)."""
    def in_float32(self) -> NoiseSchedule:
        """As programs have it that compute the table in float32."""
    @property
    def name(self) -> str: ...
    @property
    def num_train_timesteps(self) -> int: ...
    @property
    def is_flow(self) -> bool: ...
    @property
    def shift(self) -> float: ...
    @property
    def noisiest(self) -> int: ...
    @property
    def alphas_cumprod(self) -> list[float]: ...
    def at(self, t: float) -> NoiseLevel:
        """The level at any t, fractions too."""
    def timestep(self, log_snr_half: float) -> float:
        """The t of log(alpha / sigma)."""
    def level(self, log_snr_half: float) -> NoiseLevel: ...
    def distance(self, other: NoiseSchedule) -> float:
        """The largest difference of alphas_cumprod; infinite where the kind or the number of timesteps differs."""

class Spacing:
    """Which training timesteps the steps are at."""

    @staticmethod
    def by_name(text: str) -> Spacing: ...
    @staticmethod
    def leading(offset: int = 0, include_last: bool = True, round: bool = True) -> Spacing: ...
    @staticmethod
    def linspace(include_last: bool = True, round: bool = True) -> Spacing: ...
    @staticmethod
    def trailing() -> Spacing: ...
    @staticmethod
    def quadratic(include_last: bool = False, round: bool = False) -> Spacing: ...
    @staticmethod
    def beta(a: float = 0.6, b: float = 0.6, include_last: bool = False, round: bool = False) -> Spacing: ...
    @staticmethod
    def karras(rho: float = 7.0, include_last: bool = True, time: str = "exact") -> Spacing: ...
    @staticmethod
    def shifted(shift: float | None = None) -> Spacing: ...
    @staticmethod
    def flow_match_euler(shift: float | None = None) -> Spacing: ...
    @staticmethod
    def flow_unipc(shift: float | None = None) -> Spacing: ...
    @staticmethod
    def flow_dpm_solver(shift: float | None = None) -> Spacing: ...
    @staticmethod
    def sigmas(sigmas: Sequence[float], time: str = "exact") -> Spacing: ...
    @staticmethod
    def list(timesteps: Sequence[float]) -> Spacing: ...
    @property
    def name(self) -> str: ...
    def __call__(self, noise_schedule: NoiseSchedule, steps: int) -> builtins.list[float]: ...

class PlannedStep:
    """A step of a plan."""

    step: Step
    #: The index of the network that takes it.
    network: int
    #: The scale of guidance; 1 is off.
    guidance: float
    #: Evaluations that the update rule makes.
    evaluations: int
    guide_network: int
    guide_evaluations: int
    #: That a picture has in all computed evaluations.
    rows: int
    #: Whether the network's blocks do not run.
    @property
    def forecast(self) -> bool: ...
    @property
    def forecast_guidance(self) -> bool: ...

class Plan:
    sampler: str
    noise_schedule: str
    spacing: str
    steps: list[PlannedStep]
    def calls(self, networks: int) -> list[int]: ...
    def rows(self, networks: int) -> list[int]: ...
    def fingerprint(self) -> int: ...
    def timesteps_fingerprint(self) -> int: ...
    def __len__(self) -> int: ...

class Routing:
    @staticmethod
    def by_name(
        text: str, ratio: float, fractions: Sequence[float], num_train_timesteps: int, seed: int
    ) -> Routing: ...
    @staticmethod
    def table(networks: Sequence[int]) -> Routing: ...
    @staticmethod
    def single(network: int) -> Routing: ...
    @staticmethod
    def callable(callable: Callable[[Step], int]) -> Routing: ...
    def __call__(self, step: Step) -> int: ...

class Forecast:
    @staticmethod
    def by_name(text: str, first_network: int, warm_up: int, argument: str) -> Forecast: ...
    @staticmethod
    def table(steps: Sequence[bool], order: int, first_network: int) -> Forecast: ...
    @staticmethod
    def callable(callable: Callable[[Step, int, int], bool], order: int, first_network: int) -> Forecast: ...

class ConditionInfo:
    name: str
    shape: list[int]
    floating: bool
    def __init__(self, name: str, shape: Sequence[int], floating: bool = True) -> None: ...

class NetworkInfo:
    name: str
    prediction: str
    learned_variance: bool
    shape: list[int]
    num_classes: int
    null_class: int | None
    class_names: list[str]
    conditions: list[ConditionInfo]
    timestep_type: str
    decoding: str
    noise_schedule: NoiseSchedule | None
    latent_scale: float | list[float]
    latent_shift: float | list[float]
    guidance_scale: float
    profile: str
    steps: int
    training_data: str
    license: str
    @property
    def full_shape(self) -> list[int]: ...

class Network:
    info: NetworkInfo
    device: torch.device
    forecasts: bool
    def __init__(
        self, call: Callable[..., Any], info: NetworkInfo, device: torch.device, dtype: torch.dtype | None = None
    ) -> None: ...
    @staticmethod
    def in_parts(
        embed: Any, blocks: Any, head: Any, residual: bool, info: NetworkInfo, device: torch.device
    ) -> Network: ...
    def __call__(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        labels: torch.Tensor | None,
        conditions: Sequence[tuple[str, torch.Tensor]],
    ) -> torch.Tensor: ...

class ProjectedGuidance:
    """Adaptive projected guidance (arXiv 2410.02416, Algorithm 1)."""

    #: In [0, 1]: how much is left of the part that is parallel to the conditional prediction.
    eta: float
    #: Above 0: the largest norm of an update.
    norm_threshold: float
    #: Inside (-1, 1), below 0 in the paper.
    momentum: float
    def __init__(self, *, eta: float = 0.0, norm_threshold: float = ..., momentum: float = 0.0) -> None: ...

class Guidance:
    scale: list[float]
    def __init__(
        self,
        scale: Sequence[float],
        begin: float,
        end: float,
        channels: int,
        rescale: float,
        projected: ProjectedGuidance | None,
        guide_network: int | None,
        forecast: Forecast | None,
    ) -> None: ...

class Request:
    labels: list[int]
    count: int
    seed: int
    seeds: list[int]
    guidance: Guidance
    batch_size: int
    pad_batches: bool
    shape: list[int]
    initial_noise: Any
    initial_image: Any
    strength: float
    mask: Any
    def add_condition(self, name: str, value: torch.Tensor, null: torch.Tensor | None) -> None: ...
    def set_guidance_channels(self, channels: int) -> None: ...
    def set_torch_noise(self, seed: int, rows_per_image: int) -> None: ...
    def set_noise_source(self, callable: Callable[..., torch.Tensor]) -> None: ...
    def set_log_density(self, callable: Callable[..., torch.Tensor], scale: float, of: str) -> None: ...

class Past:
    """An earlier step, as multistep rules remember it."""

    step: Step
    network: int
    #: Before the step.
    x: torch.Tensor
    #: What was predicted in it first.
    x_0: torch.Tensor

class Prediction:
    """What a network says of x, all [n, C, ...]."""

    #: Thresholded.
    x_0: torch.Tensor
    unclipped_x_0: torch.Tensor
    #: v of a learned variance, or None.
    variance_fraction: torch.Tensor | None

class StepInput:
    """What an update rule is given, while it is called."""

    step: Step
    #: [n, C, ...] at step.from_level; not to be changed in place.
    x: torch.Tensor
    #: Oldest first, as many as the rule's `history`, fewer in the first steps.
    history: list[Past]
    noise_schedule: NoiseSchedule
    #: Kept from step to step of a run; a fork has its own. Replace what is in it, never change it in place.
    state: dict[str, Any]
    def predict(self) -> Prediction:
        """Asks the step's network at x, where most rules begin."""
    def denoise(self, x: torch.Tensor, t: float | None = None, level: NoiseLevel | None = None) -> Prediction:
        """Asks it at any x [n, C, ...]: at t and level, at the level of t, at the t of the level, or where the step begins."""
    def noise(self, draw: int = 0) -> torch.Tensor:
        """Standard normal noise like x; another draw gives independent noise, and the same one again is refused."""

class StepReport:
    """What a callback sees after each step."""

    step: Step
    network: int
    #: On the host; a GPU works behind it.
    seconds: float
    #: [n, C, ...] after the step.
    x: torch.Tensor
    #: [n, C, ...] predicted in it.
    x_0: torch.Tensor
    #: Position of the batch's first picture in the request.
    first: int
    #: Pictures in the batch; rows after these are padding.
    images: int
    #: Steps of the batch so far.
    done: int
    #: That the batch has in all.
    steps: int

class Thresholding:
    """Keeps predicted x_0 in the range that pictures have."""

    @staticmethod
    def automatic() -> Thresholding:
        """Clips to [-1, 1] where the networks make pixels."""
    @staticmethod
    def none() -> Thresholding: ...
    @staticmethod
    def clip(range: float = 1.0) -> Thresholding: ...
    @staticmethod
    def dynamic(quantile: float = 0.995, range: float = 1.0, most: float = 1e9) -> Thresholding:
        """arXiv 2205.11487, section 2.3."""

class UpdateRule:
    name: str
    history: int
    @staticmethod
    def by_name(name: str, options: Mapping[str, str]) -> UpdateRule: ...
    @staticmethod
    def callable(
        callable: Callable[[StepInput], torch.Tensor], name: str, history: int, evaluations: int | Callable[[Step], int]
    ) -> UpdateRule: ...

class Options:
    steps: int
    spacing: Spacing
    thresholding: Thresholding
    forecast: Forecast
    def set_final_sigma(self, name: str) -> None: ...
    def set_previous_timestep(self, name: str) -> None: ...
    def set_at_switch(self, name: str) -> None: ...

class Profile:
    noise_schedule: NoiseSchedule
    options: Options
    rule: UpdateRule
    guidance_channels: int
    routing: str
    rows_per_image: int
    @staticmethod
    def by_name(name: str, noise_schedule: NoiseSchedule, steps: int) -> Profile: ...

def preset_by_name(name: str, trained: NoiseSchedule) -> tuple[Profile, float, Forecast]: ...

class Trajectory:
    next: int
    count: int
    finished: bool
    level: NoiseLevel
    x: torch.Tensor
    x_0: torch.Tensor | None
    seeds: list[int]
    labels: list[int]
    guidance: Guidance
    strength: float
    plan: int
    timesteps: int
    def set_x(self, x: torch.Tensor) -> None: ...
    def jump(self, next: int, level: NoiseLevel) -> None: ...
    def fork(self) -> Trajectory: ...
    def state(self) -> dict[str, Any]: ...
    @staticmethod
    def from_state(state: dict[str, Any]) -> Trajectory: ...

class Sampler:
    noise_schedule: NoiseSchedule
    def __init__(self, noise_schedule: NoiseSchedule, routing: Routing, options: Options, rule: UpdateRule) -> None: ...
    def plan(self, guidance: Guidance, strength: float = 1.0) -> Plan: ...
    def inversion(self, rule: UpdateRule, iterations: int) -> Sampler: ...
    def begin(self, networks: Sequence[Network], request: Request) -> Trajectory: ...
    def advance(self, networks: Sequence[Network], trajectory: Trajectory, steps: int = 1) -> None: ...
    def sample(
        self, networks: Sequence[Network], request: Request, callback: Callable[[StepReport], bool | None] | None
    ) -> tuple[torch.Tensor | None, list[int], int, bool]: ...

def default_device() -> torch.device: ...
def load_networks(
    paths: Sequence[str], device: torch.device, dtype: str, backends: Sequence[str], info: NetworkInfo | None
) -> list[Network]: ...
def load_network_info(path: str, info: NetworkInfo | None = None) -> NetworkInfo: ...

class Decoder:
    name: str
    latent_channels: int
    picture_channels: int
    upsampling: int
    temporal_upsampling: int
    latent_scale: float | list[float]
    latent_shift: float | list[float]
    scaled_latents: bool
    license: str
    device: torch.device
    @staticmethod
    def load(path: str, device: torch.device, dtype: str) -> Decoder: ...
    def __call__(self, x: torch.Tensor, rows: int, tile: int, overlap: int) -> torch.Tensor: ...

class Encoder:
    name: str
    latent_channels: int
    picture_channels: int
    upsampling: int
    temporal_upsampling: int
    latent_scale: float | list[float]
    latent_shift: float | list[float]
    scaled_latents: bool
    license: str
    device: torch.device
    @staticmethod
    def load(path: str, device: torch.device, dtype: str) -> Encoder: ...
    def __call__(self, x: torch.Tensor, rows: int, tile: int, overlap: int) -> torch.Tensor: ...

class PipelineRequest:
    def __init__(
        self, *, prompts: Sequence[str], labels: Sequence[int], count: int, negative: str | None, ratio: float | None,
        steps: int | None, guidance: Sequence[float] | None, height: int, width: int, frames: int, profile: str
    ) -> None: ...  # fmt: skip

class Pipeline:
    stated: dict[str, Any]
    networks: list[Network]
    decoder: Decoder | None
    @staticmethod
    def load(
        folder: str, device: torch.device, dtype: str, backend: str, keep_text_encoders: bool, prompt_cache: str
    ) -> Pipeline: ...
    def sampler(self, wanted: PipelineRequest) -> Sampler: ...
    def request(self, wanted: PipelineRequest) -> Request: ...

def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """[n, H, W, C] uint8 from [n, 1 or 3, H, W] in [-1, 1]."""

class Budget:
    is_flop: bool
    @staticmethod
    def by_name(text: str) -> Budget: ...
    def most(self, batch: int) -> float: ...

class RunTimes:
    def __init__(self, networks: Sequence[Network], request: Request) -> None: ...
    def predict(self, sampler: Sampler, guidance: Guidance) -> float: ...
    def measure(self, sampler: Sampler, guidance: Guidance) -> float: ...
    def is_measured(self, sampler: Sampler, guidance: Guidance) -> bool: ...

def best_within(distances: Sequence[float], most: float, cost: Callable[[int], float]) -> tuple[int, bool]: ...
def largest_networks_within(
    networks: int, steps: int, most: float, cost: Callable[[list[int]], float]
) -> list[int] | None: ...
def read_quality_table(path: str) -> tuple[list[str], float, list[tuple[float, str, int, list[float], str, str]]]: ...
def require_compatible(networks: Sequence[Network]) -> None: ...
