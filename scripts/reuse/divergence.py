"""Where two models agree: which steps to hand over to a drafter.

python -m scripts.reuse.divergence --drafter partner --sampler dpm++ --steps 25 \\
    --guidance-scale 7 --share 0.3 --runs 2 --out divergence.json

Along runs of --model, how much the guided noise that --drafter predicts of the same latents differs
from the model's own, |a - b| / |a|, and how much the clean latents do that it stands for; step by
step, as means over clips. Prints the interval of that share of the steps in which the clean latents
differ least (--drafter-interval): noise alone hides it where latents are little else, at the start.
"""

import json
import math
import sys

import torch
from torch import Tensor

from audiolitefocus import AudioLDM2Pipeline, GenerationOptions
from audiolitefocus.atomic import atomic_file
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.diffusion.branches import OneNetwork
from audiolitefocus.diffusion.drafter import check_drafter, rescaled
from audiolitefocus.diffusion.guidance import guide
from audiolitefocus.diffusion.guided import GuidedNoise
from audiolitefocus.diffusion.network import Draws, Network, Run
from audiolitefocus.diffusion.prompts import Prompts
from audiolitefocus.diffusion.schedule import alphas_cumprod
from audiolitefocus.models.layers import StepInputs
from scripts.reuse.rollouts import Rollouts, parser


def divergences(rollouts: Rollouts, drafter: AudioLDM2Pipeline, runs: int) -> tuple[Tensor, Tensor]:
    """(clips, steps), both: |a - b| / |a| of the models' guided noise, and of the clean latents."""
    levels, found = rollouts.levels, []
    for number in range(runs):
        predict, gains = predictor(rollouts, drafter, number)
        of_run: list[Tensor] = []

        def compare(
            latents, inputs: StepInputs, step: int, predict=predict, gains=gains, of_run=of_run
        ) -> Tensor:
            noise = rollouts.unet.evaluate(latents, inputs)
            guided = len(noise) > len(latents)
            own = guide(noise, rollouts.options.guidance_scale) if guided else noise
            other = predict(latents * gains[step], step)
            clean, noisy = math.sqrt(levels[step]), math.sqrt(1 - levels[step])
            change, estimate = norm(own - other), norm(latents - noisy * own) / clean
            of_run.append(torch.stack([change / norm(own), change * noisy / clean / estimate]))
            return noise

        with torch.inference_mode():
            for _ in rollouts.run(number, compare):
                pass
        found.append(torch.stack(of_run, dim=2).cpu())
    noise, clean = torch.cat(found, dim=1)
    return noise, clean


def norm(x: Tensor) -> Tensor:
    """(b, ...) -> (b,)"""
    return x.flatten(1).norm(dim=1)


@torch.inference_mode()
def predictor(
    rollouts: Rollouts, drafter: AudioLDM2Pipeline, number: int
) -> tuple[GuidedNoise, list[float]]:
    """The drafter's guided noise of the clips of a run, and the gains of its latents."""
    options, config = rollouts.options, rollouts.pipe.config
    scale = drafter.config.vae.scale_factor / config.vae.scale_factor
    alphas = alphas_cumprod(config.schedule)
    theirs, levels, gains = rescaled(rollouts.timesteps, alphas, scale)
    prompts = rollouts.batch(number)
    condition = drafter.encode_prompt(prompts)
    length = ClipLength(rollouts.seconds, config)
    attention = drafter.choose_attention(rollouts.chosen.attention, rollouts.seconds)
    run = Run(
        len(prompts),
        condition,
        drafter.text.negative(None, condition, options.unconditional),
        options,
        theirs,
        levels,
        attention,
        Draws(drafter.unet, attention, length.latent_frames, length.latent_rows),
    )
    network = Network(drafter.unet, drafter.unet.evaluate)
    predict = GuidedNoise(run, OneNetwork(run, network))
    return predict, gains


def least_interval(divergence: list[float], share: float) -> tuple[float, float]:
    """The interval of this share of the steps, one at least, with the least divergence in all."""
    steps = len(divergence)
    length = max(1, round(share * steps))
    start = min(
        range(steps - length + 1), key=lambda first: sum(divergence[first : first + length])
    )
    return start / steps, (start + length) / steps


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--drafter", required=True, help="a bundle with the same latents")
    options.add_argument("--runs", type=int, default=2, help="batches of clips")
    options.add_argument("--share", type=float, default=0.3, help="of the steps, to hand over")
    chosen = options.parse_args()
    try:
        GenerationOptions(drafter_interval=(0, chosen.share))
        rollouts = Rollouts(chosen)
        drafter = AudioLDM2Pipeline.from_pretrained(chosen.drafter, device=chosen.device)
        prompts = Prompts.make(rollouts.batch(0), rollouts.pipe.config.unet)
        check_drafter(rollouts.pipe, drafter, rollouts.options, prompts)
        noise, clean = divergences(rollouts, drafter, chosen.runs)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    start, stop = least_interval(clean.mean(0).tolist(), chosen.share)
    result = {
        "model": rollouts.pipe.config.name,
        "drafter": drafter.config.name,
        "seconds": rollouts.seconds,
        "options": {n: getattr(chosen, n) for n in ("steps", "sampler", "eta", "guidance_scale")},
        "clips": len(clean),
        "noise": noise.mean(0).tolist(),
        "clean": clean.mean(0).tolist(),
        "share": chosen.share,
        "drafter_interval": [start, stop],
    }
    with atomic_file(chosen.out) as beside:
        beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("step  noise  clean latents")
    for step, values in enumerate(zip(noise.mean(0), clean.mean(0), strict=True)):
        print("{:4} {:.4f} {:.4f}".format(step, *map(float, values)))
    print(f"--drafter-interval {start:g}:{stop:g}")


if __name__ == "__main__":
    main()
