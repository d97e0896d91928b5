"""Time a whole clip, from a prompt to a sound file, against diffusers' AudioLDM2Pipeline.

All networks have audioldm2's sizes and random weights, the same for both; both sample with
DPM-Solver++. Weights, about 10 GB, are written into --folder once. "cheaper" is ours with the
options of --cheaper, by which fewer or cheaper evaluations are made. A table for people, then one
line of JSON."""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import soundfile
import torch
from torch import nn

from audiolitefocus import AudioLDM2Pipeline, convert_checkpoint
from audiolitefocus.checkpoints.towers import load_tokenizer
from audiolitefocus.config import demo_folder
from scripts.benchmark.contenders import DIFFUSERS
from scripts.benchmark.timing import machine, synchronize

PROMPT = "rain on a tin roof"
WARM_UP = 2.56, 2  # seconds of a clip, and steps
CONTENDERS = ("ours", "cheaper", "diffusers")
CHEAPER = ("num_inference_steps=13", "reuse=deepcache:3", "guidance_interval=0:0.8")
PARTS = ("text", "denoising", "decoding", "all")
T5_LARGE: dict[str, Any] = {  # google/flan-t5-large, whose encoder AudioLDM2 uses
    **{"vocab_size": 32128, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_heads": 16},
    **{"num_layers": 24, "feed_forward_proj": "gated-gelu"},
}

Make: TypeAlias = Callable[[Path, float, int], object]  # a clip's file, seconds and steps


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="for weights and sounds")
    add("--seconds", type=float, default=80.0, help="of the clip")
    add("--steps", type=int, default=25)
    add("--dtypes", nargs="+", default=("bfloat16", "float32"))
    add("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    add("--cheaper", nargs="+", default=CHEAPER, metavar="NAME=VALUE", help="options of ours")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--compile", action="store_true", help="compile ours")
    add("--output", type=Path, help="JSON file, such as scripts/results/NAME.json")
    return parser.parse_args()


def write_weights(folder: Path) -> None:
    """Write `folder`/source in diffusers layout and `folder`/bundle, unless they are there."""
    import diffusers
    import transformers

    source, bundle = folder / "source", folder / "bundle"
    if bundle.exists():
        return
    torch.manual_seed(0)
    channels = {"block_out_channels": (128, 256, 512), "latent_channels": 8, "layers_per_block": 2}
    down, up = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    io = {"in_channels": 1, "out_channels": 1, "down_block_types": down, "up_block_types": up}
    gpt2 = transformers.GPT2Config(max_new_tokens=8)  # type: ignore[call-arg]
    gpt2.bos_token_id = gpt2.eos_token_id = None
    rates = {"upsample_rates": [5, 4, 2, 2, 2], "upsample_kernel_sizes": [16, 16, 8, 4, 4]}
    vocoder: dict[str, Any] = {"model_in_dim": 64, "upsample_initial_channel": 1024, **rates}
    betas = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
    pipe: Any = diffusers.AudioLDM2Pipeline(
        vae=diffusers.AutoencoderKL(**channels, **io),
        text_encoder=transformers.ClapModel(transformers.ClapConfig()),
        text_encoder_2=transformers.T5EncoderModel(transformers.T5Config(**T5_LARGE)),
        projection_model=diffusers.AudioLDM2ProjectionModel(512, 1024, 768),
        language_model=transformers.GPT2LMHeadModel(gpt2),
        unet=diffusers.AudioLDM2UNet2DConditionModel(**DIFFUSERS),
        vocoder=transformers.SpeechT5HifiGan(
            transformers.SpeechT5HifiGanConfig(**vocoder, normalize_before=False)
        ),
        tokenizer=load_tokenizer(demo_folder(), "clap"),
        tokenizer_2=load_tokenizer(demo_folder(), "t5"),
        feature_extractor=transformers.ClapFeatureExtractor(truncation="rand_trunc"),
        scheduler=diffusers.DDIMScheduler(**betas, clip_sample=False, steps_offset=1),
    )
    pipe.save_pretrained(source)
    convert_checkpoint(source, bundle)


def marks(**starts: nn.Module) -> dict[str, float]:
    """When each of these modules was first called, once they have been."""
    times: dict[str, float] = {}
    for name, module in starts.items():
        module.register_forward_pre_hook(
            lambda module, inputs, name=name: times.setdefault(name, time.perf_counter()) and None
        )
    return times


def ours(
    options: argparse.Namespace, dtype: str, changes: dict[str, int | str]
) -> tuple[Make, dict[str, float]]:
    pipe = AudioLDM2Pipeline.from_pretrained(
        options.folder / "bundle", dtype=dtype, device=options.device
    )
    pipe.text  # noqa: B018  loaded when it is first read
    if options.compile:
        pipe.compile()

    def make(path: Path, seconds: float, steps: int) -> None:
        settings: dict[str, Any] = {
            "num_inference_steps": steps,
            "sampler": "dpm++",
            "seed": 0,
            **changes,
        }
        pipe(PROMPT, audio_length_in_s=seconds, **settings).save(path)

    return make, marks(denoising=pipe.unet.conv_in, decoding=pipe.vae.decoder)


def theirs(options: argparse.Namespace, dtype: str) -> tuple[Make, dict[str, float]]:
    import diffusers

    kind = getattr(torch, dtype)
    pipe = diffusers.AudioLDM2Pipeline.from_pretrained(
        options.folder / "source", torch_dtype=kind
    ).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

    def make(path: Path, seconds: float, steps: int) -> None:
        settings: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 3.5}
        generator = torch.Generator().manual_seed(0)
        made = pipe(PROMPT, audio_length_in_s=seconds, generator=generator, **settings)
        soundfile.write(path, made.audios[0], 16000)

    return make, marks(denoising=pipe.unet.conv_in, decoding=pipe.vae.decoder)


def measure(options: argparse.Namespace, name: str, dtype: str) -> dict[str, float]:
    """Seconds of every part of a clip."""
    if name == "diffusers":
        make, started = theirs(options, dtype)
    else:
        pairs = [text.split("=", 1) for text in options.cheaper if name == "cheaper"]
        changes = {option: int(text) if text.isdigit() else text for option, text in pairs}
        make, started = ours(options, dtype, changes)
    path = options.folder / f"{name}-{dtype}.wav"
    make(path, *WARM_UP)
    started.clear()
    start = time.perf_counter()
    make(path, options.seconds, options.steps)
    synchronize(options.device)
    end = time.perf_counter()
    times = (start, started["denoising"], started["decoding"], end)
    spent = [after - before for before, after in zip(times, times[1:], strict=False)]
    return dict(zip(PARTS, [*spent, end - start], strict=True))


def main() -> None:
    options = arguments()
    write_weights(options.folder)
    results: dict[str, dict[str, float]] = {}
    about = {"what": "clip", **machine(options.device)}
    about |= {"seconds": options.seconds, "steps": options.steps, "cheaper": options.cheaper}
    for dtype in options.dtypes:
        for name in options.contenders:
            results[f"{name} {dtype}"] = measure(options, name, dtype)
            gc.collect()
            print(f"{name} {dtype}: {results[f'{name} {dtype}']}", file=sys.stderr, flush=True)
            if options.output:  # now, as the others take long
                options.output.write_text(json.dumps({**about, "results": results}) + "\n")
    print(f"\n| {options.seconds:g} s, {options.steps} steps | {' | '.join(PARTS)} |")
    print("|---" * (len(PARTS) + 1) + "|")
    for name, parts in results.items():
        print(f"| {name} | {' | '.join(f'{parts[part]:.1f} s' for part in PARTS)} |")
    print(json.dumps({**about, "results": results}))


if __name__ == "__main__":
    main()
