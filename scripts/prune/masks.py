"""The learning of what may stay of a UNet: updates, and states to go on from."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from audiolitefocus.atomic import atomic_file
from audiolitefocus.attention.settings import Attention
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.training.adapters import add_adapters, trained
from audiolitefocus.training.encoded import Encoded
from audiolitefocus.training.loop import BETAS, CLIP, STATE, unconditional
from audiolitefocus.training.objective import draw_batch
from audiolitefocus.training.settings import Finetuning
from scripts.prune.choices import Choices
from scripts.prune.gates import MaskedUNet
from scripts.prune.objective import DistillationLoss

HOTTEST, COLDEST = 4.0, 0.1  # temperature in the first update and in the last one, as the paper's


class MaskLearning:
    """Learns the choices of a UNet's places, in a folder, and goes on where it was cut off.

    What an update draws depends on the seed and its number alone.

    Args:
        pipe: its UNet gets adapters.
        examples: to learn from.
        settings: steps, batch size, rank and learning rate of the adapters, clip length, seed.
        gates_rate: learning rate of the logits of the choices.
        choices: see `Choices`.
        attention: "dense" or settings.
        folder: for the state.

    Raises:
        ValueError: a damaged state.
    """

    def __init__(
        self,
        pipe: AudioLDM2Pipeline,
        examples: Sequence[Encoded],
        settings: Finetuning,
        gates_rate: float,
        choices: Choices,
        attention: Attention,
        folder: Path,
    ):
        self.pipe, self.examples, self.settings = pipe, examples, settings
        self.choices, self.path = choices, folder / STATE
        self.frames = [ClipLength(s, pipe.config).latent_frames for s in settings.seconds]
        self.unconditional = unconditional(pipe)
        # 1. What is trained, and against what
        teacher = copy.deepcopy(pipe.unet)
        add_adapters(pipe.unet, settings.rank, settings.seed)
        adapters = list(trained(pipe.unet).values())
        self.masked = MaskedUNet(pipe.unet, choices)
        schedule = pipe.config.schedule
        loss = DistillationLoss(self.masked, teacher, schedule, attention, settings.snr_gamma)
        self.loss = loss.to(pipe.device)
        self.parameters = [*adapters, self.masked.logits]
        groups = [
            {"params": adapters, "lr": settings.learning_rate},
            {"params": [self.masked.logits], "lr": gates_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0)
        # 2. Where it stands
        self.losses: list[float] = []
        if self.path.exists():
            self._resume()

    @property
    def done(self) -> int:
        """Updates so far."""
        return len(self.losses)

    def run(self, on_update: Callable[[float], object] = lambda loss: None) -> None:
        """Learn to the end."""
        steps, save_every = self.settings.steps, self.settings.save_every
        while self.done < steps:
            self.losses.append(self._update())
            on_update(self.losses[-1])
            if self.done % save_every == 0 or self.done == steps:
                self.save()

    def _update(self) -> float:
        """One update of adapters and logits; returns the loss."""
        settings = self.settings
        share = self.done / max(1, settings.steps - 1)
        self.masked.temperature = HOTTEST + share * (COLDEST - HOTTEST)
        batch = draw_batch(
            self.examples,
            self.unconditional,
            self.frames,
            settings.batch_size,
            torch.Generator().manual_seed(settings.seed * 1_000_003 + self.done),
            dropped=settings.dropped,
            train_steps=self.pipe.config.schedule.train_steps,
        )
        loss = self.loss(batch.to(self.pipe.device)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        if not torch.isfinite(norm):
            raise ValueError(
                f"update {self.done + 1}: the gradient is not finite; begin anew with a lower "
                f"learning rate than {settings.learning_rate:g}"
            )
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def chosen(self) -> tuple[int, ...]:
        """The most probable choices that keep to the budget."""
        return self.choices.best(self.masked.log_probabilities().cpu())

    def save(self) -> None:
        state = {
            "trained": [parameter.detach().cpu() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
        }
        with atomic_file(self.path) as part:
            torch.save(state, part)

    def _resume(self) -> None:
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            with torch.no_grad():
                for parameter, tensor in zip(self.parameters, state["trained"], strict=True):
                    parameter.copy_(tensor)
            self.optimizer.load_state_dict(state["optimizer"])
            self.losses = [float(loss) for loss in state["losses"]]
        except Exception as error:  # torch.load raises whatever a damaged file leads it to
            raise ValueError(
                f"{self.path} is damaged or of another training ({str(error).splitlines()[0]}); "
                f"remove it to begin anew"
            ) from None
