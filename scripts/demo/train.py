"""Train the demo model, stage by stage, on the synthetic world of `sounds`.

python -m scripts.demo.train --out train --stage vae --minutes 20

A stage that is cut off goes on where it stood when the same command is given again. Every stage
writes to its own folder: checkpoint.pt, curve.csv and what the next stages need.
"""

import argparse
from pathlib import Path

from scripts.demo.loop import Run
from scripts.demo.stages.bundle import make_bundle
from scripts.demo.stages.clap import train_clap
from scripts.demo.stages.classifier import train_classifier
from scripts.demo.stages.diffusion import train_diffusion
from scripts.demo.stages.round_trip import report
from scripts.demo.stages.vae import train_vae
from scripts.demo.stages.vocoder import train_vocoder

STAGES = {
    "vae": train_vae,
    "vocoder": train_vocoder,
    "clap": train_clap,
    "diffusion": train_diffusion,
    "classifier": train_classifier,
    "report": report,
    "bundle": make_bundle,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where it is safe")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="of the stage; by default what it needs")
    length.add_argument("--minutes", type=float, help="of the stage, instead of steps")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = vars(parse())
    stage = arguments.pop("stage")
    try:
        arguments["out"].mkdir(parents=True, exist_ok=True)
        run = Run(**arguments)
        for name in STAGES if stage == "all" else [stage]:
            STAGES[name](run)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
