"""AudioLDM2Pipeline: from a prompt to a waveform."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from audiolitefocus.attention.litefocus import LiteFocus
from audiolitefocus.audio.files import ClipLength
from audiolitefocus.checkpoints.bundle import check_sha256, load_component, load_config
from audiolitefocus.checkpoints.resolve import choose_device, choose_dtype, locate
from audiolitefocus.checkpoints.towers import TOWERS
from audiolitefocus.checks import (
    OUTPUT_TYPES,
    Prompts,
    check_choice,
    check_embeds,
    check_finite,
    check_number,
    check_settings,
    check_texts,
)
from audiolitefocus.codec.decode import OnBlock, decode_blocks, fill, ignore
from audiolitefocus.config import BundleConfig
from audiolitefocus.diffusion.denoise import Sampling, denoise, initial_latents
from audiolitefocus.diffusion.recording import Recording, Source
from audiolitefocus.diffusion.samplers import ClipNoise
from audiolitefocus.memory import Demand, fit, numbers_in, shortage
from audiolitefocus.models.condition import Condition, repeat_condition
from audiolitefocus.models.text_encoder import TextEncoder
from audiolitefocus.models.unet import UNet
from audiolitefocus.models.vae import VAE
from audiolitefocus.models.vocoder import HiFiGAN
from audiolitefocus.runtime import Workplace, available, explained, in_groups


@dataclass(frozen=True)
class AudioOutput:
    """What a call returns.

    Attributes:
        audios: float32 (n, samples) in [-1, 1], numpy or torch; or latents (n, 8, t, 16); or for
            each clip consecutive blocks (samples,), decoded when they are asked for. Clips of one
            prompt stand together, best first.
        sampling_rate: of `audios`.
        scores: CLAP similarity of every clip to its prompt, (n,), where candidates were ranked;
            else None.
    """

    audios: np.ndarray | Tensor | Sequence[Iterator[Tensor]]
    sampling_rate: int
    scores: Tensor | None = None


class AudioLDM2Pipeline:
    """Text to audio. Make one with `from_pretrained`, then call it.

    `dtype` is that of UNet, autoencoder and vocoder, but for the layers where half precision is
    audible; text and latents are float32.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        config: BundleConfig,
        unet: UNet,
        vae: VAE,
        vocoder: HiFiGAN,
        device: torch.device,
        *,
        offload: bool = False,
    ):
        self.folder, self.config, self.device = Path(folder), config, device
        self.unet, self.vae, self.vocoder = unet, vae, vocoder
        self.at_work = Workplace(device, offload=offload)
        self._text: TextEncoder | None = None
        self._evaluate = unet.denoise

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str = "auto",
        offload: bool = False,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> "AudioLDM2Pipeline":
        """Load a model.

        Args:
            model: a converted folder, a name of `config.MODELS` ("demo", "audioldm2", ...), or a
                hub repository in diffusers layout, which is fetched and converted into the cache
                once.
            dtype, torch_dtype: of UNet, autoencoder and vocoder; default float32.
            device: "auto" (CUDA, else MPS, else CPU), "cuda", "mps", "cpu" or a torch.device.
            offload: keep every network on the CPU but while it works: slower, and the device holds
                no more than the largest of them.
            revision, cache_dir, local_files_only, token: for the hub, as in huggingface_hub.

        Raises:
            ValueError, OSError: in one line, what is wrong with the model, dtype or device, and
                what to do.
        """
        place = choose_device(device)
        chosen = choose_dtype(torch_dtype if dtype is None else dtype, place)
        folder = locate(
            model,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        rest = torch.device("cpu") if offload else place
        with explained(lambda: f"out of memory on {rest} while {folder} was loaded"):
            unet = load_component(folder, "unet", dtype=chosen, device=rest)
            vae = load_component(folder, "vae", dtype=chosen, device=rest)
            vocoder = load_component(folder, "vocoder", dtype=chosen, device=rest)
        return cls(folder, load_config(folder), unet, vae, vocoder, place, offload=offload)

    @property
    def text(self) -> TextEncoder:
        """The text towers, loaded when they are first needed."""
        if self._text is None:
            for name in TOWERS:
                check_sha256(self.folder / name / "model.safetensors", self.config)
            projection = load_component(self.folder, "projection", dtype=torch.float32)
            self._text = TextEncoder(
                self.folder,
                self.config,
                projection,
                self.device,
                offload=self.at_work.offload,
            )
        return self._text

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        audio_length_in_s: float | None = None,
        init_audio: Source | None = None,
        strength: float | None = None,
        inpaint: tuple[float, float] | None = None,
        continue_audio: Source | None = None,
        num_inference_steps: int = 200,
        guidance_scale: float = 3.5,
        negative_prompt: str | list[str] | None = None,
        num_waveforms_per_prompt: int = 1,
        eta: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generated_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_attention_mask: Tensor | None = None,
        negative_generated_prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        callback: Callable[[int, int, Tensor], None] | None = None,
        callback_steps: int = 1,
        on_window: OnBlock = ignore,
        sampler: str = "ddim",
        attention: str | LiteFocus = "auto",
        unconditional: str = "trained",
    ) -> AudioOutput:
        """Make clips. Arguments are diffusers' where it has them; defaults are those of the
        checkpoint's authors.

        Args:
            prompt: one text, or one for each clip; or give embeddings instead.
            audio_length_in_s: clip length; default the trained one, or that of `init_audio`. The
                waveform has exactly this length.
            init_audio: a recording to make a variation of, at the model's own level and as long as
                the recording: a sound file, or samples (n,) at the model's rate.
            strength: of the variation, above 0 to 1: the share of `num_inference_steps` that is
                taken, the last ones. Default 0.5; at 1 the recording is forgotten.
            inpaint: start and end in seconds: only this span of `init_audio` is made anew, with a
                default strength of 1, and at the recording's level. The rest stays as it is.
            continue_audio: a recording, as `init_audio`, that stays as it is and goes on up to
                `audio_length_in_s`.
            num_inference_steps: 1 to 1000. "dpm++" needs 20 to 25.
            guidance_scale: above 1, classifier-free guidance.
            negative_prompt: what to steer away from, instead of `unconditional`.
            num_waveforms_per_prompt: candidates, ranked by CLAP within each prompt.
            eta: of DDIM: 1 as the authors sample, 0 as diffusers does by default.
            generator: one for all clips or one for each; a clip does not depend on what else is in
                its batch.
            latents: initial noise (clips, 8, t, 16) to start from instead; its t may be any that
                covers the clip.
            prompt_embeds, attention_mask, generated_prompt_embeds: T5's encoding (n, s, 1024), its
                mask (n, s) and GPT-2's tokens (n, 8, 768); `encode_prompt` makes them.
            negative_prompt_embeds, negative_attention_mask, negative_generated_prompt_embeds: the
                same to steer away from.
            output_type: "np", "pt", "latent" for the denoised latents, or "blocks" to have long
                waveforms bit by bit, one clip after another (`audio.write_sound` takes them).
            callback: called as callback(step, timestep, latents) every `callback_steps` steps;
                raise to cancel.
            on_window: called as on_window(done, total) after each tile of a clip is decoded.
            sampler: "ddim" or "dpm++".
            attention: "auto" (dense up to the trained length, `LiteFocus.for_duration` beyond),
                "dense", "tome", or a LiteFocus.
            unconditional: "trained" (zeros for GPT-2's tokens and T5's encoding of "", as in
                training; every text is read alone) or "empty_prompt" (diffusers' way: "" through
                every tower, texts padded together).

        Raises:
            ValueError: an argument that makes no sense, before any work; or latents that are not
                finite.
        """
        recording = Recording.take(
            init_audio,
            continue_audio,
            strength=strength,
            inpaint=inpaint,
            seconds=audio_length_in_s,
            rate=self.config.vocoder.sampling_rate,
        )
        trained = self.config.trained_seconds
        seconds = trained if audio_length_in_s is None else audio_length_in_s
        length = ClipLength(seconds if recording is None else recording.seconds, self.config)
        check_settings(
            steps=num_inference_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            candidates=num_waveforms_per_prompt,
            sampler=sampler,
            unconditional=unconditional,
            train_steps=self.config.schedule.train_steps,
        )
        check_choice("output_type", output_type, OUTPUT_TYPES)
        if output_type == "blocks" and num_waveforms_per_prompt > 1:
            raise ValueError('output_type "blocks": candidates are ranked by whole waveforms')
        check_number("callback_steps", callback_steps, 1, math.inf)
        texts, unet = check_texts("prompt", prompt, empty=False), self.config.unet
        given = check_embeds(prompt_embeds, generated_prompt_embeds, attention_mask, unet)
        negative_given = check_embeds(
            negative_prompt_embeds, negative_generated_prompt_embeds, negative_attention_mask, unet
        )
        count = len(texts or given or ())
        negatives = check_texts("negative_prompt", negative_prompt, empty=True, copies=count)
        prompts = Prompts(texts, given, negatives, negative_given)
        clips = count * num_waveforms_per_prompt
        noise = ClipNoise(generator, clips)
        start = initial_latents(latents, noise, clips, length, unet.in_channels)
        variant = self.choose_attention(attention, length.seconds)
        self.unet.use_attention(variant)
        demand = self.demand(length.seconds, clips, guidance_scale, variant)
        free = available(self.device)
        at_once = fit(demand, free)
        way = Sampling(
            self.config.schedule,
            sampler,
            num_inference_steps,
            1.0 if recording is None else recording.strength,
            guidance_scale,
            eta,
        )

        def finish(group: slice) -> Tensor:
            """Denoise some of the clips, with the noise and the sampled keys of all of them."""
            self.unet.use_attention(variant)
            steps = denoise(
                self.unet,
                start[group],
                condition.part(group),
                negative and negative.part(group),
                way,
                fresh=noise.part(group),
                known=known,
                evaluate=self._evaluate,
            )
            for step, current in enumerate(steps):
                if callback is not None and step % callback_steps == 0:
                    callback(step, way.timesteps[step], current)
            return current

        def short() -> str:
            return shortage(replace(demand, clips=at_once), free)

        with explained(short):
            condition, negative = self._conditions(
                prompts, unconditional, guided=guidance_scale > 1, copies=num_waveforms_per_prompt
            )
            known = None
            if recording is not None:
                with self.at_work(self.vae):
                    known = recording.encode(self.vae, self.config.vocoder, start.shape[2])
            with self.at_work(self.unet):
                latents = torch.cat(in_groups(clips, at_once, finish))
            check_finite("latents after the last step", latents)
            if output_type == "latent":
                return AudioOutput(latents, self.config.vocoder.sampling_rate)
            sounds = [
                self.blocks(latent[None], length.samples, on_window, short) for latent in latents
            ]
            if recording is not None and recording.stays:
                sounds = [recording.restore(blocks) for blocks in sounds]
            ranked = texts if num_waveforms_per_prompt > 1 else None
            return self._output(sounds, length.samples, output_type, ranked)

    def _output(
        self, sounds: list[Iterator[Tensor]], samples: int, kind: str, texts: list[str] | None
    ) -> AudioOutput:
        """Clips, each of consecutive blocks (1, ...), as the call returns them; candidates for
        `texts` ranked.
        """
        rate = self.config.vocoder.sampling_rate
        if kind == "blocks":
            return AudioOutput([(block[0] for block in blocks) for blocks in sounds], rate)
        audios, scores = torch.empty(len(sounds), samples), None
        with self.at_work(self.vae, self.vocoder):
            for audio, blocks in zip(audios, sounds, strict=True):
                fill(audio, blocks)
        if texts:
            audios, scores = self.text.rank(texts, audios, rate)
        return AudioOutput(audios.numpy() if kind == "np" else audios, rate, scores)

    def _conditions(
        self, prompts: Prompts, unconditional: str, *, guided: bool, copies: int
    ) -> tuple[Condition, Condition | None]:
        """What the denoiser is told of every clip, `copies` of each prompt, and the other side of
        the guidance.
        """
        condition = prompts.given or self.text.encode(
            prompts.texts or [], pad_together=unconditional == "empty_prompt"
        )
        negative = None
        if guided:
            negative = prompts.negative_given or self.text.negative(
                prompts.negatives, condition, unconditional
            )
            negative = repeat_condition(negative, copies)
        return repeat_condition(condition, copies), negative

    def demand(
        self, seconds: float, clips: int, guidance_scale: float, attention: str | LiteFocus
    ) -> Demand:
        """What clips need in memory when they are denoised together."""
        parameters = {
            "text": sum(numbers_in(self.folder / name / "model.safetensors") for name in TOWERS),
            "denoiser": sum(p.numel() for p in self.unet.parameters()),
            "decoder": sum(p.numel() for m in (self.vae, self.vocoder) for p in m.parameters()),
        }
        return Demand(
            self.config,
            seconds,
            clips,
            guided=guidance_scale > 1,
            itemsize=self.unet.conv_in.weight.element_size(),
            dense=not isinstance(attention, LiteFocus),
            parameters=parameters,
            device=self.device,
            offload=self.at_work.offload,
            text_loaded=self._text is not None,
        )

    def encode_prompt(self, prompt: str | list[str]) -> Condition:
        """What the denoiser is told of each text: `t5`, `t5_mask` and `loa` are the call's
        `prompt_embeds`, `attention_mask` and `generated_prompt_embeds`.
        """
        with torch.inference_mode():
            return self.text.encode(check_texts("prompt", prompt, empty=False) or [])

    @torch.inference_mode()
    def decode(self, latents: Tensor, samples: int | None = None) -> Tensor:
        """(n, 8, t, 16) latents -> float32 waveforms (n, samples) on the CPU, clip by clip."""
        clips = (list(self.blocks(clip[None], samples)) for clip in latents)
        return torch.cat([torch.cat(blocks, dim=1) for blocks in clips])

    @torch.inference_mode()
    def blocks(
        self,
        latents: Tensor,
        samples: int | None = None,
        on_window: OnBlock = ignore,
        short: Callable[[], str] | None = None,
    ) -> Iterator[Tensor]:
        """(n, 8, t, 16) latents -> consecutive blocks (n, ...) of their float32 waveforms, on the
        CPU: each is decoded when it is asked for. `short` says what to do where memory runs out.
        """
        frames = latents.shape[2]
        short = short or (lambda: f"out of memory on {self.device} decoding {frames} latent frames")
        with explained(short), self.at_work(self.vae, self.vocoder):
            latents = latents.to(self.device)
            for block in decode_blocks(
                self.vae, self.vocoder, latents, samples, on_block=on_window
            ):
                yield block.clamp(-1, 1)

    def choose_attention(self, attention: str | LiteFocus, seconds: float) -> str | LiteFocus:
        """What "auto" means for a clip of this length."""
        if attention != "auto":
            return attention
        if seconds <= self.config.trained_seconds:
            return "dense"
        return LiteFocus.for_duration(seconds, trained_seconds=self.config.trained_seconds)

    def compile(self, mode: str | None = None) -> "AudioLDM2Pipeline":
        """Compile the UNet with torch.compile for every attention variant; the first step of a new
        length is slow.

        Args:
            mode: of torch.compile; default "reduce-overhead" (CUDA graphs) on CUDA, "default"
                elsewhere.
        """
        torch.compiler.allow_in_graph(rearrange)  # else its Python is traced, slowly
        graphs = self.device.type == "cuda" and not self.at_work.offload  # which moves weights
        mode = mode or ("reduce-overhead" if graphs else "default")
        self._evaluate = torch.compile(self.unet.denoise, fullgraph=True, dynamic=False, mode=mode)
        return self
