"""The noise that one model predicts, guided."""

from copy import copy

from torch import Tensor

from audiolitefocus.diffusion.branches import Branches
from audiolitefocus.diffusion.guidance import Agreement, guidance_scales
from audiolitefocus.diffusion.network import Run


class GuidedNoise:
    """Called with latents and the number of a step: the noise in them, guided.

    Args:
        run, branches: the call, and what predicts the noise in it.
    """

    def __init__(self, run: Run, branches: Branches):
        self.branches, self.levels = branches, run.levels
        interval, steps = run.options.guidance_interval or (0.0, 1.0), len(run.timesteps)
        scale = run.options.guidance_scale if run.negative is not None else 1.0
        self.scales = guidance_scales(scale, interval, steps)
        self.agreement = Agreement(run.options.adaptive_guidance, run.clips)

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        """(clips, 8, t, 16) -> as many, float32."""
        guided = self.scales[step] != 1 and not self.agreement.of_all()
        noise = self.branches(latents, step, 2 if guided else 1)
        noise = noise.to(latents.device, non_blocking=True)
        if not guided:
            return noise
        return self.agreement.guide(noise, self.scales[step], latents, self.levels[step])

    def afresh(self) -> "GuidedNoise":
        """The same for other latents, with nothing kept of earlier steps."""
        other = copy(self)
        other.branches, other.agreement = self.branches.afresh(), self.agreement.afresh()
        return other

    def forget(self) -> None:
        """Drop what steps have kept for later ones, where another model takes the next ones."""
        self.branches.forget()
