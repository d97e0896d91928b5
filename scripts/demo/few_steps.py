"""Distil the demo model for few steps: an adapter with guidance baked in.

python -m scripts.demo.few_steps --out train/few-steps

It is `audiolitefocus finetune --distill lcm` on clips of the synthetic world, but for one thing:
the clips keep their loudness, of which captions tell, while recordings are all made equally loud.
A run that is cut off goes on where it stood when the same command is given again. In the end the
adapter is in OUT/adapter, in half precision.
"""

import argparse
import sys
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from audiolitefocus.checkpoints.adapters import write_adapter
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.training.adapters import as_saved
from audiolitefocus.training.loop import Finetune, check_folder
from audiolitefocus.training.settings import Finetuning
from scripts.demo.world.latents import encode_clips

GUIDANCE = 7.0  # which suits the demo model (weights/demo/README.md)
AVERAGE = 0.995  # decay: batches are small, and the weights waver


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the adapter and all else")
    add("--clips", type=Path, help="folder for rendered clips; default: clips in that folder")
    add("--thousands", type=int, default=4, help="of clips")
    add("--steps", type=int, default=650)
    add("--batch-size", type=int, default=12)
    add("--rank", type=int, default=16)
    add("--learning-rate", type=float, default=5e-4)
    add("--save-every", type=int, default=50)
    return parser.parse_args()


def run(chosen: argparse.Namespace) -> None:
    pipe = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")
    settings = Finetuning(
        steps=chosen.steps,
        batch_size=chosen.batch_size,
        rank=chosen.rank,
        learning_rate=chosen.learning_rate,
        average=AVERAGE,
        distill="lcm",
        guidance_scale=GUIDANCE,
        save_every=chosen.save_every,
    )
    chosen.out.mkdir(parents=True, exist_ok=True)
    check_folder(chosen.out, {"thousands": chosen.thousands, **settings.to_json()})
    examples = encode_clips(pipe, chosen.clips or chosen.out / "clips", chosen.thousands)
    training = Finetune(pipe, examples, settings, chosen.out, Accelerator(cpu=True))
    with tqdm(total=settings.steps, initial=training.done, unit="update", mininterval=20) as bar:

        def on_update(update: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            bar.update()

        training.run(on_update)
    halves = {name: mean.half() for name, mean in training.average.items()}
    folder = chosen.out / "adapter"
    folder.mkdir(exist_ok=True)
    write_adapter(folder, "demo", settings.rank, as_saved(halves), distilled=settings.distilled)


def main() -> None:
    try:
        run(arguments())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
