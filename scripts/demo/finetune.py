"""Fine-tune the demo model on clips of its own world.

python -m scripts.demo.finetune --distill lcm --out train/few-steps
python -m scripts.demo.finetune --full --attention litefocus:0.1 \\
    --seconds 2.56 5.12 10.24 20.48 --out train/sparse

It is `audiolitefocus finetune`, but for one thing: the clips keep their loudness, of which captions
tell, while recordings are all made equally loud. A run that is cut off goes on where it stood when
the same command is given again. In the end OUT has an adapter in half precision, OUT/adapter, or
with --full a model, OUT/bundle.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from audiolitefocus.checkpoints.adapters import write_adapter
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.training.adapters import as_saved
from audiolitefocus.training.bundle import write_bundle
from audiolitefocus.training.loop import Finetune, check_folder
from audiolitefocus.training.settings import Finetuning
from audiolitefocus.training.updates import show_update
from scripts.demo.world.latents import encode_clips

GUIDANCE = 2.0  # which suits the demo model (docs/frontier.md)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for everything that is written")
    add("--encoded", type=Path, help="folder for latents of clips; default: encoded in --out")
    add("--thousands", type=int, default=4, help="of clips")
    add("--seconds", type=float, nargs="+", default=[], help="lengths; default: as trained")
    add("--attention", default="auto", help="as for audiolitefocus generate")
    add("--distill", help="lcm: an adapter for few steps, or with --full weights")
    add("--guidance-scale", type=float, default=GUIDANCE, help="baked in by --distill")
    add("--full", action="store_true", help="train all of the UNet")
    add("--steps", type=int, default=1500)
    add("--batch-size", type=int, default=12)
    add("--rank", type=int, default=16)
    add("--learning-rate", type=float, default=5e-4)
    add("--average", type=float, default=0.995, help="decay: batches are small, weights waver")
    add("--seed", type=int, default=0)
    add("--save-every", type=int, default=50)
    return parser.parse_args()


def run(chosen: argparse.Namespace) -> Path:
    """Train, and write the result. Returns its folder."""
    # 1. Model, settings, clips
    pipe = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")
    own = ("attention", "distill", "full", "steps", "batch_size", "rank", "learning_rate")
    settings = Finetuning(
        **{name: getattr(chosen, name) for name in (*own, "average", "seed", "save_every")},
        seconds=tuple(chosen.seconds),
        guidance_scale=chosen.guidance_scale if chosen.distill else None,
    )
    chosen.out.mkdir(parents=True, exist_ok=True)
    check_folder(chosen.out, {"thousands": chosen.thousands, **settings.to_json()})
    seconds = max(chosen.seconds, default=None)
    encoded = chosen.encoded or chosen.out / "encoded"
    examples = encode_clips(pipe, encoded, chosen.thousands, seconds)

    # 2. Train
    training = Finetune(pipe, examples, settings, chosen.out, Accelerator(cpu=True))
    with tqdm(total=settings.steps, initial=training.done, unit="update", mininterval=20) as bar:
        training.run(partial(show_update, bar))

    # 3. The result
    if settings.full:
        return write_bundle(training, chosen.out / "bundle")
    halves = {name: mean.half() for name, mean in training.updates.average.items()}
    folder = chosen.out / "adapter"
    folder.mkdir(exist_ok=True)
    write_adapter(folder, "demo", settings.rank, as_saved(halves), distilled=settings.distilled)
    return folder


def main() -> None:
    try:
        print(run(arguments()))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
