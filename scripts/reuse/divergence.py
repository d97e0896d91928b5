"""Where two models agree: which steps to hand over to a drafter.

python -m scripts.reuse.divergence --drafter partner --sampler dpm++ --steps 25 \\
    --guidance-scale 7 --share 0.3 --runs 2 --out divergence.json

Along runs of --model, how much the noise that --drafter predicts of the same latents, guided as
well, differs from the model's own: |a - b| / |a|, step by step, as a mean over clips. Prints the
interval of that share of the steps in which it differs least (--drafter-interval).
"""

import json
import sys

import torch
from torch import Tensor

from audiolitefocus import AudioLDM2Pipeline, GenerationOptions
from audiolitefocus.atomic import atomic_file
from audiolitefocus.diffusion.branches import OneNetwork
from audiolitefocus.diffusion.drafter import check_drafter, rescaled
from audiolitefocus.diffusion.guidance import guide
from audiolitefocus.diffusion.guided import GuidedNoise
from audiolitefocus.diffusion.network import Network, Run
from audiolitefocus.diffusion.prompts import Prompts
from audiolitefocus.diffusion.schedule import alphas_cumprod, timesteps_of
from audiolitefocus.models.layers import StepInputs
from scripts.reuse.rollouts import Rollouts, parser


def divergences(rollouts: Rollouts, drafter: AudioLDM2Pipeline, runs: int) -> Tensor:
    """(clips, steps): |a - b| / |a| of both models' guided noise."""
    found = []
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
            of_run.append((own - other).flatten(1).norm(dim=1) / own.flatten(1).norm(dim=1))
            return noise

        with torch.inference_mode():
            for _ in rollouts.run(number, compare):
                pass
        found.append(torch.stack(of_run, dim=1).cpu())
    return torch.cat(found)


@torch.inference_mode()
def predictor(
    rollouts: Rollouts, drafter: AudioLDM2Pipeline, number: int
) -> tuple[GuidedNoise, list[float]]:
    """The drafter's guided noise of the clips of a run, and the gains of its latents."""
    options, config = rollouts.options, rollouts.pipe.config
    timesteps = timesteps_of(options.sampler, rollouts.steps, config.schedule.train_steps)
    scale = drafter.config.vae.scale_factor / config.vae.scale_factor
    theirs, levels, gains = rescaled(timesteps, alphas_cumprod(config.schedule), scale)
    prompts = rollouts.batch(number)
    condition = drafter.encode_prompt(prompts)
    run = Run(
        len(prompts),
        condition,
        drafter.text.negative(None, condition, options.unconditional),
        options,
        theirs,
        levels,
        drafter.choose_attention(rollouts.chosen.attention, rollouts.seconds),
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
        found = divergences(rollouts, drafter, chosen.runs)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    mean = found.mean(0).tolist()
    start, stop = least_interval(mean, chosen.share)
    result = {
        "model": rollouts.pipe.config.name,
        "drafter": drafter.config.name,
        "seconds": rollouts.seconds,
        "options": {n: getattr(chosen, n) for n in ("steps", "sampler", "eta", "guidance_scale")},
        "clips": len(found),
        "divergence": mean,
        "lowest": found.amin(0).tolist(),
        "highest": found.amax(0).tolist(),
        "share": chosen.share,
        "drafter_interval": [start, stop],
    }
    with atomic_file(chosen.out) as beside:
        beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for step, value in enumerate(mean):
        print(f"{step:4} {value:.4f}")
    print(f"--drafter-interval {start:g}:{stop:g}")


if __name__ == "__main__":
    main()
