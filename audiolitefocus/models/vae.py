"""The autoencoder between log-mel spectrograms (b, t, m) and latents (b, 8, t / 4, m / 4)."""

from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from audiolitefocus.config import VAEConfig
from audiolitefocus.models.layers import Conv2d, Downsample, ResnetBlock, Upsample

EPS = 1e-6  # of every group norm here


class MiddleAttention(nn.Module):
    """One head of full width over all positions."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.attend(normed, normed)

    def attend(self, x: Tensor, clip: Tensor) -> Tensor:
        """What some frames of a clip, (b, c, f, n), hear from all of it, (b, c, f, t), both
        normalised: (b, c, f, n).

        No keys or values are made, which a long clip would have many of: a score, q . (W k + b), is
        (q W) . k plus what is the same for all keys; and since softmax weights make 1, values can
        be projected when they have been summed.
        """
        rows = x.shape[2]
        x, clip = (rearrange(y, "b c f t -> b 1 (f t) c") for y in (x, clip))
        q, k = self.to_q(x) @ self.to_k.weight, clip.contiguous()
        heard = self.to_out(self.to_v(F.scaled_dot_product_attention(q, k, k)))
        return rearrange(heard, "b 1 (f t) c -> b c f t", f=rows)


class Middle(nn.Module):
    """The blocks between the levels and the latents; its owner runs them."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnet_1 = ResnetBlock(channels, channels, groups, eps=EPS)
        self.attention = MiddleAttention(channels, groups)
        self.resnet_2 = ResnetBlock(channels, channels, groups, eps=EPS)

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.resnet_1, self.attention, self.resnet_2]


class Level(nn.Module):
    """Residual blocks at one resolution, then the step to the next one (if any)."""

    def __init__(
        self, in_channels: int, channels: int, resnets: int, groups: int, resample: nn.Module
    ):
        super().__init__()
        inputs = [in_channels] + [channels] * (resnets - 1)
        self.resnets = nn.ModuleList(ResnetBlock(c, channels, groups, eps=EPS) for c in inputs)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return self.resample(x)


class Encoder(nn.Module):
    """(b, 1, m, t) -> (b, 16, m / 4, t / 4): means and log-variances before `quant_conv`."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = config.channels, config.norm_groups
        inputs = (channels[0], *channels[:-1])
        steps = [Downsample(c, pad_both=False) for c in channels[:-1]] + [nn.Identity()]
        self.conv_in = Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.levels = nn.ModuleList(
            Level(i, c, config.resnets, groups, step)
            for i, c, step in zip(inputs, channels, steps, strict=True)
        )
        self.middle = Middle(channels[-1], groups)
        self.norm_out = nn.GroupNorm(groups, channels[-1], eps=EPS)
        self.conv_out = Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.blocks:
            x = block(x)
        return self.tail(x)

    def head(self, x: Tensor) -> Tensor:
        """Spectrogram to feature map (b, c, m / 4, t / 4)."""
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
        return x

    @property
    def blocks(self) -> list[nn.Module]:
        """What changes the map and keeps its shape."""
        return self.middle.blocks

    def tail(self, x: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """(b, 8, f, t) -> (b, 1, 4 f, 4 t)."""

    levels: Any  # mypy does not know what a ModuleList holds

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = config.channels[::-1], config.norm_groups
        inputs = (channels[0], *channels[:-1])
        steps = [Upsample(c) for c in channels[:-1]] + [nn.Identity()]
        self.conv_in = Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.middle = Middle(channels[0], groups)
        self.levels = nn.ModuleList(
            Level(i, c, config.resnets + 1, groups, step)
            for i, c, step in zip(inputs, channels, steps, strict=True)
        )
        self.norm_out = nn.GroupNorm(groups, channels[-1], eps=EPS)
        self.conv_out = Conv2d(channels[-1], config.in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.blocks:
            x = block(x)
        return self.tail(x)

    def head(self, x: Tensor) -> Tensor:
        """Latents to feature map (b, c, f, t)."""
        return self.conv_in(x)

    @property
    def blocks(self) -> list[nn.Module]:
        """What changes the map and keeps its shape."""
        return [*self.middle.blocks, *self.levels[0].resnets]

    def tail(self, x: Tensor) -> Tensor:
        """Feature map to spectrogram (b, 1, 4 f, 4 t)."""
        x = self.levels[0].resample(x)
        for level in self.levels[1:]:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VAE(nn.Module):
    """Kingma and Welling's variational autoencoder, as trained by AudioLDM2 on log-mel
    spectrograms.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def encode(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """(b, t, m) log-mel -> mean and log-variance, (b, 8, t / 4, m / 4) each, before scaling.

        The denoiser works on latents * config.scale_factor.
        """
        moments = self.quant_conv(self.encoder(mel.mT[:, None]))
        mean, log_variance = moments.mT.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def decode(self, latents: Tensor) -> Tensor:
        """(b, 8, t, f) unscaled latents, that is the denoiser's / config.scale_factor -> (b, 4 t, 4
        f) log-mel.
        """
        return self.decoder(self.post_quant_conv(latents.mT))[:, 0].mT
