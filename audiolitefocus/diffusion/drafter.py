"""Two models in one trajectory: a drafter takes some of the steps of another model's run.

CoDe (Chen et al., CVPR 2025) has one model draft the coarse scales of an image, and another one go
on. Here the latents are all that a step hands to the next (as in T-Stitch, Pan et al., ICLR 2025),
so any model of the same latent space can take any of the steps.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from audiolitefocus.attention.settings import Attention
from audiolitefocus.config import BundleConfig
from audiolitefocus.diffusion.branches import OneNetwork
from audiolitefocus.diffusion.guided import GuidedNoise
from audiolitefocus.diffusion.network import Draws, Network, Run
from audiolitefocus.diffusion.prompts import Prompts
from audiolitefocus.diffusion.schedule import half_log_snr
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.vae import VAE
from audiolitefocus.options import GenerationOptions, OptionError
from audiolitefocus.validation import shown


@dataclass(frozen=True, eq=False)
class Drafter:
    """A second model for the clips of one call.

    Attributes:
        network, condition, negative, attention: its own.
        scale: of its latents, over that of the main model's.
    """

    network: Network
    condition: Condition
    negative: Condition | None
    attention: Attention = "dense"
    scale: float = 1.0

    def __getitem__(self, clips: slice) -> "Drafter":
        """The same for some of the clips."""
        negative = None if self.negative is None else self.negative[clips]
        return replace(self, condition=self.condition[clips], negative=negative)


class Model(Protocol):
    """What `check_drafter` looks at in a pipeline."""

    config: BundleConfig
    vae: VAE

    @property
    def device(self) -> torch.device: ...


class OneModel(Protocol):
    """Predicts the noise of a step.

    `afresh` gives another one for other latents, with nothing kept of earlier steps; `forget` is
    called where other models take the next ones.
    """

    def __call__(self, latents: Tensor, step: int) -> Tensor: ...

    def afresh(self) -> "OneModel": ...

    def forget(self) -> None: ...


class Turns:
    """Called with latents and the number of a step: the noise, by the model whose step it is.

    Args:
        main, drafter: of each model.
        drafted: the steps that the drafter takes.
        gains: of the latents that the drafter is given, step by step (`rescaled`).
    """

    def __init__(
        self,
        main: OneModel,
        drafter: OneModel,
        drafted: Container[int],
        gains: Sequence[float],
    ):
        self.main, self.drafter, self.drafted, self.gains = main, drafter, drafted, gains
        self.last: OneModel | None = None

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        drafts = step in self.drafted
        model = self.drafter if drafts else self.main
        if self.last is not None and self.last is not model:
            self.last.forget()
        self.last = model
        return model(latents * self.gains[step] if drafts else latents, step)

    def afresh(self) -> "Turns":
        return Turns(self.main.afresh(), self.drafter.afresh(), self.drafted, self.gains)

    def forget(self) -> None:
        for model in (self.main, self.drafter):
            model.forget()


def with_drafter(
    main: GuidedNoise, drafter: Drafter, run: Run, copies: int, alphas: Sequence[float]
) -> Turns:
    """Both models, each in its own steps.

    Args:
        main: of `run`, which has `copies` entries for each of the drafter's.
        alphas: `schedule.alphas_cumprod`, of both models.
    """
    timesteps, levels, gains = rescaled(run.timesteps, alphas, drafter.scale)
    theirs = Run(
        run.clips // copies,
        drafter.condition,
        drafter.negative,
        run.options,
        timesteps,
        levels,
        drafter.attention,
        Draws(drafter.network.unet, drafter.attention, *run.draws.shape),
        run.known,
    ).repeated(copies)
    drafts = GuidedNoise(theirs, OneNetwork(theirs, drafter.network))
    return Turns(main, drafts, run.options.drafted_steps, gains)


def rescaled(
    timesteps: Sequence[float], alphas: Sequence[float], scale: float
) -> tuple[Sequence[float], list[float], list[float]]:
    """Noisy latents as they are for a model whose clean latents are `scale` times as large.

    x = sqrt(a) z + sqrt(1 - a) e is, but for a factor g, what that model expects of the clean
    latents scale z at another level b: g x = sqrt(b) (scale z) + sqrt(1 - b) e, where b / (1 - b) =
    a / (1 - a) / scale^2 and g = sqrt((1 - b) / (1 - a)). The noise e, which it predicts, is the
    same; so samplers, and whatever they keep of earlier steps, stay in the main model's units.

    Args:
        timesteps: training steps that are visited.
        alphas: `schedule.alphas_cumprod`, of both models.

    Returns:
        For every step the other model's training step, with fractions, and as near as there is one;
        the level b; and the factor g. Unchanged where `scale` is 1.
    """
    levels = [alphas[int(t)] for t in timesteps]
    if scale == 1:
        return timesteps, levels, [1.0] * len(levels)
    theirs = [a / (a + (1 - a) * scale**2) for a in levels]
    gains = [((1 - b) / (1 - a)) ** 0.5 for a, b in zip(levels, theirs, strict=True)]
    positions = [-half_log_snr(a) for a in alphas]
    wanted = [-half_log_snr(b) for b in theirs]
    return np.interp(wanted, positions, np.arange(len(alphas))).tolist(), theirs, gains


def check_drafter(
    pipe: Model,
    drafter: Model | None,
    options: GenerationOptions,
    prompts: Prompts,
) -> None:
    """Raise ValueError unless a drafter can take steps of this pipeline's call.

    Both models must have the same latents up to their scale. Weights of the VAEs are compared by
    their digests or, where these differ or are unknown, as they are loaded.
    """
    if drafter is None:
        if options.drafter_interval is not None:
            raise OptionError("{drafter_interval} needs a second model: give it as drafter")
        return
    if not isinstance(drafter, type(pipe)):
        raise ValueError(
            f"drafter {shown(drafter)}: must be a pipeline; from_pretrained loads one by its name"
        )
    name, ours = f"drafter {drafter.config.name}", pipe.config.name
    if prompts.embeds is not None or prompts.negative_embeds is not None:
        raise ValueError(f"{name}: embeddings are those of one model: give prompts as texts")
    theirs = shape_of_latents(drafter.config)
    for what, value in shape_of_latents(pipe.config).items():
        if theirs[what] != value:
            raise ValueError(f"{name}: its {what}, {theirs[what]}, must be that of {ours}, {value}")
    if drafter.device != pipe.device:
        raise ValueError(f"{name} is on {drafter.device}, and {ours} on {pipe.device}: move one")
    digests = {model.config.files.get("vae.safetensors") for model in (pipe, drafter)}
    if (len(digests) > 1 or None in digests) and not same_weights(pipe.vae, drafter.vae):
        raise ValueError(f"{name}: its VAE must have the weights of that of {ours}")


def shape_of_latents(config: BundleConfig) -> dict[str, object]:
    """What two models must have in common, by name, besides the VAE's weights."""
    vocoder, schedule = config.vocoder, config.schedule
    return {
        "sampling rate": vocoder.sampling_rate,
        "hop length": vocoder.hop_length,
        "number of latent rows": vocoder.mel_bins // config.vae.downsampling,
        "number of latent channels": config.unet.in_channels,
        "distillation": config.distilled,
        "noise schedule": (schedule.train_steps, schedule.beta_start, schedule.beta_end),
    }


def same_weights(network: torch.nn.Module, other: torch.nn.Module) -> bool:
    """True if two networks have the same weights, whatever devices they are on."""
    ours, theirs = network.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor.float(), theirs[name].to(tensor.device).float())
        for name, tensor in ours.items()
    )
