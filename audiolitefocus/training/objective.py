"""What is minimised: how wrong the UNet is about the noise in a batch of clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from audiolitefocus.attention.settings import Attention
from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion.schedule import alphas_cumprod
from audiolitefocus.models.condition import Condition, stack_conditions
from audiolitefocus.models.unet import UNet
from audiolitefocus.training.encoded import Encoded

Network = Callable[..., Tensor]  # called as `UNet.forward` is


@dataclass(frozen=True)
class Batch:
    """Clips of one length, noise for them, and how much of it.

    Attributes:
        latents, noise: (b, 8, t, 16).
        condition: b entries; that of training without a text for clips that are shown without.
        steps: (b,) of the noise schedule.
        seed: of the indices that sparse attention samples.
        kept: how many clips, the last ones, are what the model must not forget (`kept.make_kept`).
    """

    latents: Tensor
    noise: Tensor
    condition: Condition
    steps: Tensor
    seed: int
    kept: int = 0

    def to(self, device: torch.device) -> "Batch":
        moved = ("latents", "noise", "condition", "steps")
        return replace(self, **{name: getattr(self, name).to(device) for name in moved})

    def last(self, count: int) -> "Batch":
        """So many clips, the last ones."""
        tensors = ("latents", "noise", "condition", "steps")
        return replace(self, **{name: getattr(self, name)[-count:] for name in tensors})


def draw_batch(
    examples: Sequence[Encoded],
    unconditional: Condition,
    frames: Sequence[int],
    size: int,
    generator: torch.Generator,
    *,
    dropped: float,
    train_steps: int,
    kept: Sequence[Encoded] = (),
) -> Batch:
    """Clips cut out of examples at random, all of one of the lengths.

    Args:
        frames: the lengths to choose from, none longer than an example.
        dropped: the share of clips that are shown without their text.
        kept: examples of what the model must not forget. Half of the batch, its last clips, are of
            these, and clips without their text are among them alone: the model's own answer to no
            text is to stay as it is too.
    """
    from_kept = size // 2 if kept else 0

    def below(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    length = frames[below(len(frames))]
    sources = [examples] * (size - from_kept) + [kept] * from_kept
    chosen = [source[below(len(source))] for source in sources]
    cut = []
    for example in chosen:
        first = below(example.latents.shape[1] - length + 1)
        cut.append(example.latents[:, first : first + length])
    without = torch.rand(size, generator=generator) < dropped
    if kept:
        without[: size - from_kept] = False
    conditions = [
        unconditional if hidden else example.condition
        for example, hidden in zip(chosen, without, strict=True)
    ]
    latents = torch.stack(cut)
    return Batch(
        latents,
        torch.randn(latents.shape, generator=generator),
        stack_conditions(conditions),
        torch.randint(train_steps, (size,), generator=generator),
        below(2**31),
        from_kept,
    )


class NoiseLoss(nn.Module):
    """Mean squared error of the predicted noise (Ho et al. 2020), weighted by the share of signal.

    With the weight min(SNR, gamma) / SNR, steps with little noise, whose error is easily made
    small, do not rule the others (min-SNR, Hang et al., ICCV 2023).

    Args:
        unet: trained.
        schedule: of its training.
        attention: "dense" or settings.
        gamma: the SNR up to which the error counts in full.
        teacher: what `unet` was before. Its noise is the target of clips that are kept.
    """

    alphas: Tensor
    weights: Tensor

    def __init__(
        self,
        unet: UNet,
        schedule: ScheduleConfig,
        attention: Attention,
        gamma: float,
        teacher: Network | None = None,
    ):
        super().__init__()
        self.unet, self.attention, self.teacher = unet, attention, teacher
        alphas = torch.tensor(alphas_cumprod(schedule), dtype=torch.float32)
        snr = alphas / (1 - alphas)
        self.register_buffer("alphas", alphas, persistent=False)
        self.register_buffer("weights", snr.clamp(max=gamma) / snr, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """The loss of every clip, (b,)."""
        alpha = self.alphas[batch.steps][:, None, None, None]
        noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise
        error = self.predict(self.unet, noisy, batch) - self.target(noisy, batch)
        return self.weights[batch.steps] * error.square().mean((1, 2, 3))

    def target(self, noisy: Tensor, batch: Batch) -> Tensor:
        """What the UNet has to predict."""
        if not batch.kept or self.teacher is None:
            return batch.noise
        with torch.no_grad():
            known = self.predict(self.teacher, noisy[-batch.kept :], batch.last(batch.kept))
        return torch.cat([batch.noise[: -batch.kept], known])

    def predict(self, network: Network, noisy: Tensor, batch: Batch) -> Tensor:
        """What a network called as `UNet.forward` predicts, float32."""
        generator = torch.Generator().manual_seed(batch.seed)
        return network(
            noisy, batch.steps, batch.condition, attention=self.attention, generator=generator
        ).float()
