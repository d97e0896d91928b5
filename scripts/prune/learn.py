"""Learn which transformers of a UNet to leave out: TinyFusion (Fang et al., CVPR 2025).

python -m scripts.prune.learn SOUNDS --model audioldm2 --budget 0.65 --out pruned
python -m scripts.prune.recover SOUNDS --model pruned/bundle --teacher audioldm2 --out recovered

For every residual block, probabilities of what stays of the transformers after it ("self", "loa",
"t5") are learnt: at each update every clip has a choice drawn from them. Adapters (LoRA) are
trained at the same time, so that a choice is judged by how well a UNet that adapts to it does, and
not by what it does right after the cut. In expectation the choices of every update cost the budget
(operations of an evaluation, as a share of the whole UNet's); in the end the most probable ones
that keep to it are taken. Of every text source some transformer stays.

The paper has N of M layers of each block stay, and the loss of denoising. Here the budget is one of
all residual blocks, as transformers of different levels cost different amounts, and the loss is
that of the recovery: the whole UNet's noise says what the clip's does, with less chance in it.

OUT has the choices (choice.json), and in OUT/bundle the model without what does not stay, its other
weights as they were: recovery comes after it. The adapters are thrown away. The same command goes
on where it was cut off.
"""

import argparse
import json
import sys
from functools import partial

import torch
from tqdm import tqdm

from audiolitefocus.atomic import atomic_file
from audiolitefocus.attention.settings import attention_text
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.training.loop import check_folder
from audiolitefocus.training.settings import Finetuning
from audiolitefocus.training.updates import show_update
from audiolitefocus.validation import Number, check_rule
from scripts.prune.bundle import write_pruned
from scripts.prune.choices import Choices
from scripts.prune.data import load_examples, parser
from scripts.prune.masks import MaskLearning

CHOICE = "choice.json"
BUDGET = Number(0.0, 1.0, above=True)


def summary(learning: MaskLearning, about: dict[str, object]) -> dict[str, object]:
    """What choice.json has: the choices, what they cost, and how sure they are."""
    choices, made = learning.choices, learning.chosen()
    with torch.no_grad():
        probabilities = learning.masked.log_probabilities().exp().cpu()
    places = []
    for place, number, row in zip(choices.places, made, probabilities, strict=True):
        labels = ["+".join(choices.kept(n)) or "none" for n in range(len(row))]
        places.append(
            {
                "place": place[0].rpartition(".transformers.")[0],
                "stays": choices.kept(number),
                "probabilities": {
                    label: round(float(p), 4) for label, p in zip(labels, row, strict=True)
                },
            }
        )
    return {
        **about,
        "updates": learning.done,
        "operations": choices.cost(made),
        "absent": choices.absent(made),
        "places": places,
        "losses": [round(loss, 6) for loss in learning.losses],
    }


def run(chosen: argparse.Namespace) -> dict[str, object]:
    """Learn, write the choices and the bundle."""
    # 1. Model, settings, budget
    budget = check_rule("--budget", chosen.budget, BUDGET)
    gates_rate = check_rule("--gates-rate", chosen.gates_rate, Number(0.0, 10.0, above=True))
    pipe = AudioLDM2Pipeline.from_pretrained(chosen.model, device=chosen.device)
    seconds = chosen.seconds or pipe.config.trained_seconds
    attention = pipe.choose_attention(chosen.attention, seconds)
    settings = Finetuning(
        steps=chosen.steps,
        batch_size=chosen.batch_size,
        rank=chosen.rank,
        learning_rate=chosen.learning_rate,
        seconds=(seconds,),
        attention=attention_text(attention),
        seed=chosen.seed,
        save_every=chosen.save_every,
    )
    choices = Choices(pipe.config, seconds, attention, budget)

    # 2. Sounds, folder
    about = {
        "model": pipe.config.name,
        "unet": pipe.config.files.get("unet.safetensors"),
        "budget": budget,
        "gates_rate": gates_rate,
        **settings.to_json(),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    check_folder(chosen.out, about)
    examples = load_examples(pipe, chosen, seconds)

    # 3. Learn
    learning = MaskLearning(pipe, examples, settings, gates_rate, choices, attention, chosen.out)
    with tqdm(total=settings.steps, initial=learning.done, unit="update", mininterval=5) as bar:
        learning.run(partial(show_update, bar))

    # 4. Results
    found = summary(learning, about)
    with atomic_file(chosen.out / CHOICE) as part:
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    how = f"learnt in {learning.done} updates for a budget of {budget:g}"
    absent, name = learning.choices.absent(learning.chosen()), f"{pipe.config.name}-pruned"
    write_pruned(pipe.folder, chosen.out / "bundle", absent, name, how, force=True)
    return found


def main() -> None:
    options = parser(__doc__, steps=1000, batch_size=16)
    options.add_argument("--model", default="audioldm2", help="a bundle")
    options.add_argument("--budget", type=float, required=True, help="operations, of the whole")
    options.add_argument("--rank", type=int, default=8, help="of the adapters")
    options.add_argument("--learning-rate", type=float, default=1e-4, help="of the adapters")
    options.add_argument("--gates-rate", type=float, default=0.1, help="of the probabilities")
    chosen = options.parse_args()
    try:
        found = run(chosen)
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"error: {error}")
    print(f"{chosen.out}: {found['operations']:.3f} of the operations")
    for place in found["places"]:  # type: ignore[attr-defined]
        print(f"  {place['place']}: {', '.join(place['stays']) or 'none'}")


if __name__ == "__main__":
    main()
