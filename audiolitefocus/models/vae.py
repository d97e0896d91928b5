"""The autoencoder between log-mel spectrograms (b, t, m) and latents (b, 8, t / 4, m / 4)."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from audiolitefocus.config import VAEConfig
from audiolitefocus.models.layers import Conv2d, Downsample, ResnetBlock, Upsample

EPS = 1e-6  # of every group norm here


class MiddleAttention(nn.Module):
    """Self-attention with one head of full width over all positions."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.norm(x), "b c f t -> b 1 (f t) c")  # one head
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        out = self.to_out(F.scaled_dot_product_attention(q, k, v))
        return x + rearrange(out, "b 1 (f t) c -> b c f t", f=x.shape[2])


class Middle(nn.Module):
    """The blocks between the levels and the latents."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnet_1 = ResnetBlock(channels, channels, groups, eps=EPS)
        self.attention = MiddleAttention(channels, groups)
        self.resnet_2 = ResnetBlock(channels, channels, groups, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.resnet_2(self.attention(self.resnet_1(x)))


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
        # log-mels are read in float32, and worked on in the dtype of the rest
        x = self.conv_in(x.to(self.conv_in.weight.dtype)).to(self.conv_out.weight.dtype)
        for level in self.levels:
            x = level(x)
        x = self.middle(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """(b, 8, f, t) -> (b, 1, 4 f, 4 t)."""

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
        x = self.middle(self.conv_in(x))
        for level in self.levels:
            x = level(x)
        # and written in float32
        return self.conv_out(F.silu(self.norm_out(x)).to(self.conv_out.weight.dtype))


class VAE(nn.Module):
    """Kingma and Welling's variational autoencoder, as AudioLDM2 trained it on log-mels."""

    # Layers that read or write log-mels: these reach from -12 to 3, where bfloat16 has steps of up
    # to 0.06. With a `conv_out` in bfloat16, waveforms of the demo's tones and of its silence
    # change by 0.1 nats of log-mel; with this one layer in float32, by 0.02.
    float32_weights = ("encoder.conv_in.", "decoder.conv_out.")

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
        moments = self.quant_conv(self.encoder(mel.mT[:, None]))  # b 16 f t
        # in training's bounds of the logarithm, so that exp() stays finite
        mean, log_variance = moments.mT.to(mel.dtype).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def decode(self, latents: Tensor) -> Tensor:
        """(b, 8, t, f) unscaled latents -> (b, 4 t, 4 f) log-mel.

        Unscaled are the denoiser's latents / config.scale_factor.
        """
        x = latents.mT.to(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(x))[:, 0].mT
