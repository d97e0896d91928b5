"""Time the decoding of a clip, autoencoder and vocoder apart: networks of audioldm2's size with
random weights, in the dtypes and layers that `load_component` would load them in.

A table for people, then one line of JSON."""

import argparse
import json
import sys
from functools import partial

import torch

from audiolitefocus.audio.length import ClipLength
from audiolitefocus.checkpoints.bundle import cast
from audiolitefocus.codec.decode import decode_mel, vocode
from audiolitefocus.config import BundleConfig
from audiolitefocus.models.vae import VAE
from audiolitefocus.models.vocoder import HiFiGAN
from scripts.benchmark.timing import machine, median, seconds_of

WARM_UP_SECONDS = 10.24  # of a clip that is decoded first


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=80.0, help="of the clip")
    add("--dtypes", nargs="+", default=("float32", "bfloat16"))
    add("--decode", default="auto", help='"auto", "whole" or "tiled"')
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, help="of the CPU")
    return parser.parse_args()


@torch.inference_mode()
def measure(options: argparse.Namespace, dtype: str) -> dict[str, float]:
    """Medians of the seconds that autoencoder, vocoder and both take."""
    config, device = BundleConfig(), options.device
    torch.manual_seed(0)
    vae = cast(VAE(config.vae), getattr(torch, dtype), device)
    vocoder = cast(HiFiGAN(config.vocoder), getattr(torch, dtype), device)
    mels: list[torch.Tensor] = []

    def decode(latents: torch.Tensor) -> None:
        mels[:] = decode_mel(vae, latents, decode=options.decode)

    def synthesize() -> None:
        for _ in vocode(vocoder, mels):
            pass

    times: dict[str, list[float]] = {"vae": [], "vocoder": []}
    for turn in range(options.repeats + 1):
        length = ClipLength(options.seconds if turn else WARM_UP_SECONDS, config)
        shape = 1, config.vae.latent_channels, length.latent_frames, length.latent_rows
        latents = torch.randn(shape, device=device)
        spent = seconds_of(partial(decode, latents), device), seconds_of(synthesize, device)
        for part, seconds in zip(times.values(), spent if turn else (), strict=False):
            part.append(seconds)
    times["both"] = [sum(pair) for pair in zip(times["vae"], times["vocoder"], strict=True)]
    return {part: median(seconds) for part, seconds in times.items()}


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    results = {}
    for dtype in options.dtypes:
        results[dtype] = measure(options, dtype)
        print(f"{dtype}: {results[dtype]['both']:.2f} s", file=sys.stderr, flush=True)
    print(f"\n| {options.seconds:g} s | autoencoder | vocoder | both |\n|---|---|---|---|")
    for dtype, parts in results.items():
        print(f"| {dtype} | {' | '.join(f'{seconds:.2f} s' for seconds in parts.values())} |")
    about = {"what": "decode", **machine(options.device), "decode": options.decode}
    print(json.dumps({**about, "seconds": options.seconds, "results": results}))


if __name__ == "__main__":
    main()
