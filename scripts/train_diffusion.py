"""Stage "diffusion": T5, projection, GPT-2 and UNet, trained together to predict the noise in the
autoencoder's latents (Ho et al. 2020; Liu et al., "AudioLDM 2", 2023).

A batch is made of groups of captions of one length, because GPT-2 must see no padding: it reads
every prompt alone when it is asked for sound. Groups run in threads of their own, which on a CPU is
faster than threads within operations as small as these.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from clips import CHUNK, chunk, shown
from demo_text import clap_tokenizer, t5_tokenizer
from networks import load_network
from sounds import draw
from torch import Tensor, nn
from train_clap import WIDTH
from training import Losses, Run, train

from audiolitefocus.atomic import atomic_file
from audiolitefocus.condition import Condition
from audiolitefocus.conditioning import Projection, write_loa
from audiolitefocus.config import (
    ProjectionConfig,
    ScheduleConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from audiolitefocus.layers import ResnetBlock, Transformer2D, arrange
from audiolitefocus.linear import Linear
from audiolitefocus.sampling import alphas_cumprod
from audiolitefocus.unet import UNet
from audiolitefocus.vae import VAE

UNET = UNetConfig(
    channels=(32, 32, 64, 64),
    heads=(1, 1, 2, 2),
    resnets=1,
    norm_groups=8,
    loa_dim=WIDTH,
    t5_dim=WIDTH,
)
PROJECTION = ProjectionConfig(clap_dim=WIDTH, t5_dim=WIDTH, loa_dim=WIDTH)
CHUNKS = 8  # thousands of clips
STEPS, RATE = 30000, 1.5e-3
AVERAGE = 0.998  # decay of the averaged weights
GROUPS, GROUP = 2, 6  # of clips in a batch, and clips in a group
LEAST_SIGNAL = 1e-3  # of a clip's power that errors are divided by
DROPPED = 0.1  # share of clips without condition


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
class Batch:
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


class Denoiser(nn.Module):
    """All that this stage trains."""

    def __init__(self, t5: nn.Module, end: int):
        super().__init__()
        self.t5, self.gpt2 = t5, gpt2_tower()
        self.projection, self.unet = Projection(PROJECTION), UNet(UNET)
        self.end = end  # T5's token of an empty text
        alphas = torch.tensor(alphas_cumprod(ScheduleConfig()), dtype=torch.float32)
        self.register_buffer("alphas", alphas, persistent=False)
        for module in self.unet.modules():
            if isinstance(module, ResnetBlock):  # every block begins as the identity
                nn.init.zeros_(module.conv2.weight)
            if isinstance(module, Transformer2D):
                nn.init.zeros_(module.proj_out.weight)
            if isinstance(module, Linear):
                # Convolutions, which it is made of on CPUs, are slow for batches this small.
                module.__class__ = nn.Linear
        nn.init.zeros_(self.unet.conv_out.weight)
        arrange(self.unet)

    def condition(self, clap: Tensor, ids: Tensor, dropped: Tensor) -> Condition:
        """As `TextEncoder.encode`, and for dropped clips as `TextEncoder.unconditional`."""
        mask = torch.ones_like(ids)
        t5 = self.t5(input_ids=ids, attention_mask=mask).last_hidden_state
        inputs = self.projection(clap[:, None], t5, mask)
        loa = write_loa(self.gpt2, *inputs, TextConfig().loa_tokens)
        empty = self.t5(input_ids=ids.new_full((1, 1), self.end)).last_hidden_state
        empty = F.pad(empty, (0, 0, 0, ids.shape[1] - 1))  # 1 s c
        first = F.pad(mask[:1, :1], (0, ids.shape[1] - 1))  # 1 s
        without = dropped[:, None, None]
        return Condition(
            loa=torch.where(without, torch.zeros_like(loa), loa),
            t5=torch.where(without, empty, t5),
            t5_mask=torch.where(dropped[:, None], first, mask),
        )

    def forward(self, batch: Batch) -> Tensor:
        """The mean squared error of the noise, divided by the share of the signal.

        That is the error of the velocity (Salimans & Ho, "Progressive Distillation", 2022). Of the
        noise alone, hardly anything is wrong where a clip is nearly all noise, which is where only
        the text can tell what will be heard.
        """
        alpha = self.alphas[batch.steps][:, None, None, None]
        noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise
        condition = self.condition(batch.clap, batch.ids, batch.dropped)
        wrong = self.unet(noisy, batch.steps, condition).float() - batch.noise
        return (wrong.square() / alpha.clamp_min(LEAST_SIGNAL)).mean()


class Clips:
    """Latents and captions, as batches want them.

    Args:
        latents: of a thousand clips each.
        clap: (n, c), CLAP's embeddings of the captions.
        ids: T5's tokens of the captions.
        shown: the clips to draw from; some are drawn more often than others.
    """

    def __init__(
        self, latents: list[np.ndarray], clap: Tensor, ids: list[list[int]], shown: list[int]
    ):
        self.latents, self.clap, self.ids, self.shown = latents, clap, ids, shown
        self.alike: dict[int, list[int]] = {}  # by the number of tokens
        for index in self.shown:
            self.alike.setdefault(len(ids[index]), []).append(index)

    def batch(self, device: str) -> list[Batch]:
        """Groups of clips. The steps of all of them together are spread as the square root of even
        numbers: most are noisy ones, where only the text can tell what will be heard.
        """
        count, train_steps = GROUPS * GROUP, ScheduleConfig().train_steps
        spread = ((torch.randperm(count) + torch.rand(count)) / count).sqrt()
        steps = (train_steps * spread).long().clamp(max=train_steps - 1)
        return [self.group(part, device) for part in steps.split(GROUP)]

    def group(self, steps: Tensor, device: str) -> Batch:
        """Any clip, and others whose captions have as many tokens."""
        alike = self.alike[len(self.ids[self.shown[torch.randint(len(self.shown), ())]])]
        indices = [alike[i] for i in torch.randint(len(alike), (GROUP,))]
        latents = np.stack([self.latents[i // CHUNK][i % CHUNK] for i in indices])
        clean = torch.from_numpy(latents).float()
        batch = Batch(
            latents=clean,
            clap=self.clap[indices],
            ids=torch.tensor([self.ids[i] for i in indices]),
            noise=torch.randn_like(clean),
            steps=steps,
            dropped=torch.rand(GROUP) < DROPPED,
        )
        return Batch(**{name: part.to(device) for name, part in vars(batch).items()})


class Known(torch.autograd.Function):
    """A loss whose gradients have been computed elsewhere."""

    @staticmethod
    def forward(ctx, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, scale: Tensor):
        return None, None, *(scale * gradient for gradient in ctx.gradients)


def diffusion_loss(run: Run, denoiser: Denoiser, groups: list[Batch], pool) -> Losses:
    """The mean over the groups, each of which runs forward and backward in a thread."""
    parameters = list(denoiser.parameters())

    def work(batch: Batch) -> tuple[Tensor, ...]:
        with run.autocast():
            loss = denoiser(batch)
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return loss.detach(), *gradients

    results = [torch.stack(parts).mean(0) for parts in zip(*pool.map(work, groups), strict=True)]
    return {"loss": Known.apply(results[0], results[1:], *parameters)}


@torch.no_grad()
def stored_latents(run: Run, vae: VAE, index: int) -> np.ndarray:
    """Scaled means of a thousand clips, (1000, 8, 64, 16) float16."""
    path = run.folder("diffusion") / f"latents-{index:03d}.npy"
    if not path.is_file():
        mels = torch.from_numpy(chunk(run.out / "clips", index)[1].astype(np.float32))
        means = torch.cat([vae.encode(mel.to(run.device))[0].cpu() for mel in mels.split(25)])
        with atomic_file(path) as part, part.open("wb") as file:
            np.save(file, (means * vae.config.scale_factor).numpy().astype(np.float16))
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def clap_embeddings(folder: Path, captions: list[str]) -> Tensor:
    """(n, c), each text alone in its length: padding changes nothing that CLAP says."""
    clap, tokenizer = transformers.ClapModel.from_pretrained(folder).eval(), clap_tokenizer()
    unique = list(dict.fromkeys(captions))
    found = []
    for start in range(0, len(unique), 100):
        tokens = tokenizer(unique[start : start + 100], padding=True, return_tensors="pt")
        text = clap.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        found += list(text.pooler_output)
    known = dict(zip(unique, found, strict=True))
    return torch.stack([known[caption] for caption in captions])


def stored_clips(run: Run, vae: VAE) -> Clips:
    captions = [draw(seed).caption for seed in range(CHUNK * CHUNKS)]
    latents = [stored_latents(run, vae, index) for index in range(CHUNKS)]
    ids = t5_tokenizer()(captions)["input_ids"]
    clap = clap_embeddings(run.out / "clap" / "tower", captions)
    return Clips(latents, clap, ids, shown(CHUNKS))


def build(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    tokenizer = t5_tokenizer()
    return Denoiser(t5_tower(len(tokenizer)), tokenizer.eos_token_id)


def train_diffusion(run: Run) -> None:
    clips = stored_clips(run, load_network(run.out / "vae", "vae", VAE, VAEConfig))
    denoiser = build(run.seed)
    with ThreadPoolExecutor(1 if run.device == "cuda" else GROUPS) as pool:
        train(
            run,
            "diffusion",
            denoiser,
            lambda: diffusion_loss(run, denoiser, clips.batch(run.device), pool),
            steps=STEPS,
            rate=RATE,
            average=AVERAGE,
        )
