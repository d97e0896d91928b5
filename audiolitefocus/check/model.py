"""A model: where it comes from, its weights, every stage of a clip, and a clip's CLAP score."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from audiolitefocus.audio.length import ClipLength
from audiolitefocus.check.report import Row, Section, attempt, one_line, statistics, without_paths
from audiolitefocus.config import demo_folder
from audiolitefocus.models.condition import Condition
from audiolitefocus.pipeline import AudioLDM2Pipeline

PROMPT = "a bell over rain"
STEPS = 25
NETWORKS = {"unet": "unet", "vae": "vae", "vocoder": "vocoder", "text towers": "text"}
SHOWN = 3  # names of tensors, at most
TIMESTEP = 500


def check_origin(model: str, pipe: AudioLDM2Pipeline) -> Section:
    """What the model is, where it came from, and if its weights are finite."""
    config, provenance = pipe.config, pipe.config.provenance
    rows = [
        Row("name", config.name),
        Row("from", _origin(model, pipe.folder)),
        Row("checksums", f"{len(config.files)} files as they were written, checked on loading"),
        Row("trained on", f"{config.trained_seconds:g} s, {pipe.sampling_rate} Hz"),
    ]
    for key in ("source", "kind", "revision", "dtype", "heads", "notes"):
        entry = provenance.get(key)
        for text in entry if isinstance(entry, list) else [entry]:
            if text:
                rows.append(Row(key, without_paths(str(text))))
    rows += [attempt(name, partial(_weights, name, pipe)) for name in NETWORKS]
    return Section("Model", rows)


def _origin(model: str, folder: Path) -> str:
    if folder == demo_folder():
        return "the bundled demo"
    if Path(model).exists():
        return (
            "a bundle's folder" if Path(model) == folder else "a folder, converted into the cache"
        )
    return "the hub, converted into the cache"


def _weights(name: str, pipe: AudioLDM2Pipeline) -> Row:
    network: nn.Module = getattr(pipe, NETWORKS[name])
    state = network.state_dict()
    count = sum(weight.numel() for weight in network.parameters())
    kinds = sorted({str(weight.dtype).removeprefix("torch.") for weight in network.parameters()})
    broken = [key for key, weight in state.items() if not weight.isfinite().all()]
    text = f"{count:,} weights, {' and '.join(kinds)}"
    if broken:
        more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        text += f"; NaN or infinite: {', '.join(broken[:SHOWN])}{more}"
    return Row(name, text, ok=not broken, values={"parameters": count, "not_finite": broken})


class Stages:
    """The stages of a clip, one after another; each is fed by those before, or by noise."""

    def __init__(self, pipe: AudioLDM2Pipeline):
        self.pipe = pipe
        self.condition: Condition | None = None
        self.mel: Tensor | None = None
        self.works = False  # text and UNet, with which clips can be denoised

    @torch.inference_mode()
    def check(self) -> Section:
        """Outputs of all networks for one prompt."""
        stages: dict[str, Callable[[], Row]] = {
            "text": self._text,
            "unet": self._unet,
            "vae": self._vae,
            "vocoder": self._vocoder,
        }
        return Section("Stages", [attempt(name, work) for name, work in stages.items()])

    def latents(self) -> Tensor:
        """Gaussian noise (1, 8, t, 16) of the trained length, the same at each call."""
        config, generator = self.pipe.config, torch.Generator().manual_seed(0)
        length = ClipLength(config.trained_seconds, config)
        shape = (1, config.unet.in_channels, length.latent_frames, length.latent_rows)
        return torch.randn(shape, generator=generator).to(self.pipe.device)

    def _text(self) -> Row:
        condition = self.pipe.encode_prompt(PROMPT)
        outputs = {"GPT-2": condition.loa, "T5": condition.t5}
        rows = [statistics(name, output) for name, output in outputs.items() if output is not None]
        text = "; ".join(f"{row.name} {row.text}" for row in rows)
        fine = all(row.ok for row in rows)
        self.condition = condition if fine else None
        return Row("text", text, ok=fine, values={row.name: dict(row.values) for row in rows})

    def _unet(self) -> Row:
        if self.condition is None:
            return Row("unet", "not reached: it needs the text")
        with self.pipe.on_device(self.pipe.unet):
            row = statistics("unet", self.evaluate(self.pipe.unet, self.latents()))
        self.works = row.ok is True
        return row

    def evaluate(self, unet: nn.Module, latents: Tensor) -> Tensor:
        """One evaluation of the pipeline's UNet, with dense attention: noise (1, 8, t, 16)."""
        return unet(latents, torch.tensor(TIMESTEP), self.condition)

    def _vae(self) -> Row:
        vae = self.pipe.vae
        with self.pipe.on_device(vae):
            mel = vae.decode(self.latents() / vae.config.scale_factor)
        row = statistics("vae", mel)
        self.mel = mel if row.ok else None
        return row

    def _vocoder(self) -> Row:
        if self.mel is None:
            return Row("vocoder", "not reached: it needs the autoencoder's spectrogram")
        with self.pipe.on_device(self.pipe.vocoder):
            return statistics("vocoder", self.pipe.vocoder(self.mel.to(self.pipe.device)))


def check_clip(pipe: AudioLDM2Pipeline) -> Section:
    """A clip of the trained length, and its CLAP score against that of noise as loud as it."""
    try:
        made = pipe(PROMPT, sampler="dpm++", num_inference_steps=STEPS, seed=0, output_type="pt")
    except (ValueError, MemoryError, RuntimeError) as error:
        return Section("Clip", [Row("sound", without_paths(one_line(error)), ok=False)])
    clip = torch.as_tensor(made.audios)
    row = statistics("sound", clip)
    loudness = float(clip.square().mean().sqrt())
    seconds = clip.shape[1] / pipe.sampling_rate
    text = f"{PROMPT!r}, {seconds:g} s, {STEPS} steps of dpm++: rms {loudness:.4f}; {row.text}"
    heard = row.ok is True and math.isfinite(loudness) and loudness > 1e-4
    rows = [Row("sound", text, ok=heard, values={**row.values, "rms": loudness})]
    if heard:
        rows.append(attempt("CLAP", lambda: _clap(pipe, clip, loudness)))
    return Section("Clip", rows)


@torch.inference_mode()
def _clap(pipe: AudioLDM2Pipeline, clip: Tensor, loudness: float) -> Row:
    noise = loudness * torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))
    with pipe.on_device(pipe.text):
        both = torch.cat([clip, noise])
        score, other = pipe.text.similarity([PROMPT] * 2, both, pipe.sampling_rate).tolist()
    text = f"{score:.3f} for the clip, {other:.3f} for noise as loud as it"
    if score <= other:
        text += ": the prompt cannot be heard, as with weights that are untrained or mixed up"
    return Row("CLAP", text, ok=score > other, values={"clip": score, "noise": other})
