"""diffusers' loops and pipelines: the scheduler computes what diffusers' own do, and stitched pipelines are the large one at
ratio 0, the small one at ratio 1, and each network at its steps between: diffusers_test.py SCRATCH

Small random pipelines of every kind.
"""

import sys
from pathlib import Path

from harness import check, equal, main, refuses, require, torch, tstitch

require("diffusers", "transformers")
import diffusers  # noqa: E402
import transformers  # noqa: E402

import tstitch.diffusers  # noqa: E402

scratch = Path(sys.argv[1])
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


class Net(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x).tanh() + torch.sin(t / 300).to(x.dtype)[:, None, None, None] * 0.3


small, large = Net(1).eval(), Net(2).eval()


@torch.no_grad()
def loop(scheduler, steps, x, ratio=0.0, generator=None, dtype=torch.float32):
    """How a pipeline runs a scheduler, with the first share of the steps for the small network."""
    scheduler.set_timesteps(steps)
    x = x.to(dtype) * getattr(scheduler, "init_noise_sigma", 1.0)
    for i, t in enumerate(scheduler.timesteps):
        net = small if i < round(ratio * len(scheduler.timesteps)) else large
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = net(scaled.float(), t.expand(x.shape[0])).to(dtype)
        options = {} if generator is None else {"generator": generator}
        x = scheduler.step(output, t, x, return_dict=False, **options)[0]
    return x


def near(a, b, most, what):
    """Root mean square, of the values'; the largest is at most ten times that."""
    difference = (a.double() - b.double()).abs()
    scale = b.double().square().mean().sqrt().item()
    error = difference.square().mean().sqrt().item() / scale
    check(
        error <= most and difference.max().item() <= 10 * most * scale,
        f"{what}: differ by {error:.3g}, at most {difference.max():.3g}",
    )


noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PEERS = {
    "diffusers-ddim": diffusers.DDIMScheduler(**BETAS),
    "diffusers-dpmpp": diffusers.DPMSolverMultistepScheduler(**BETAS),
}


def test_loops():
    """tstitch's own loop and diffusers' are the same latents, at all ratios."""
    for name, peer in PEERS.items():
        for steps in (5, 10, 25):
            for ratio in (0, 0.4, 1):
                mine = tstitch.sample([small, large], ratio=ratio, profile=name, steps=steps, noise_schedule="linear", initial_noise=noise,
                                      routing="stitch")  # fmt: skip
                near(mine.images, loop(peer, steps, noise, ratio), 1e-6, f"{name}, {steps} steps, ratio {ratio}")


def test_scheduler_is_the_library():
    """The same loop around tstitch's scheduler is tstitch.sample to the bit, for every rule."""
    for name, entry in tstitch.samplers().items():
        if name.endswith("adaptive"):
            refuses(ValueError, "evaluations are known before", tstitch.diffusers.Scheduler, sampler=name)
            continue
        if (
            {"eta", "s_churn"} & set(entry["options"])
            and name.endswith(("ancestral", "sde"))
            or name in ("ddpm", "lcm")
        ):
            continue  # they draw noise of their own
        if name.endswith("-sde"):
            continue
        scheduler = tstitch.diffusers.Scheduler(sampler=name)
        mine = tstitch.sample([large], sampler=name, steps=6, noise_schedule="linear", timestep_type="float32", initial_noise=noise,
                              thresholding="none")  # fmt: skip
        equal(loop(scheduler, 6, noise), mine.images, name)
        equal(loop(scheduler, 6, noise), mine.images, name + " again")


def test_scheduler_beside_diffusers():
    for name, peer in PEERS.items():
        for steps in (4, 15):
            mine = tstitch.diffusers.Scheduler.from_config(peer.config, profile=name)
            near(loop(mine, steps, noise), loop(peer, steps, noise), 1e-6, f"{name}, {steps} steps")
            check(mine.timesteps.tolist() == peer.timesteps.tolist(), f"{mine.timesteps} and {peer.timesteps}")
            times = torch.tensor([3, 700])
            ddim = PEERS["diffusers-ddim"]  # the others know the timesteps of their run alone
            near(
                mine.add_noise(noise, noise.flip(0), times),
                ddim.add_noise(noise, noise.flip(0), times),
                1e-6,
                "add_noise",
            )
    # Stochastic rules draw from the generator as diffusers' do.
    peer = diffusers.DDPMScheduler(**BETAS)
    mine = tstitch.diffusers.Scheduler.from_config(peer.config, profile="diffusers-ddpm")
    a, b = (loop(each, 10, noise, generator=torch.Generator().manual_seed(3)) for each in (mine, peer))
    near(a, b, 1e-5, "DDPM")
    for kind in ("v_prediction", "sample"):
        peer = diffusers.DDIMScheduler(**BETAS, prediction_type=kind, clip_sample=False)
        mine = tstitch.diffusers.Scheduler.from_config(peer.config, sampler="ddim", spacing="leading")
        near(loop(mine, 10, noise), loop(peer, 10, noise), 2e-5, kind)
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    mine = tstitch.diffusers.Scheduler.from_config(peer.config)
    for steps in (1, 2, 9):
        near(loop(mine, steps, noise), loop(peer, steps, noise), 1e-6, f"flow matching, {steps} steps")
    near(mine.timesteps, peer.timesteps, 1e-6, "timesteps of flow matching")
    check(mine.config.prediction_type == "flow_prediction", f"{mine}")
    half, whole = (
        loop(tstitch.diffusers.Scheduler(), 6, noise, dtype=kind) for kind in (torch.bfloat16, torch.float32)
    )
    check(half.dtype == torch.bfloat16 and (half.float() - whole).abs().mean() < 0.01 * whole.abs().mean(), "bfloat16")


def test_scheduler_manners():
    scheduler = tstitch.diffusers.Scheduler(profile="diffusers-ddim")
    scheduler.save_pretrained(scratch / "scheduler")
    again = tstitch.diffusers.Scheduler.from_pretrained(scratch / "scheduler")
    check(again.config.profile == "diffusers-ddim" and "DDIM" in repr(again), repr(again))
    check(len(scheduler) == 1000 and scheduler.init_noise_sigma == 1 and scheduler.order == 1, "attributes")
    refuses(
        ValueError,
        "sampler: must not be given with profile",
        tstitch.diffusers.Scheduler,
        profile="dit",
        sampler="ddim",
    )
    refuses(ValueError, "beta_schedule: must be", tstitch.diffusers.Scheduler, beta_schedule="foo")
    scheduler.set_timesteps(5)
    refuses(ValueError, "timestep: must be one of timesteps, got 3", scheduler.step, noise, 3, noise)
    # From the middle, as img2img pipelines do: two of five steps.
    x = scheduler.add_noise(noise, noise, scheduler.timesteps[3:4])
    for t in scheduler.timesteps[3:]:
        x = scheduler.step(large(x, t.expand(2)).detach(), t, x).prev_sample
    peer = diffusers.DDIMScheduler(**BETAS)
    peer.set_timesteps(5)
    y = peer.add_noise(noise, noise, peer.timesteps[3:4])
    for t in peer.timesteps[3:]:
        y = peer.step(large(y, t.expand(2)).detach(), t, y).prev_sample
    near(x, y, 1e-6, "from the middle")


# ---- pipelines ----------------------------------------------------------------------------------------------------------------


def autoencoder(channels=4, **options):
    torch.manual_seed(9)
    return diffusers.AutoencoderKL(
        block_out_channels=[8, 16], in_channels=3, out_channels=3, latent_channels=channels, norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, **options,
    ).eval()  # fmt: skip


def dit(layers, seed, scheduler=None):
    torch.manual_seed(seed)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=layers, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8,
        num_embeds_ada_norm=1000, norm_type="ada_norm_zero", norm_elementwise_affine=False,
    ).eval()  # fmt: skip
    shake(transformer)
    return diffusers.DiTPipeline(transformer, autoencoder(), scheduler or diffusers.DDIMScheduler(**BETAS))


def shake(module):
    """Layers that begin at zero would hide everything before them."""
    with torch.no_grad():
        for each in module.parameters():
            each.add_(torch.randn_like(each) * 0.05)


def clip(width=32, **options):
    torch.manual_seed(8)
    config = transformers.CLIPTextConfig(bos_token_id=0, eos_token_id=2, hidden_size=width, intermediate_size=37, num_attention_heads=4,
                                         num_hidden_layers=2, pad_token_id=1, vocab_size=1000, projection_dim=32, **options)  # fmt: skip
    return config


def stable_diffusion(channels, seed, width=32):
    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=channels, layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width, attention_head_dim=4,
    ).eval()  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=transformers.CLIPTextModel(clip(width)).eval(), tokenizer=None, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_3(layers, seed):
    torch.manual_seed(seed)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=layers, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
    ).eval()  # fmt: skip
    shake(transformer)
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=autoencoder(shift_factor=0.05),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def pixart(layers, seed):
    torch.manual_seed(seed)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=layers, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=32, in_channels=4,
        cross_attention_dim=16, out_channels=8, attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, use_additional_conditions=False,
    ).eval()  # fmt: skip
    shake(transformer)
    return diffusers.PixArtAlphaPipeline(tokenizer=None, text_encoder=None, vae=autoencoder(), transformer=transformer,
                                         scheduler=diffusers.DPMSolverMultistepScheduler(**BETAS))  # fmt: skip


torch.manual_seed(7)
words, no_words = torch.randn(2, 6, 32), torch.randn(2, 6, 32)
pooled, no_pooled = torch.randn(2, 64), torch.randn(2, 64)
ones = torch.ones(2, 6, dtype=torch.long)


def latents_of(pipe, steps=5, **options):
    generator = torch.Generator().manual_seed(1)
    if isinstance(pipe, diffusers.DiTPipeline):
        return torch.from_numpy(
            pipe([1, 2], num_inference_steps=steps, generator=generator, output_type="np", **options).images
        )
    call = dict(
        num_inference_steps=steps,
        generator=generator,
        output_type="latent",
        prompt_embeds=words,
        negative_prompt_embeds=no_words,
    )
    if isinstance(pipe, diffusers.StableDiffusion3Pipeline):
        call.update(pooled_prompt_embeds=pooled, negative_pooled_prompt_embeds=no_pooled)
    if isinstance(pipe, diffusers.PixArtAlphaPipeline):
        call.update(
            prompt_attention_mask=ones,
            negative_prompt_attention_mask=ones,
            negative_prompt=None,
            use_resolution_binning=False,
        )
    return pipe(**{**call, **options}).images


KINDS = {
    "DiT": (lambda: dit(1, 1), lambda: dit(2, 2)),
    "StableDiffusion": (lambda: stable_diffusion((8, 16), 1), lambda: stable_diffusion((16, 24), 2)),
    "StableDiffusion3": (lambda: stable_diffusion_3(1, 1), lambda: stable_diffusion_3(2, 2)),
    "PixArtAlpha": (lambda: pixart(1, 1), lambda: pixart(2, 2)),
}


def test_stitched_pipelines():
    for name, (make_small, make_large) in KINDS.items():
        pipes = [make_small(), make_large()]
        own = [latents_of(pipe) for pipe in pipes]
        check((own[0] - own[1]).abs().max() > 1e-3, f"{name}: the two pipelines are the same")
        for ratio in (0, 0.4, 1):
            pipe = tstitch.diffusers.stitch(*pipes, ratio=ratio)
            check(type(pipe) is type(pipes[1]), f"{type(pipe)}")
            made = latents_of(pipe)
            part = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
            check(part.calls == [round(5 * ratio), 5 - round(5 * ratio)], f"{name}, ratio {ratio}: {part.calls}")
            if ratio in (0, 1):
                near(made, own[1 - ratio], 1e-5, f"{name}, ratio {ratio}")
            else:
                check(all((made - each).abs().max() > 1e-4 for each in own), f"{name}: is one of the two")
            equal(latents_of(pipe), made, f"{name} again")
            near(latents_of(pipes[1]), own[1], 0, f"{name}: the large pipeline is as it was")
            latents_of(pipe, steps=10)
            check(part.calls[0] == 2 * round(5 * ratio) + round(10 * ratio), f"{name}: other steps: {part.calls}")


def test_stitched_is_the_librarys_plan():
    """The latents of stitched DiTs are those of tstitch.sample around the two transformers."""
    pipes = [dit(1, 1), dit(2, 2)]
    for ratio in (0.2, 0.6):
        stitched = latents_of(tstitch.diffusers.stitch(*pipes, ratio=ratio), guidance_scale=1.0)

        def network(pipe):
            return lambda x, t, labels: pipe.transformer(x, timestep=t, class_labels=labels).sample[:, :4]

        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        made = tstitch.sample([network(pipe) for pipe in pipes], ratio=ratio, routing="stitch", profile="diffusers-ddim", steps=5,
                              noise_schedule="linear", num_classes=1000, labels=[1, 2], initial_noise=x)  # fmt: skip
        with torch.no_grad():
            pictures = pipes[1].vae.decode(made.images / pipes[1].vae.config.scaling_factor).sample
        near(((pictures / 2 + 0.5).clamp(0, 1)).permute(0, 2, 3, 1), stitched, 1e-5, f"ratio {ratio}")


def test_schedulers_that_evaluate_twice():
    """Both evaluations at a timestep have one network, under any scheduler."""
    for kind in (diffusers.HeunDiscreteScheduler, diffusers.PNDMScheduler, diffusers.EulerDiscreteScheduler,
                 diffusers.KDPM2DiscreteScheduler, diffusers.UniPCMultistepScheduler):  # fmt: skip
        pipes = [dit(1, 1, kind(**BETAS)), dit(2, 2, kind(**BETAS))]
        pipe = tstitch.diffusers.stitch(*pipes, ratio=0.5)
        latents_of(pipe, steps=6)
        routed = pipe.transformer.networks()
        visited = pipe.scheduler.timesteps.tolist()
        check(
            len(routed) == len(set(visited)) and sum(pipe.transformer.calls) == len(visited),
            f"{kind.__name__}: {pipe.transformer.calls}",
        )
        networks = [network for _, network in routed]
        check(
            networks == [0] * round(len(routed) / 2) + [1] * (len(routed) - round(len(routed) / 2)),
            f"{kind.__name__}: {networks}",
        )
        near(
            latents_of(tstitch.diffusers.stitch(*pipes, ratio=0), steps=6),
            latents_of(pipes[1], steps=6),
            1e-5,
            kind.__name__,
        )


def test_calls_as_usual():
    """Callbacks, batches, another scheduler, half of the run, and routing by name."""
    small_pipe, large_pipe = stable_diffusion((8, 16), 1), stable_diffusion((16, 24), 2)
    pipe = tstitch.diffusers.stitch(small_pipe, large_pipe, ratio=0.4)
    seen = []
    latents_of(pipe, callback_on_step_end=lambda pipe, i, t, given: (seen.append(i), given)[1])
    check(seen == [0, 1, 2, 3, 4], f"{seen}")
    two = latents_of(pipe, num_images_per_prompt=2)
    check(two.shape[0] == 4, f"{two.shape}")
    check(latents_of(pipe, guidance_scale=1.0).shape[0] == 2, "without guidance")
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.unet.calls = [0, 0]
    latents_of(pipe)
    check(pipe.unet.calls == [2, 3], f"{pipe.unet.calls}")
    pipe.scheduler = tstitch.diffusers.Scheduler.from_config(large_pipe.scheduler.config, profile="recommended")
    check(latents_of(pipe).isfinite().all() and pipe.unet.calls == [4, 6], f"{pipe.unet.calls}")
    tstitch.diffusers.stitch(small_pipe, pipe_large=large_pipe)
    by_name = tstitch.diffusers.stitch(small_pipe, large_pipe, ratio=0.4, routing="both-ends")
    latents_of(by_name)
    check([network for _, network in by_name.unet.networks()] == [0, 1, 1, 1, 0], f"{by_name.unet.networks()}")
    latents_of(by_rule := tstitch.diffusers.stitch(small_pipe.unet, large_pipe, routing=lambda step: int(step.t < 500)))
    check(sum(by_rule.unet.calls) == 5 and min(by_rule.unet.calls) > 0, f"{by_rule.unet.calls}")
    check(pipe.to(torch.float64).unet.small.dtype == torch.float64, "to() moves both")


def test_scheduler_in_pipelines():
    for name, (_, make) in KINDS.items():
        pipe = make()
        profile = None if name == "StableDiffusion3" else "diffusers-dpmpp"
        peer = pipe.scheduler if name == "StableDiffusion3" else diffusers.DPMSolverMultistepScheduler.from_config(
            {key: value for key, value in pipe.scheduler.config.items() if key.startswith("beta")})  # fmt: skip
        pipe.scheduler = peer
        want = latents_of(pipe)
        pipe.scheduler = tstitch.diffusers.Scheduler.from_config(peer.config, profile=profile)
        near(latents_of(pipe), want, 1e-5, name)


def test_what_does_not_fit():
    stitch = tstitch.diffusers.stitch
    refuses(
        ValueError,
        "differ in cross_attention_dim .32 and 24.",
        stitch,
        stable_diffusion((8, 16), 1),
        stable_diffusion((8, 16), 1, 24),
    )
    refuses(
        ValueError, "must have a transformer as pipe_large, got a unet", stitch, stable_diffusion((8, 16), 1), dit(1, 1)
    )
    other = dit(1, 1, diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2"))
    refuses(ValueError, "noise schedule", stitch, other, dit(2, 2))
    refuses(
        ValueError,
        "prediction_type .v_prediction and epsilon",
        stitch,
        dit(1, 1, diffusers.DDIMScheduler(**BETAS, prediction_type="v_prediction")),
        dit(2, 2),
    )
    refuses(ValueError, "ratio: must be in", stitch, dit(1, 1), dit(2, 2), ratio=2)
    refuses(TypeError, "pipe_small: must be a diffusers pipeline", stitch, 3, dit(2, 2))
    pipe = stitch(dit(1, 1), dit(2, 2))
    refuses(ValueError, "must be a pipeline of one network", stitch, dit(1, 1), pipe)
    refuses(NotImplementedError, "save the pipelines", pipe.transformer.save_pretrained, scratch)
    refuses(
        TypeError, "routing: must return an int", latents_of, stitch(dit(1, 1), dit(2, 2), routing=lambda step: 0.5)
    )
    refuses(
        ValueError,
        "routing: must be 0 for the small network or 1",
        latents_of,
        stitch(dit(1, 1), dit(2, 2), routing=lambda step: 2),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.modules[__name__])
