"""Architecture of checkpoints, and the names of known models.

Every default is audioldm2-full's. What comes from a file is checked by `validation.check_config`;
steps, guidance, seed and attention belong to a call, and so to `options`.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

FORMAT_VERSION = 1
CONTEXTS = ("self", "loa", "t5")


@dataclass(frozen=True)
class UNetConfig:
    """The denoising UNet."""

    in_channels: int = 8
    out_channels: int = 8
    channels: tuple[int, ...] = (128, 256, 384, 640)  # one entry a level
    heads: tuple[int, ...] = (4, 8, 12, 20)  # of 32 channels each, as trained
    attention_levels: tuple[int, ...] = (1, 2, 3)
    resnets: int = 2  # residual blocks a level going down; one more going up
    contexts: tuple[str, ...] = CONTEXTS  # of the transformers after each residual block
    depth: int = 1  # transformer layers in each transformer
    loa_dim: int = 768
    t5_dim: int = 1024
    norm_groups: int = 32
    absent: tuple[str, ...] = ()  # names of transformers that it was pruned of

    @property
    def transformers(self) -> dict[str, tuple[int, str]]:
        """Level and context of every transformer by its name in the UNet, in the order of running.

        Names do not depend on `absent`: "down.1.stages.0.transformers.2" is always the third one
        after that residual block.
        """
        levels, absent = range(len(self.channels)), set(self.absent)
        stages = [(f"down.{at}.stages.{i}", at) for at in levels for i in range(self.resnets)]
        stages.append(("middle.stage", levels[-1]))
        for number, at in enumerate(reversed(levels)):
            stages += [(f"up.{number}.stages.{i}", at) for i in range(self.resnets + 1)]
        every = {
            f"{stage}.transformers.{number}": (at, context)
            for stage, at in stages
            if at in self.attention_levels
            for number, context in enumerate(self.contexts)
        }
        return {name: entry for name, entry in every.items() if name not in absent}

    @property
    def layers(self) -> int:
        """Transformer layers going down and up, absent ones too: 45 for AudioLDM2."""
        stages = len(self.attention_levels) * (2 * self.resnets + 1)
        return stages * len(self.contexts) * self.depth

    @property
    def time_multiple(self) -> int:
        """Latent lengths that need no padding are multiples of this: 8 for AudioLDM2 (0.32 s)."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class VAEConfig:
    """Autoencoder between log-mel spectrograms and latents."""

    in_channels: int = 1
    latent_channels: int = 8
    channels: tuple[int, ...] = (128, 256, 512)
    resnets: int = 2
    norm_groups: int = 32
    scale_factor: float = 1.0  # of latents; learnt, so every checkpoint has its own

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

    @property
    def hop_length(self) -> int:
        """Samples per mel frame: 160."""
        return math.prod(self.upsample_rates)


@dataclass(frozen=True)
class ProjectionConfig:
    """Linear maps from the widths of CLAP and T5 to that of GPT-2."""

    clap_dim: int = 512
    t5_dim: int = 1024
    loa_dim: int = 768


@dataclass(frozen=True)
class TextConfig:
    """Token limits of both text encoders, and the number of tokens that GPT-2 generates."""

    clap_max_tokens: int = 512
    t5_max_tokens: int = 128
    loa_tokens: int = 8


@dataclass(frozen=True)
class ScheduleConfig:
    """Noise schedule of training: sqrt(beta) rises linearly, and the UNet predicts the noise."""

    train_steps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195


@dataclass(frozen=True)
class AttentionRule:
    """What attention="auto" is for clips beyond the trained length: a property of a model.

    The default follows the paper, which has unweighted samples of a tenth better than dense
    attention for AudioLDM2 from 20 s (FAD 3.72 against 4.97) to 80 s, the longest clips measured
    (Table 1); beyond, as many keys are sampled as there.

    Attributes:
        sparse_ratio, weight: of `LiteFocus`, for clips of up to `lengths` trained lengths. Beyond,
            the ratio falls as 1 / length, so that the number of sampled keys stays.
        lengths: in trained lengths.
    """

    sparse_ratio: float = 0.1
    weight: float = 0.0
    lengths: float = 8.0


@dataclass(frozen=True)
class Distilled:
    """What weights were distilled for: few steps by one sampler, with the guidance baked in.

    Attributes:
        sampler: "lcm" (Luo et al. 2023).
        guidance_scale: what an evaluation under the condition alone is worth.
    """

    sampler: str = "lcm"
    guidance_scale: float = 3.5


@dataclass(frozen=True)
class BundleConfig:
    """All of a bundle's config.json."""

    name: str = "audioldm2"
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trained_seconds: float = 10.24  # clip length; attention="auto" is sparse beyond it
    attention_rule: AttentionRule = field(default_factory=AttentionRule)
    distilled: Distilled | None = None  # weights that were, and for what
    provenance: dict = field(default_factory=dict)  # free-form: where the weights came from
    files: dict[str, str] = field(default_factory=dict)  # sha256 by name, checked on loading

    def to_json(self) -> str:
        """The text of config.json, which `checkpoints.bundle.load_config` reads."""
        return json.dumps({"format": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"


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
    """Folder of the demo model: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "demo"
    return installed if installed.is_dir() else package.parent / "weights" / "demo"
