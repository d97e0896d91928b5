"""Fine-tuning of a UNet: what it learns from which batches, in a folder."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audiolitefocus.atomic import atomic_file
from audiolitefocus.attention.settings import Attention
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.checkpoints.adapters import write_adapter
from audiolitefocus.models.condition import Condition
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.training.adapters import (
    add_adapters,
    as_saved,
    frozen_teacher,
    recompute_activations,
)
from audiolitefocus.training.consistency import ConsistencyLoss, Network
from audiolitefocus.training.encoded import Encoded
from audiolitefocus.training.objective import Batch, NoiseLoss, draw_batch
from audiolitefocus.training.settings import Finetuning
from audiolitefocus.training.updates import Updates, write_table

STATE, SETTINGS, LOSSES = "state.pt", "training.json", "loss.csv"


class Finetune:
    """A fine-tuning in a folder, which goes on where it was cut off.

    Batch and noise of an update depend on the seed and its number alone, so that a run that was cut
    off ends with the weights of one that was not, on a CPU bit for bit. Processes share an update
    out: n of them take the batches that one takes with n times as many to accumulate.

    Args:
        pipe: its UNet is trained in place, on the device of the accelerator.
        examples: at least as long as the longest of the lengths.
        settings: of the training.
        folder: for states, losses and the result.
        accelerator: of accelerate: device, mixed precision, other processes.
        kept: clips of what the model must not forget (`kept.make_kept`); not in distillation.

    Raises:
        ValueError: the folder holds a training with other settings, or a damaged state.
    """

    def __init__(
        self,
        pipe: AudioLDM2Pipeline,
        examples: Sequence[Encoded],
        settings: Finetuning,
        folder: Path,
        accelerator: Any,
        kept: Sequence[Encoded] = (),
    ):
        self.pipe, self.examples, self.settings, self.kept = pipe, examples, settings, kept
        self.folder, self.accelerator = folder, accelerator
        lengths = settings.seconds or (pipe.config.trained_seconds,)
        self.frames = [ClipLength(s, pipe.config).latent_frames for s in lengths]
        self.unconditional = unconditional(pipe)
        # 1. What is trained
        unet = pipe.unet.to(accelerator.device)
        taught = bool(settings.distill or kept)
        teacher = frozen_teacher(unet, full=settings.full) if taught else None
        if settings.full:
            unet.requires_grad_(True)
        else:
            add_adapters(unet, settings.rank, settings.seed, time=settings.distill is not None)
        if settings.checkpointing:
            recompute_activations(unet)
        rate = settings.learning_rate or 0.0
        self.updates = Updates(unet, rate, average=settings.average)
        # 2. On what
        attention = pipe.choose_attention(settings.attention, max(lengths))
        loss = self._objective(attention, teacher).to(accelerator.device)
        prepared = accelerator.prepare(loss, self.updates.optimizer)
        self.loss, self.updates.optimizer = prepared
        pipe.config = replace(pipe.config, distilled=settings.distilled)
        # 3. Where it stands
        found = self.updates.resume(folder / STATE)
        self.losses: list[tuple[int, float]] = found.get("losses", [])

    @property
    def done(self) -> int:
        """Updates so far."""
        return self.updates.done

    def _objective(self, attention: Attention, teacher: Network | None) -> nn.Module:
        """What is minimised."""
        unet, schedule, settings = self.pipe.unet, self.pipe.config.schedule, self.settings
        if teacher is None or not settings.distill:
            return NoiseLoss(unet, schedule, attention, settings.snr_gamma, teacher)
        without, scale = self.unconditional.to(self.accelerator.device), settings.guidance_scale
        return ConsistencyLoss(unet, teacher, schedule, attention, scale or 1.0, without)

    def run(self, on_update: Callable[[int, float], object] = lambda update, loss: None) -> None:
        """Train to the end; `on_update` is called with the number of updates and the loss."""
        settings = self.settings
        while self.done < settings.steps:
            loss = self._update()
            self.losses.append((self.done, loss))
            on_update(self.done, loss)
            if self.done % settings.save_every == 0 or self.done == settings.steps:
                self.save()

    def save(self) -> None:
        """State, losses and the result so far, each whole or not at all."""
        if not self.accelerator.is_main_process:
            return
        rows = [(step, f"{loss:.6g}") for step, loss in self.losses]
        self.updates.save(self.folder / STATE, losses=self.losses)
        write_table(self.folder / LOSSES, [("step", "loss"), *rows])
        if not self.settings.full:
            pipe, rank = self.pipe, self.settings.rank
            tensors = {name: mean.cpu() for name, mean in self.updates.average.items()}
            distilled = self.settings.distilled
            write_adapter(
                self.folder, pipe.config.name, rank, as_saved(tensors), distilled=distilled
            )

    def _update(self) -> float:
        """One update of the weights; returns the mean loss of its clips, of all processes."""
        settings, total = self.settings, torch.zeros((), device=self.accelerator.device)
        for part in range(settings.accumulate):
            batch = self._batch(part).to(self.accelerator.device)
            last = part == settings.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.loss):
                loss = self.loss(batch).mean() / settings.accumulate
                self.accelerator.backward(loss)
            total += loss.detach()
        warm = min(1.0, (self.done + 1) / max(1, settings.warmup))
        self.updates.update(warm, self.accelerator.clip_grad_norm_)
        return float(self.accelerator.reduce(total, "mean"))

    def _batch(self, part: int) -> Batch:
        """A batch of the next update: its first, second, ... on this process."""
        processes, own = self.accelerator.num_processes, self.accelerator.process_index
        place = self.settings.seed, self.done, part * processes + own
        return draw_batch(
            self.examples,
            self.unconditional,
            self.frames,
            self.settings.batch_size,
            torch.Generator().manual_seed(_seed(*place)),
            dropped=self.settings.dropped or 0.0,
            train_steps=self.pipe.config.schedule.train_steps,
            kept=self.kept,
        )


def check_folder(folder: Path, about: Mapping[str, object]) -> None:
    """Write what is trained, and how, or compare it with what is there: `steps` may differ.

    Raises:
        ValueError: the folder holds a training with other settings.
    """
    path = folder / SETTINGS
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, value in json.loads(json.dumps(about)).items():
            if name not in ("steps", "save_every") and found.get(name) != value:
                raise ValueError(
                    f"{folder} holds a training with {name} {found.get(name)}, not {value}: name "
                    f"another folder"
                )
    with atomic_file(path) as part:
        part.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def unconditional(pipe: AudioLDM2Pipeline) -> Condition:
    """The condition of clips without a text, on the CPU."""
    with pipe.on_device(pipe.text):
        return pipe.text.unconditional(1).to("cpu")


def _seed(*place: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(place).encode()).digest()[:4], "big")
