"""Consistency distillation: the student learns in one step what a guided teacher does in many."""

import torch
from torch import Tensor, nn

from audiolitefocus.attention.settings import Attention
from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion.guidance import guide
from audiolitefocus.diffusion.schedule import alphas_cumprod, boundary, consistency_grid
from audiolitefocus.models.condition import Condition, repeat_condition, stack_conditions
from audiolitefocus.models.unet import UNet
from audiolitefocus.training.objective import Batch, Network

HUBER = 5.4e-4  # of the root mean square, below which the loss is a square


class ConsistencyLoss(nn.Module):
    """Latent consistency distillation (Luo et al. 2023, "Latent Consistency Models", algorithm 1).

    The function f(x, t) = c_skip x + c_out x0(x, t) has to give the same clean latents from every
    point of a trajectory. Here: from x_t, and from where one DDIM step (Song et al. 2021) with the
    teacher's guided noise leads from there. The second is a target without a gradient, of the
    student's own weights: the average of them that the paper has was found worse in training
    without a teacher (Song and Dhariwal, "Improved techniques ...", 2023, section 3.2).

    The distance of both is the pseudo-Huber one of a whole clip (ibid., section 3.3): taken number
    by number, as the authors of LCM have it, it is a median, which leaves out what is rare. It is
    weighted by sqrt(alpha). An error of the noise is sqrt((1 - alpha) / alpha) times as large in
    clean latents, 84 times at AudioLDM2's last step: without weights, noisy clips spoil the others.

    Args:
        unet: trained.
        teacher: what `unet` was before; nothing of it is trained.
        schedule: of the teacher's training.
        attention: "dense" or settings, of all evaluations.
        guidance_scale: to bake in, as `guidance.guide` takes it.
        unconditional: condition of the teacher's other half, one entry.
    """

    alphas: Tensor
    times: Tensor
    weights: Tensor
    skips: Tensor
    outs: Tensor

    def __init__(
        self,
        unet: UNet,
        teacher: Network,
        schedule: ScheduleConfig,
        attention: Attention,
        guidance_scale: float,
        unconditional: Condition,
    ):
        super().__init__()
        self.unet, self.teacher, self.attention = unet, teacher, attention
        self.guidance_scale, self.unconditional = guidance_scale, unconditional
        self.train_steps = schedule.train_steps
        # the grid, and the end of the trajectory before it
        times, alphas = [0, *consistency_grid(schedule.train_steps)], alphas_cumprod(schedule)
        skips, outs = zip(*map(boundary, times), strict=True)
        tables = {"alphas": [alphas[t] for t in times], "skips": skips, "outs": outs}
        tables["weights"] = [alphas[t] ** 0.5 for t in times]
        for name, table in tables.items():
            self.register_buffer(name, torch.tensor(table), persistent=False)
        self.register_buffer("times", torch.tensor(times), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """The loss of every clip, (b,)."""
        # 1. Noisy latents at a point of the grid, of which `batch.steps` is the share
        place = 1 + batch.steps * (len(self.times) - 1) // self.train_steps
        alpha = _per_clip(self.alphas[place])
        noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise

        # 2. The next point of the teacher's trajectory, and where the student thinks that it leads
        with torch.no_grad():
            after = self._follow_teacher(noisy, place, batch)
            target = self._clean(after, place - 1, batch)

        # 3. It has to think the same of the first one
        error = self._clean(noisy, place, batch) - target
        distance = (error.square().mean((1, 2, 3)) + HUBER**2).sqrt() - HUBER
        return self.weights[place] * distance

    def _follow_teacher(self, noisy: Tensor, place: Tensor, batch: Batch) -> Tensor:
        """One DDIM step along the grid with guided noise (Luo et al. 2023, equation 14)."""
        negative = repeat_condition(self.unconditional, len(noisy))
        both = stack_conditions([negative, batch.condition])
        twice = noisy.repeat(2, 1, 1, 1), place.repeat(2)
        noise = guide(self._evaluate(self.teacher, *twice, both, batch), self.guidance_scale)
        alpha, alpha_next = _per_clip(self.alphas[place]), _per_clip(self.alphas[place - 1])
        clean = (noisy - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        return alpha_next.sqrt() * clean + (1 - alpha_next).sqrt() * noise

    def _clean(self, noisy: Tensor, place: Tensor, batch: Batch) -> Tensor:
        """f(x, t) of the student."""
        noise = self._evaluate(self.unet, noisy, place, batch.condition, batch)
        alpha = _per_clip(self.alphas[place])
        clean = (noisy - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        return _per_clip(self.skips[place]) * noisy + _per_clip(self.outs[place]) * clean

    def _evaluate(
        self, network: Network, noisy: Tensor, place: Tensor, condition: Condition, batch: Batch
    ) -> Tensor:
        """The noise, float32, with the same indices of sparse attention in every evaluation."""
        generator = torch.Generator().manual_seed(batch.seed)
        times = self.times[place]
        return network(
            noisy, times, condition, attention=self.attention, generator=generator
        ).float()


def _per_clip(table: Tensor) -> Tensor:
    """(b,) -> (b, 1, 1, 1)."""
    return table[:, None, None, None]
