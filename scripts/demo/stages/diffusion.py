"""Stage "diffusion": T5, projection, GPT-2 and UNet, trained together to predict the noise in the
autoencoder's latents (Ho et al. 2020; Liu et al., "AudioLDM 2", 2023).

A batch is made of groups of captions of one length, because GPT-2 must see no padding: it reads
every prompt alone when it is asked for sound. Groups run in threads of their own, which on a CPU is
faster than threads within operations as small as these.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from audiolitefocus.models.vae import VAE
from scripts.demo.loop import Losses, Run, train
from scripts.demo.networks import load_vae
from scripts.demo.stages.denoiser import LAST_STEP, Denoiser, Group, build
from scripts.demo.world.captions import clap_tokenizer, t5_tokenizer
from scripts.demo.world.clips import CHUNK, FRAMES, chunk, shown, stored
from scripts.demo.world.latents import encode_mels
from scripts.demo.world.sounds import draw

CHUNKS = 8  # thousands of clips
STEPS, RATE = 30000, 3e-3
AVERAGE = 0.998  # decay of the averaged weights
GROUPS, GROUP = 2, 6  # of clips in a batch, and clips in a group
DROPPED = 0.1  # share of clips without condition


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

    def batch(self, device: str) -> list[Group]:
        """Groups of clips. The steps of all of them together are spread evenly."""
        count = GROUPS * GROUP
        spread = (torch.randperm(count) + torch.rand(count)) / count
        steps = (LAST_STEP * spread).long().clamp(max=LAST_STEP - 1)
        return [self.group(part, device) for part in steps.split(GROUP)]

    def group(self, steps: Tensor, device: str) -> Group:
        """Any clip, and others whose captions have as many tokens."""
        alike = self.alike[len(self.ids[self.shown[torch.randint(len(self.shown), ())]])]
        indices = [alike[i] for i in torch.randint(len(alike), (GROUP,))]
        latents = np.stack([self.latents[i // CHUNK][i % CHUNK] for i in indices])
        clean = torch.from_numpy(latents).float()
        group = Group(
            latents=clean,
            clap=self.clap[indices],
            ids=torch.tensor([self.ids[i] for i in indices]),
            noise=torch.randn_like(clean),
            steps=steps,
            dropped=torch.rand(GROUP) < DROPPED,
        )
        return Group(**{name: part.to(device) for name, part in vars(group).items()})


class Known(torch.autograd.Function):
    """A loss whose gradients have been computed elsewhere."""

    @staticmethod
    def forward(ctx, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, scale: Tensor):
        return None, None, *(scale * gradient for gradient in ctx.gradients)


def diffusion_loss(run: Run, denoiser: Denoiser, groups: list[Group], pool) -> Losses:
    """The mean over the groups, each of which runs forward and backward in a thread."""
    parameters = list(denoiser.parameters())

    def work(group: Group) -> tuple[Tensor, ...]:
        with run.autocast():
            loss = denoiser(group).mean()
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return loss.detach(), *gradients

    results = [torch.stack(parts).mean(0) for parts in zip(*pool.map(work, groups), strict=True)]
    return {"loss": Known.apply(results[0], results[1:], *parameters)}


def stored_latents(run: Run, vae: VAE, index: int) -> np.ndarray:
    """Scaled means of a thousand clips, (1000, 8, 64, 16) float16."""

    def compute() -> np.ndarray:
        return encode_mels(vae, chunk(run.out / "clips", index)[1], FRAMES).astype(np.float16)

    return stored(run.folder("diffusion") / f"latents-{index:03d}.npy", compute)


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


def train_diffusion(run: Run) -> None:
    vae = load_vae(run.out / "vae").to(run.device)
    clips = stored_clips(run, vae)
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
