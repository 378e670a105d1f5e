"""Small checkpoints of random weights, under the names that the pages use: make(folder, examples/export)."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "export"))
from harness import small_gemma  # noqa: E402

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
START, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_dits(folder: Path, export: Path) -> None:
    """In the official layout, of the official widths and one block."""
    sys.path.insert(0, str(export))
    from dit import DiT, DiTConfig, sin_cos_position_embedding

    for name, width, heads, variance in (
        ("DiT-S-2-256x256", 384, 6, True), ("DiT-XL-2-256x256", 1152, 16, True),
        ("SiT-S-2-256", 384, 6, True), ("SiT-XL-2-256", 1152, 16, True),
    ):  # fmt: skip
        config = DiTConfig(channels=4, size=32, width=width, depth=1, heads=heads, num_classes=1000,
                           learned_variance=variance)
        with torch.device("meta"):
            network = DiT(config)
        generator = torch.Generator().manual_seed(width)
        weights = {key: torch.randn(t.shape, generator=generator) * 0.02 for key, t in network.state_dict().items()}
        torch.save(weights | {"pos_embed": sin_cos_position_embedding(width, 16)}, folder / f"{name}.pt")


def make_uvit(folder: Path, export: Path) -> None:
    """In the makers' layout, of the width of a published one."""
    sys.path.insert(0, str(export))
    from uvit import UViTConfig, make_uvit

    with torch.device("meta"):
        network = make_uvit(UViTConfig(width=512, depth=2, heads=8, hidden=512))
    generator = torch.Generator().manual_seed(0)
    weights = {key: torch.randn(t.shape, generator=generator) * 0.02 for key, t in network.state_dict().items()}
    torch.save(weights, folder / "imagenet256_uvit_huge.pth")


def clip(folder: Path, part: str, width: int, projected: bool) -> None:
    """A tokenizer of letters and a text encoder."""
    import transformers

    pieces = [*LETTERS, *(letter + "</w>" for letter in LETTERS), START, END]
    words = folder / f"tokenizer{part}"
    words.mkdir(parents=True)
    (words / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    (words / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": START, "eos_token": END,
        "unk_token": END, "pad_token": END,
    }))  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    kind(transformers.CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=width, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=10, max_position_embeddings=77, bos_token_id=pieces.index(START),
        eos_token_id=pieces.index(END), pad_token_id=pieces.index(END),
    )).save_pretrained(folder / f"text_encoder{part}")  # fmt: skip


def t5(folder: Path, part: str = "", width: int = 16, kind: str = "T5") -> None:
    import tokenizers
    import transformers

    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -2.0), *((letter, -4.0) for letter in LETTERS)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    place = folder / f"tokenizer{part}"
    place.mkdir(parents=True)
    tokenizer.save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": {"T5": "T5Tokenizer", "UMT5": "PreTrainedTokenizerFast"}[kind], "model_max_length": 512, "extra_ids": 0, "eos_token": "</s>",
        "unk_token": "<unk>", "pad_token": "<pad>",
    }))  # fmt: skip
    getattr(transformers, f"{kind}EncoderModel")(getattr(transformers, f"{kind}Config")(
        vocab_size=len(words), d_model=width, d_kv=6, d_ff=20, num_layers=2, num_heads=2, is_encoder_decoder=False,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )).save_pretrained(folder / f"text_encoder{part}")  # fmt: skip


def make_pipelines(folder: Path) -> None:
    """Folders of diffusers. Needs diffusers and transformers."""
    import diffusers

    torch.manual_seed(0)  # random weights are not all as good for an exporter's check

    def save(name: str, kind: str, parts: dict[str, object]) -> Path:
        pipeline = folder / name
        for part, value in parts.items():
            value.save_pretrained(pipeline / part)
        (pipeline / "model_index.json").write_text(json.dumps({"_class_name": kind}))
        return pipeline

    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    vae.save_pretrained(folder / "sd-vae-ft-ema")

    def unet(width: int, text: int, **more: object) -> object:
        return diffusers.UNet2DConditionModel(
            in_channels=4, out_channels=4, block_out_channels=(width, 2 * width), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=text, attention_head_dim=4, norm_num_groups=8, sample_size=8, **more,
        )  # fmt: skip

    pndm = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
    save("bk-sdm-tiny", "StableDiffusionPipeline", {"unet": unet(8, 16), "scheduler": pndm})
    sd = save("stable-diffusion-v1-4", "StableDiffusionPipeline",
              {"unet": unet(16, 16), "scheduler": pndm, "vae": vae})
    clip(sd, "", 16, False)

    euler = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 6,
             "projection_class_embeddings_input_dim": 10 + 36}  # fmt: skip
    save("ssd-1b", "StableDiffusionXLPipeline", {"unet": unet(8, 40, **added), "scheduler": euler})
    xl = save("stable-diffusion-xl-base-1.0", "StableDiffusionXLPipeline",
              {"unet": unet(16, 40, **added), "scheduler": euler, "vae": vae})
    clip(xl, "", 16, False)
    clip(xl, "_2", 24, True)

    refines = added | {"projection_class_embeddings_input_dim": 10 + 30}
    refiner = save("stable-diffusion-xl-refiner-1.0", "StableDiffusionXLImg2ImgPipeline",
                   {"unet": unet(8, 24, **refines), "scheduler": euler, "vae": vae})
    (refiner / "model_index.json").write_text(json.dumps({
        "_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True,
    }))  # fmt: skip
    clip(refiner, "_2", 24, True)

    def pixart(layers: int) -> object:
        return diffusers.PixArtTransformer2DModel(
            num_layers=layers, num_attention_heads=2, attention_head_dim=12, sample_size=8, cross_attention_dim=24,
            caption_channels=16, use_additional_conditions=False,
        )  # fmt: skip

    solver = diffusers.DPMSolverMultistepScheduler(beta_schedule="linear")
    save("PixArt-small", "PixArtAlphaPipeline", {"transformer": pixart(1), "scheduler": solver})
    large = save("PixArt-XL-2-512x512", "PixArtAlphaPipeline",
                 {"transformer": pixart(2), "scheduler": solver, "vae": vae})
    t5(large)

    def sd3(layers: int, dual: list[int]) -> object:
        return diffusers.SD3Transformer2DModel(
            sample_size=8, num_layers=layers, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=40, in_channels=16,
            caption_projection_dim=16, pooled_projection_dim=20, pos_embed_max_size=12, qk_norm="rms_norm", dual_attention_layers=dual,
        )  # fmt: skip

    of_sd3 = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=16, norm_num_groups=4,
        scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    kind = "StableDiffusion3Pipeline"
    save("stable-diffusion-3.5-medium", kind, {"transformer": sd3(2, [0]), "scheduler": flow})
    large = save("stable-diffusion-3.5-large", kind, {"transformer": sd3(3, []), "scheduler": flow, "vae": of_sd3})
    clip(large, "", 16, True)
    clip(large, "_2", 24, True)
    t5(large, "_3", 40)

    def wan(layers: int) -> object:
        return diffusers.WanTransformer3DModel(
            num_layers=layers, num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=16, ffn_dim=24,
        )  # fmt: skip

    unipc = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    beside = {"scheduler": unipc, "vae": diffusers.AutoencoderKLWan(base_dim=4, num_res_blocks=1)}
    t5(save("Wan2.1-T2V-1.3B-Diffusers", "WanPipeline", {"transformer": wan(1), **beside}), kind="UMT5")
    save("Wan2.1-T2V-14B-Diffusers", "WanPipeline", {"transformer": wan(2), **beside})
    experts = {"transformer": wan(1), "transformer_2": wan(2), **beside}
    t5(save("Wan2.2-T2V-A14B-Diffusers", "WanPipeline", experts), kind="UMT5")

    def sana(layers: int) -> object:
        return diffusers.SanaTransformer2DModel(
            sample_size=8, num_layers=layers, num_attention_heads=2, attention_head_dim=8, num_cross_attention_heads=2,
            cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        )  # fmt: skip

    blocks, widths = ["ResBlock"] * 5 + ["EfficientViTBlock"], [4, 4, 8, 8, 16, 32]
    of_sana = diffusers.AutoencoderDC(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, encoder_layers_per_block=[1] * 6,
        decoder_layers_per_block=[1] * 6, encoder_block_types=blocks, decoder_block_types=blocks, attention_head_dim=8,
        downsample_block_type="Conv", upsample_block_type="interpolate", scaling_factor=0.41407,
    )  # fmt: skip
    for name, layers in (("Sana_600M_1024px_diffusers", 1), ("Sana_1600M_1024px_diffusers", 2)):
        solver = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        pipeline = save(name, "SanaPipeline", {"transformer": sana(layers), "scheduler": solver, "vae": of_sana})
        if layers == 1:
            with torch.no_grad():
                small_gemma(pipeline)
    make_others(folder)


def make_others(folder: Path) -> None:
    """A ControlNet, and files of latent diffusion in the layout of its makers."""
    import diffusers
    from makers_layout import unet_of_makers, vae_of_makers

    diffusers.ControlNetModel(
        block_out_channels=(16, 32), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=16,
        attention_head_dim=4, norm_num_groups=8, conditioning_embedding_out_channels=(4, 4, 4, 4),
    ).save_pretrained(folder / "sd-controlnet-canny")  # fmt: skip

    codes = diffusers.VQModel(
        block_out_channels=(32,) * 3, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1, latent_channels=3, num_vq_embeddings=50,
    )  # fmt: skip
    for name, width in (("ldm-small", 32), ("cin256-v2", 64)):
        network = diffusers.UNet2DConditionModel(
            in_channels=3, out_channels=3, block_out_channels=(width,) * 2, layers_per_block=1, cross_attention_dim=16, attention_head_dim=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        weights = unet_of_makers(network) | vae_of_makers(codes) | {"cond_stage_model.embedding.weight": torch.randn(1001, 16)}
        torch.save({"state_dict": weights}, folder / f"{name}.ckpt")
