"""How a fine-tuning is done. Loads no torch."""

import dataclasses
from dataclasses import dataclass

from audiolitefocus.attention.settings import attention_text, parse_attention
from audiolitefocus.validation import MAX_SECONDS, MIN_SECONDS, Number, check_rule

BOUNDS = {
    "steps": Number(1, 10_000_000, whole=True),
    "batch_size": Number(1, 4096, whole=True),
    "rank": Number(1, 1024, whole=True),
    "learning_rate": Number(0.0, 1.0, above=True),
    "dropped": Number(0.0, 1.0),
    "snr_gamma": Number(0.0, 1e6, above=True),
    "average": Number(0.0, 1.0),
    "seed": Number(0, 2**31 - 1, whole=True),
    "save_every": Number(1, 10_000_000, whole=True),
    "warmup": Number(0, 10_000_000, whole=True),
    "accumulate": Number(1, 4096, whole=True),
}


@dataclass(frozen=True)
class Finetuning:
    """Every choice of a fine-tuning.

    Attributes:
        steps: updates of the weights.
        batch_size: clips an evaluation, on every device.
        accumulate: evaluations an update.
        rank: of the adapters (LoRA, Hu et al. 2022), which have as much alpha; not with `full`.
        full: train the whole UNet instead.
        learning_rate: default: 1e-4 for adapters, 1e-5 for the whole UNet; it rises over `warmup`
            updates.
        seconds: lengths of clips, one of which is chosen for each batch; default: as the model was
            trained.
        attention: as at inference; "auto" is what the longest of the lengths would get.
        dropped: the share of clips that are shown without their text, for guidance.
        snr_gamma: see `objective.NoiseLoss`.
        average: decay of the average of the weights that is saved; 0: the last ones are.
        checkpointing: compute activations again on the way back: less memory, a third slower.
        seed: of batches and noise.
        save_every: updates between two saved states, from which a killed run goes on.

    Raises:
        ValueError: a value out of bounds.
    """

    steps: int = 1000
    batch_size: int = 4
    accumulate: int = 1
    rank: int = 16
    full: bool = False
    learning_rate: float | None = None
    warmup: int = 50
    seconds: tuple[float, ...] = ()
    attention: str = "auto"
    dropped: float = 0.1
    snr_gamma: float = 5.0
    average: float = 0.99
    checkpointing: bool = False
    seed: int = 0
    save_every: int = 200

    def __post_init__(self):
        for name, rule in BOUNDS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check_rule(name, value, rule))
        for seconds in self.seconds:
            check_rule("seconds", seconds, Number(MIN_SECONDS, MAX_SECONDS))
        object.__setattr__(self, "attention", attention_text(parse_attention(self.attention)))
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", 1e-5 if self.full else 1e-4)

    def to_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)
