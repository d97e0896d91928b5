"""The learning of what may stay of a UNet: updates, and states to go on from."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from audiolitefocus.attention.settings import Attention
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.training.adapters import add_adapters
from audiolitefocus.training.encoded import Encoded
from audiolitefocus.training.loop import STATE, unconditional
from audiolitefocus.training.objective import draw_batch
from audiolitefocus.training.settings import Finetuning
from audiolitefocus.training.updates import Updates
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
        self.masked = MaskedUNet(pipe.unet, choices)
        schedule = pipe.config.schedule
        loss = DistillationLoss(self.masked, teacher, schedule, attention, settings.snr_gamma)
        self.loss = loss.to(pipe.device)
        self.updates = Updates(
            self.masked, settings.learning_rate or 0.0, rates={"logits": gates_rate}
        )
        # 2. Where it stands
        self.losses: list[float] = self.updates.resume(self.path).get("losses", [])

    @property
    def done(self) -> int:
        """Updates so far."""
        return self.updates.done

    def run(self, on_update: Callable[[int, float], object] = lambda update, loss: None) -> None:
        """Learn to the end; `on_update` is called with the number of updates and the loss."""
        steps, save_every = self.settings.steps, self.settings.save_every
        while self.done < steps:
            self.losses.append(self._update())
            on_update(self.done, self.losses[-1])
            if self.done % save_every == 0 or self.done == steps:
                self.updates.save(self.path, losses=self.losses)

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
            dropped=settings.dropped or 0.0,
            train_steps=self.pipe.config.schedule.train_steps,
        )
        loss = self.loss(batch.to(self.pipe.device)).mean()
        loss.backward()
        self.updates.update()
        return float(loss.detach())

    @torch.no_grad()
    def chosen(self) -> tuple[int, ...]:
        """The most probable choices that keep to the budget."""
        return self.choices.best(self.masked.log_probabilities().cpu())
