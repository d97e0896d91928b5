"""What a checkpoint is made of: frozen architecture configs, their JSON, and the names of known
models.

Every default is `audioldm2`'s (the original audioldm2-full). Run-time choices (steps, guidance,
seed, attention) are not here: they belong to a call, not to a checkpoint.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from audiolitefocus.validation import check_bounds, from_dict, parse_object, shown

FORMAT_VERSION = 1
CONTEXTS = ("self", "loa", "t5")
MAX_LAYERS = 2**10  # of transformers: even without weights, many more take minutes to set up


@dataclass(frozen=True)
class UNetConfig:
    """The denoiser. `contexts` names the transformers that follow each residual block of an
    attending level.
    """

    in_channels: int = 8
    out_channels: int = 8
    channels: tuple[int, ...] = (128, 256, 384, 640)  # one entry a level
    heads: tuple[int, ...] = (4, 8, 12, 20)  # of 32 channels each, as trained
    attention_levels: tuple[int, ...] = (1, 2, 3)
    resnets: int = 2  # residual blocks a level going down; one more going up
    contexts: tuple[str, ...] = CONTEXTS
    depth: int = 1  # transformer layers in each transformer
    loa_dim: int = 768
    t5_dim: int = 1024
    norm_groups: int = 32

    def __post_init__(self):
        check_bounds(
            self, 1, 2**16, "in_channels", "out_channels", "channels", "heads", "norm_groups"
        )
        check_bounds(self, 1, 2**16, "loa_dim", "t5_dim")
        check_bounds(self, 1, 64, "resnets", "depth")
        check_bounds(self, 0, len(self.channels) - 1, "attention_levels")
        if self.layers > MAX_LAYERS:
            raise ValueError(f"{self.layers} transformer layers: at most {MAX_LAYERS}")
        if not 1 <= len(self.channels) <= 8 or len(self.heads) != len(self.channels):
            raise ValueError(f"channels {self.channels} and heads {self.heads}: one entry a level")
        if not 1 <= len(self.contexts) <= 8 or set(self.contexts) - set(CONTEXTS):
            raise ValueError(f"contexts {self.contexts}: each must be one of {CONTEXTS}")
        if not self.attention_levels or set(self.contexts) == {"self"}:
            raise ValueError(
                f"contexts {self.contexts} on levels {self.attention_levels}: none attends to text"
            )
        for channels, heads in zip(self.channels, self.heads, strict=True):
            if channels % self.norm_groups or channels % heads:
                raise ValueError(
                    f"{channels} channels must be a multiple of norm_groups {self.norm_groups} "
                    f"and of heads {heads}"
                )

    @property
    def layers(self) -> int:
        """Transformer layers going down and up: 45 for AudioLDM2."""
        stages = len(self.attention_levels) * (2 * self.resnets + 1)
        return stages * len(self.contexts) * self.depth

    @property
    def time_multiple(self) -> int:
        """Latent lengths that need no padding are multiples of this: 8 for AudioLDM2 (0.32 s)."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class VAEConfig:
    """The autoencoder between log-mel spectrograms and latents."""

    in_channels: int = 1
    latent_channels: int = 8
    channels: tuple[int, ...] = (128, 256, 512)
    resnets: int = 2
    norm_groups: int = 32
    scale_factor: float = 1.0  # learnt: always comes with the checkpoint

    def __post_init__(self):
        check_bounds(self, 1, 2**16, "in_channels", "latent_channels", "channels", "norm_groups")
        check_bounds(self, 1, 64, "resnets")
        check_bounds(self, 1e-6, 1e6, "scale_factor")
        if not 1 <= len(self.channels) <= 8 or any(c % self.norm_groups for c in self.channels):
            raise ValueError(
                f"channels {self.channels}: multiples of norm_groups {self.norm_groups}"
            )

    @property
    def downsampling(self) -> int:
        """Mel frames (and mel bins) per latent frame (and latent row): 4."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class VocoderConfig:
    """HiFi-GAN (Kong et al. 2020), from log-mel frames to samples."""

    mel_bins: int = 64
    sampling_rate: int = 16000
    initial_channels: int = 1024
    upsample_rates: tuple[int, ...] = (5, 4, 2, 2, 2)
    upsample_kernels: tuple[int, ...] = (16, 16, 8, 4, 4)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    slope: float = 0.1  # of the leaky ReLUs

    def __post_init__(self):
        check_bounds(
            self, 1, 2**20, "mel_bins", "sampling_rate", "initial_channels", "upsample_rates"
        )
        check_bounds(self, 1, 2**10, "upsample_kernels", "resblock_kernels", "resblock_dilations")
        if not 1 <= len(self.upsample_rates) == len(self.upsample_kernels) <= 16:
            raise ValueError("upsample_rates and upsample_kernels: one entry an upsampling")
        if not 1 <= len(self.resblock_kernels) == len(self.resblock_dilations) <= 8:
            raise ValueError("resblock_kernels and resblock_dilations: one entry a residual block")
        if any(len(dilations) > 8 for dilations in self.resblock_dilations):
            raise ValueError("resblock_dilations: at most 8 in a residual block")
        if any(k < r for k, r in zip(self.upsample_kernels, self.upsample_rates, strict=True)):
            raise ValueError("upsample_kernels: each at least as long as its rate")
        if not all(kernel % 2 for kernel in self.resblock_kernels) or self.hop_length > 2**16:
            raise ValueError("resblock_kernels must be odd, upsample_rates make at most 65536")
        if self.initial_channels % 2 ** len(self.upsample_rates):
            raise ValueError(
                f"initial_channels {self.initial_channels} halves with every upsampling"
            )

    @property
    def hop_length(self) -> int:
        """Samples per mel frame: 160."""
        return math.prod(self.upsample_rates)


@dataclass(frozen=True)
class ProjectionConfig:
    """The linear maps from CLAP and T5 into the width of GPT-2."""

    clap_dim: int = 512
    t5_dim: int = 1024
    loa_dim: int = 768

    def __post_init__(self):
        check_bounds(self, 1, 2**16, "clap_dim", "t5_dim", "loa_dim")


@dataclass(frozen=True)
class TextConfig:
    """Token limits of both text encoders; how many "language of audio" tokens GPT-2 writes."""

    clap_max_tokens: int = 512
    t5_max_tokens: int = 128
    loa_tokens: int = 8

    def __post_init__(self):
        check_bounds(self, 1, 2**14, "clap_max_tokens", "t5_max_tokens", "loa_tokens")


@dataclass(frozen=True)
class ScheduleConfig:
    """Of training: beta_t is linear in its square root, and the network predicts epsilon."""

    train_steps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195

    def __post_init__(self):
        check_bounds(self, 1, 10**5, "train_steps")
        check_bounds(self, 1e-8, 0.999, "beta_start", "beta_end")


@dataclass(frozen=True)
class BundleConfig:
    """The whole of a bundle's config.json."""

    name: str = "audioldm2"
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trained_seconds: float = 10.24  # clip length; attention="auto" is sparse beyond it
    provenance: dict = field(default_factory=dict)  # free-form: where the weights came from
    files: dict[str, str] = field(default_factory=dict)  # sha256 of weights, checked on loading

    def __post_init__(self):
        check_bounds(self, 0.01, 3600, "trained_seconds")
        if self.vocoder.mel_bins % self.vae.downsampling:
            raise ValueError(
                f"{self.vocoder.mel_bins} mel bins do not divide by {self.vae.downsampling}"
            )

    def misfits(self) -> list[str]:
        """Where one network does not fit the next one, in words."""
        unet, vae, projection = self.unet, self.vae, self.projection
        rows = self.vocoder.mel_bins // vae.downsampling
        joints = (
            ("GPT-2's tokens for the UNet", projection.loa_dim, unet.loa_dim),
            ("T5's tokens for the UNet", projection.t5_dim, unet.t5_dim),
            ("the VAE's latents", vae.latent_channels, unet.in_channels),
            ("the UNet's output", unet.out_channels, unet.in_channels),
            ("channels of the spectrogram", vae.in_channels, 1),
            ("latent rows left over by the UNet's levels", rows % unet.time_multiple, 0),
        )
        return [f"{what}: {one} against {other}" for what, one, other in joints if one != other]

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "BundleConfig":
        """Parse and check a config.json. Raises ValueError that names the offending entry."""
        data = parse_object(text)
        if "format" not in data:
            raise ValueError('has no "format" entry: not a config.json of an audiolitefocus bundle')
        version = data.pop("format")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"format {shown(version)}: this version reads {FORMAT_VERSION}; convert again"
            )
        config = from_dict(cls, data, "config")
        if wrong := config.misfits():
            raise ValueError(f"the networks do not fit together: {'; '.join(wrong)}")
        return config


@dataclass(frozen=True)
class ModelSpec:
    """A named model: a repository on the hub (diffusers layout), or a bundle installed here."""

    description: str
    repo: str | None = None


MODELS = {
    "demo": ModelSpec("a tiny bundled model, for trying and testing without a download"),
    "audioldm2": ModelSpec("AudioLDM2, text to audio (audioldm2-full)", "cvssp/audioldm2"),
    "audioldm2-large": ModelSpec(
        "AudioLDM2 with twice the transformer depth", "cvssp/audioldm2-large"
    ),
    "audioldm2-music": ModelSpec("AudioLDM2, text to music", "cvssp/audioldm2-music"),
}


def demo_folder() -> Path:
    """The bundled demo model: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "demo"
    return installed if installed.is_dir() else package.parent / "weights" / "demo"
