"""What the stage "diffusion" trains: T5, projection, GPT-2 and UNet, as small as the demo model's,
and how wrong they are about the noise in a batch of clips.
"""

import math
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn

from audiolitefocus.config import ProjectionConfig, ScheduleConfig, TextConfig, UNetConfig
from audiolitefocus.models.condition import Condition, stack_conditions
from audiolitefocus.models.layers import ResnetBlock, Transformer2D, to_channels_last
from audiolitefocus.models.text_encoder import Projection, generate_loa
from audiolitefocus.models.unet import UNet
from audiolitefocus.ops.cpu import Linear
from audiolitefocus.training.objective import Batch, NoiseLoss
from scripts.demo.stages.clap import WIDTH
from scripts.demo.world.captions import t5_tokenizer

UNET = UNetConfig(
    channels=(32, 32, 64, 64),
    heads=(1, 1, 2, 2),
    resnets=1,
    norm_groups=8,
    loa_dim=WIDTH,
    t5_dim=WIDTH,
)
PROJECTION = ProjectionConfig(clap_dim=WIDTH, t5_dim=WIDTH, loa_dim=WIDTH)
# Of AudioLDM2's noise schedule. Here the latents of a low and of a middle tone are 2.7 standard
# deviations of the noise apart. At step 750 they are 8: the noisy clip says all, and the text need
# not be listened to. Beyond, signals are below 3 % of the noise, which is more than this model can
# be exact about.
LAST_STEP = 900
STEADY = 50.0  # in `pass_through`: far more than a feature map's deviation


def beginning(schedule: ScheduleConfig, steps: int) -> ScheduleConfig:
    """A schedule's first steps, as they are."""
    first, last = schedule.beta_start**0.5, schedule.beta_end**0.5
    root = first + (last - first) * (steps - 1) / (schedule.train_steps - 1)
    return ScheduleConfig(steps, schedule.beta_start, root**2)


SCHEDULE = beginning(ScheduleConfig(), LAST_STEP)


def t5_tower(vocabulary: int) -> transformers.T5EncoderModel:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=vocabulary,
            d_model=WIDTH,
            d_kv=32,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def gpt2_tower() -> transformers.GPT2Model:
    """It reads embeddings and writes hidden states, so one row of token embeddings is enough."""
    return transformers.GPT2Model(
        transformers.GPT2Config(
            vocab_size=1,
            bos_token_id=0,
            eos_token_id=0,
            n_positions=256,
            n_embd=WIDTH,
            n_layer=2,
            n_head=2,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
        )
    )


@dataclass(frozen=True)
class Group:
    """Clips whose captions have the same number of tokens.

    Attributes:
        latents: (b, 8, t, 16), scaled.
        clap: (b, c), CLAP's embeddings of the captions.
        ids: (b, s), T5's tokens.
        noise: as the latents.
        steps: (b,) of the noise schedule.
        dropped: (b,) bool: clips that are shown without their condition.
    """

    latents: Tensor
    clap: Tensor
    ids: Tensor
    noise: Tensor
    steps: Tensor
    dropped: Tensor


class Denoiser(NoiseLoss):
    """All that this stage trains, and its loss.

    The squared error of the noise is divided by the share of the signal: it is the error of the
    velocity (Salimans & Ho, "Progressive Distillation", 2022). Of the noise alone, hardly anything
    is wrong where a clip is nearly all noise, which is where only the text determines the sound.
    """

    def __init__(self, t5: nn.Module, end: int):
        gpt2, projection, unet = gpt2_tower(), Projection(PROJECTION), UNet(UNET)
        super().__init__(unet, SCHEDULE, "dense", gamma=math.inf)
        self.weights = 1 / self.alphas
        self.t5, self.gpt2, self.projection = t5, gpt2, projection
        self.end = end  # T5's token of an empty text
        for module in self.unet.modules():
            if isinstance(module, ResnetBlock):  # every block begins as the identity
                nn.init.zeros_(module.conv2.weight)
            if isinstance(module, Transformer2D):
                nn.init.zeros_(module.proj_out.weight)
            if isinstance(module, Linear):
                # Convolutions, which it is made of on CPUs, are slow for batches this small.
                module.__class__ = nn.Linear  # type: ignore[assignment]
        pass_through(self.unet)
        to_channels_last(self.unet)

    def condition(self, clap: Tensor, ids: Tensor, dropped: Tensor) -> Condition:
        """As `TextEncoder.encode`, and for dropped clips as `TextEncoder.unconditional`."""
        mask = torch.ones_like(ids)
        t5 = self.t5(input_ids=ids, attention_mask=mask).last_hidden_state
        embeddings, seen = self.projection(clap[:, None], t5, mask)
        loa = generate_loa(self.gpt2, embeddings, seen, TextConfig().loa_tokens)
        empty = self.t5(input_ids=ids.new_full((1, 1), self.end)).last_hidden_state
        shown, without = Condition(loa, t5), Condition(torch.zeros_like(loa[:1]), empty)
        return stack_conditions(
            [without if d else shown[slice(i, i + 1)] for i, d in enumerate(dropped.tolist())]
        )

    def forward(self, group: Group) -> Tensor:  # type: ignore[override]
        """The loss of every clip, (b,)."""
        condition = self.condition(group.clap, group.ids, group.dropped)
        return super().forward(Batch(group.latents, group.noise, condition, group.steps, seed=0))


@torch.no_grad()
def pass_through(unet: UNet) -> None:
    """Rewire a new UNet so that its answer begins as its input, at unit deviation. That is nearly
    the noise where there is most of it, and narrow layers are slow to learn it as exactly as the
    little else there asks for.

    Each latent goes by twice, once upside down, for silu(x) - silu(-x) = x: from the first
    convolution by the topmost skip connection and the last shortcut to the last convolution. On the
    way is a group norm. It would divide a latent by the deviation that its noise happens to have,
    which in a short clip is off by 3 %: as much as there is signal in the noisiest. So every group
    holds one latent and two other channels, of which one is raised by STEADY and one lowered: what
    a group is divided by is then nearly the same, whatever the noise.
    """
    latents, channels = unet.config.in_channels, unet.config.channels[0]
    first, last, norm, out = (
        unet.conv_in,
        unet.up[-1].stages[-1].resnet,
        unet.norm_out,
        unet.conv_out,
    )
    twice = torch.eye(latents).repeat_interleave(2, 0)  # 2n n
    twice[1::2] *= -1
    first.weight[: 2 * latents] = 0
    first.bias[: 2 * latents] = 0
    first.weight[: 2 * latents, :, 1, 1] = twice
    place = torch.arange(channels) % (channels // norm.num_groups)  # in the group
    passing = torch.where(place < 2)[0][: 2 * latents]
    for layer in (last.conv_shortcut, last.conv2):
        layer.weight[passing] = 0
        layer.bias[passing] = 0
    skips = last.conv_shortcut.weight.shape[1] - channels  # where their channels begin
    last.conv_shortcut.weight[passing, skips + torch.arange(2 * latents), 0, 0] = 1
    raised = STEADY * ((place == 2).float() - (place == 3).float())
    last.conv_shortcut.bias += raised
    # All channels leave the norm as they came, but for what was raised.
    norm.weight.fill_(((1 + STEADY**2) / 2) ** 0.5)
    norm.bias.copy_(-raised)
    out.weight.zero_(), out.bias.zero_()
    out.weight[:, passing, 1, 1] = twice.T


def build(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    tokenizer = t5_tokenizer()
    return Denoiser(t5_tower(len(tokenizer)), tokenizer.eos_token_id)
