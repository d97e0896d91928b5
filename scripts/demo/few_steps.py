"""Distil the demo model for few steps: an adapter with guidance baked in.

python -m scripts.demo.few_steps --out train/few-steps --steps 2000 --rank 16

It is `audiolitefocus finetune --distill lcm` on clips of the synthetic world, but for one thing:
the clips keep their loudness, of which captions tell, while recordings are all made equally loud.
A run that is cut off goes on where it stood when the same command is given again. In the end the
adapter is in OUT/adapter, in half precision.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from audiolitefocus.atomic import atomic_file
from audiolitefocus.checkpoints.adapters import write_adapter
from audiolitefocus.checkpoints.tensors import open_safetensors, save_tensors
from audiolitefocus.codec.decode import encode_mel
from audiolitefocus.models.condition import Condition
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.training.adapters import as_saved
from audiolitefocus.training.encoded import Encoded
from audiolitefocus.training.loop import Finetune, check_folder
from audiolitefocus.training.settings import Finetuning
from scripts.demo.world.clips import CHUNK, chunk, shown
from scripts.demo.world.sounds import draw

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
    add("--steps", type=int, default=2000)
    add("--batch-size", type=int, default=12)
    add("--rank", type=int, default=16)
    add("--full", action="store_true", help="train all of the UNet")
    add("--learning-rate", type=float, default=2e-4)
    add("--save-every", type=int, default=100)
    return parser.parse_args()


@torch.inference_mode()
def encode_clips(pipe: AudioLDM2Pipeline, folder: Path, thousands: int) -> list[Encoded]:
    """The clips of the world's first seeds, from `folder` once they are there, as often as `shown`
    has them.
    """
    latents = np.concatenate([_latents(pipe, folder, index) for index in range(thousands)])
    condition = _condition(pipe, folder / f"conditions-{thousands}.safetensors", thousands)
    return [
        Encoded(torch.from_numpy(latents[i]), condition[slice(i, i + 1)]) for i in shown(thousands)
    ]


def _latents(pipe: AudioLDM2Pipeline, folder: Path, index: int) -> np.ndarray:
    """Scaled means of a thousand clips, (1000, 8, 64, 16)."""
    path = folder / f"latents-{index:03d}.npy"
    if not path.is_file():
        mels = torch.from_numpy(chunk(folder, index)[1].astype(np.float32))
        weight = next(pipe.vae.parameters())
        means = torch.cat([encode_mel(pipe.vae, mel.to(weight)).cpu() for mel in mels.split(25)])
        with atomic_file(path) as part, part.open("wb") as file:
            np.save(file, (means * pipe.config.vae.scale_factor).float().numpy())
    return np.load(path)


def _condition(pipe: AudioLDM2Pipeline, path: Path, thousands: int) -> Condition:
    """Of all captions, one entry a clip."""
    if not path.is_file():
        captions = [draw(seed).caption for seed in range(CHUNK * thousands)]
        found = pipe.encode_prompt(captions)
        with atomic_file(path) as part:
            save_tensors(part, {name: value.cpu() for name, value in vars(found).items()})
    with open_safetensors(path) as file:
        return Condition(**{name: file.get_tensor(name) for name in ("loa", "t5", "t5_mask")})


def run(chosen: argparse.Namespace) -> None:
    pipe = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")
    settings = Finetuning(
        steps=chosen.steps,
        batch_size=chosen.batch_size,
        rank=chosen.rank,
        full=chosen.full,
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
