"""How a fine-tuning is done. Loads no torch."""

import dataclasses
from dataclasses import dataclass

from audiolitefocus.attention.settings import attention_text, parse_attention
from audiolitefocus.config import Distilled
from audiolitefocus.options import DEFAULTS
from audiolitefocus.validation import MAX_SECONDS, MIN_SECONDS, Choice, Number, Rule, check_rule

BOUNDS: dict[str, Rule] = {
    "steps": Number(1, 10_000_000, whole=True),
    "batch_size": Number(1, 4096, whole=True),
    "rank": Number(1, 1024, whole=True),
    "learning_rate": Number(0.0, 1.0, above=True),
    "dropped": Number(0.0, 1.0),
    "distill": Choice(("lcm",)),
    "guidance_scale": Number(1.0, 1000.0),
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
        distill: "lcm" for consistency distillation (`consistency.ConsistencyLoss`), after which few
            steps are enough; default: the usual loss, `objective.NoiseLoss`.
        guidance_scale: that distillation bakes in; default: 3.5, that of a call.
        dropped: the share of clips that are shown without their text, for guidance; default: 0.1,
            and none in distillation, after which nothing is evaluated without a text.
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
    distill: str | None = None
    guidance_scale: float | None = None
    dropped: float | None = None
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
        self._check_distillation()

    def _check_distillation(self) -> None:
        """Set what depends on `distill`. Raises ValueError for what does not go with it."""
        if self.distill is None and self.guidance_scale is not None:
            raise ValueError(f"guidance_scale {self.guidance_scale:g} is baked in by distill alone")
        if self.distill is not None and self.dropped:
            raise ValueError(
                f"dropped {self.dropped:g}: distilled weights are never evaluated without a text; "
                f"leave it out"
            )
        if self.distill is not None and self.guidance_scale is None:
            object.__setattr__(self, "guidance_scale", DEFAULTS["guidance_scale"])
        if self.dropped is None:
            object.__setattr__(self, "dropped", 0.1 if self.distill is None else 0.0)

    @property
    def distilled(self) -> Distilled | None:
        """What the weights say of themselves afterwards."""
        if self.distill is None:
            return None
        return Distilled(self.distill, self.guidance_scale or 1.0)

    def to_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)
