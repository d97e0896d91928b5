"""AudioLDM2Pipeline: from a prompt to a waveform, in five stages."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audiolitefocus.attention.settings import Attention
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.codec.decode import decode_blocks, fill
from audiolitefocus.diffusion.distilled import options_for, warn_of_distillation
from audiolitefocus.diffusion.drafter import Drafter, check_drafter
from audiolitefocus.diffusion.noise import ClipNoise, initial_latents, seeded_streams
from audiolitefocus.diffusion.prompts import Array, Prompts
from audiolitefocus.diffusion.recording import Recording
from audiolitefocus.diffusion.windows import TOGETHER, window_seconds
from audiolitefocus.habits import CALLING, refuse
from audiolitefocus.interop import DiffusersHabits
from audiolitefocus.loaded import LoadedModel
from audiolitefocus.models.condition import Condition, pad_tokens, repeat_condition
from audiolitefocus.options import GenerationOptions
from audiolitefocus.output import AudioOutput
from audiolitefocus.parallel.settings import Parallel
from audiolitefocus.parallel.strategies import choose_strategy, strategy
from audiolitefocus.runtime import (
    available_memory,
    check_finite,
    clips_text,
    denoising_bytes,
    halve_on_oom,
    kept_bytes,
    oom_as_memory_error,
    oom_remedies,
)
from audiolitefocus.steps import Callback, OnStepEnd, RunningCall, RunningCalls, StepEnd
from audiolitefocus.validation import check_choice, check_number

OUTPUT_TYPES = ("np", "pt", "latent", "blocks")

OnBlock = Callable[[int, int], object]  # done, total


@dataclass(frozen=True)
class Request:
    """A call whose arguments have been checked.

    Attributes:
        prompts, options, recording: what to make, how, and from which recording, if any.
        length, window: of every clip, and of the windows in which it is denoised, if any.
        attention: settings, or "dense".
        parallel: the strategy for several devices, or "off".
        noise, start: the clips' streams of noise, and the latents they start from (n, 8, t, 16).
        drafter: takes some of the steps, if there is one.
    """

    prompts: Prompts
    options: GenerationOptions
    recording: Recording | None
    length: ClipLength
    window: ClipLength | None
    attention: Attention
    parallel: Parallel
    noise: ClipNoise
    start: Tensor
    drafter: "AudioLDM2Pipeline | None" = None


class AudioLDM2Pipeline(LoadedModel, DiffusersHabits):
    """Text to audio. Make one with `from_pretrained`, then call it.

    Calls share nothing but the weights: any number of threads may call one pipeline, with different
    options. Only loading the text towers, tokenizing and `offload`'s moves take turns.
    """

    def __init__(self, *networks: Any, **placement: Any):
        super().__init__(*networks, **placement)
        self._calls, self._bar = RunningCalls(), {"disable": True}

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        options: GenerationOptions | None = None,
        drafter: "AudioLDM2Pipeline | None" = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Array = None,
        prompt_embeds: Array = None,
        attention_mask: Array = None,
        generated_prompt_embeds: Array = None,
        negative_prompt_embeds: Array = None,
        negative_attention_mask: Array = None,
        negative_generated_prompt_embeds: Array = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback: Callback | None = None,
        callback_steps: int = 1,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        on_block: OnBlock | None = None,
        **changes,
    ) -> AudioOutput:
        """Make clips.

        Args:
            prompt: one text, or one for each clip; or give embeddings instead.
            options, changes: every choice of the call: `GenerationOptions` and fields of it by
                name, as `audio_length_in_s=80, num_inference_steps=25`.
            drafter: a second model with the same latents, which takes the steps of the option
                `drafter_interval`. It reads the prompt itself; prompts must be texts.
            generator: one for all clips or one for each, in place of `seed`; a clip does not depend
                on what else is in its batch.
            latents: initial noise (clips, 8, t, 16) to start from instead; its t may be any that
                covers the clip.
            prompt_embeds, attention_mask, generated_prompt_embeds: T5's encoding (n, s, 1024), its
                mask (n, s) and GPT-2's tokens (n, 8, 768); `encode_prompt` makes them.
            negative_prompt_embeds, negative_attention_mask, negative_generated_prompt_embeds: the
                same to steer away from.
            output_type: "np", "pt", "latent" for the denoised latents, or "blocks" to stream the
                waveforms, one clip after another (`AudioOutput.save` takes them).
            return_dict: False for a tuple of the `audios` alone.
            callback: called as callback(step, timestep, latents) every `callback_steps` steps;
                raise to cancel.
            callback_on_step_end: called as callback_on_step_end(pipe, step, timestep, {"latents":
                latents}) after every step; "latents" in the dict that it returns replace the
                current ones.
            callback_on_step_end_tensor_inputs: of "latents" alone.
            on_block: called as on_block(done, total) while a long clip is decoded in tiles.

        Raises:
            ValueError: an invalid argument, before any work; or latents that are not finite.
            MemoryError: one clip does not fit; the message says what would help.
        """
        # 1. Check everything before any work
        refuse(changes.keys() & CALLING, CALLING, "a call")
        options = GenerationOptions.make(options, changes)
        warn_of_distillation(self.config, options)
        options = options_for(self.config, options)
        self._check_call(options, output_type, callback_steps, callback_on_step_end_tensor_inputs)
        given = prompt_embeds, generated_prompt_embeds, attention_mask
        against = negative_prompt_embeds, negative_generated_prompt_embeds, negative_attention_mask
        prompts = Prompts.make(prompt, self.config.unet, options.negative_prompt, given, against)
        check_drafter(self, drafter, options, prompts)
        request = self._request(prompts, options, generator, latents, drafter)

        with oom_as_memory_error(self._oom_message(request)), self._calls() as call:
            # 2. Text -> conditioning
            condition, negative = self._encode(request)
            scale_factor = self.config.vae.scale_factor
            drafts = None if drafter is None else drafter._as_drafter(request, scale_factor)

            # 3. Noise -> latents
            steps = options.steps_taken * len(request.start)
            hooks = callback, callback_steps, callback_on_step_end
            with StepEnd(self, steps, self._bar, *hooks) as step_end:
                denoised = self._denoise(request, condition, negative, drafts, step_end, call)
            if output_type == "latent":
                return _returned(denoised, self.sampling_rate, None, request, return_dict)

            # 4. Latents -> waveform, decoded when it is asked for
            sounds = self._sounds(request, denoised, on_block)
            if output_type == "blocks":
                streams = [(block[0] for block in blocks) for blocks in sounds]
                return _returned(streams, self.sampling_rate, None, request, return_dict)
            audios = self._collect(sounds, request.length.samples)

            # 5. Rank candidates
            scores = None
            if prompts.texts is not None and options.num_waveforms_per_prompt > 1:
                audios, scores = self.rank(prompts.texts, audios)
        waveforms = audios.numpy() if output_type == "np" else audios
        return _returned(waveforms, self.sampling_rate, scores, request, return_dict)

    def encode_prompt(self, prompt: str | list[str]) -> Condition:
        """The condition of each text.

        Its `t5`, `t5_mask` and `loa` are the call's `prompt_embeds`, `attention_mask` and
        `generated_prompt_embeds`.
        """
        prompts = Prompts.make(prompt, self.config.unet)
        with torch.inference_mode(), self.on_device(self.text):
            return self.text.encode(prompts.texts or [])

    @torch.inference_mode()
    def decode(self, latents: Tensor, samples: int | None = None, decode: str = "auto") -> Tensor:
        """(n, 8, t, 16) latents -> float32 waveforms (n, samples) on the CPU, clip by clip."""
        clips = (list(self.blocks(clip[None], samples, decode)) for clip in latents)
        return torch.cat([torch.cat(blocks, dim=1) for blocks in clips])

    @torch.inference_mode()
    def blocks(
        self,
        latents: Tensor,
        samples: int | None = None,
        decode: str = "auto",
        on_block: OnBlock | None = None,
        oom_message: str | None = None,
    ) -> Iterator[Tensor]:
        """(n, 8, t, 16) latents -> consecutive blocks (n, ...) of their waveforms.

        They are float32 on the CPU, and each is decoded when it is asked for. `decode` and
        `on_block` as in the call; `oom_message` is that of the MemoryError if memory runs out.
        """
        frames = latents.shape[2]
        message = f"out of memory on {self.device} decoding {frames} latent frames"
        with oom_as_memory_error(oom_message or message), self.on_device(self.vae, self.vocoder):
            latents = latents.to(self.device)
            for block in decode_blocks(
                self.vae, self.vocoder, latents, samples, decode=decode, on_block=on_block
            ):
                yield block.clamp(-1, 1)

    def rank(self, prompts: list[str], audios: Tensor) -> tuple[Tensor, Tensor]:
        """Order the candidates of every prompt by CLAP, best first.

        Args:
            audios: (prompts * candidates, samples), those of one prompt together.

        Returns:
            The audios and their scores, in the new order.
        """
        each = len(audios) // len(prompts)
        repeated = [prompt for prompt in prompts for _ in range(each)]
        with self.on_device(self.text):
            scores = self.text.similarity(repeated, audios, self.sampling_rate).cpu()
        # stable, so that equal scores stay in the order of their noise
        order = scores.view(-1, each).argsort(dim=1, descending=True, stable=True)
        index = (order + each * torch.arange(len(prompts))[:, None]).flatten()
        return audios[index], scores[index]

    def _check_call(
        self,
        options: GenerationOptions,
        output_type: str,
        callback_steps: int,
        tensor_inputs: Sequence[str],
    ) -> None:
        """Raise ValueError for what does not go together."""
        for name in tensor_inputs:
            check_choice("callback_on_step_end_tensor_inputs", name, ("latents",))
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_number("callback_steps", callback_steps, 1, 10**9)
        train_steps = self.config.schedule.train_steps
        check_number("num_inference_steps", options.num_inference_steps, 1, train_steps)
        if output_type == "blocks" and options.num_waveforms_per_prompt > 1:
            raise ValueError('output_type "blocks": candidates are ranked by whole waveforms')

    def _request(
        self,
        prompts: Prompts,
        options: GenerationOptions,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        latents: Array,
        drafter: "AudioLDM2Pipeline | None",
    ) -> Request:
        """The recording, the length and the noise that clips start from. Raises ValueError."""
        recording = Recording.load(options, self.sampling_rate)
        seconds = options.audio_length_in_s if recording is None else recording.seconds
        length = ClipLength(seconds or self.config.trained_seconds, self.config)
        trained = self.config.trained_seconds
        window_s = window_seconds(options.windows, length.seconds, trained)
        window = None if window_s is None else ClipLength(window_s, self.config)
        attention = self.check_attention(options, window_s or length.seconds)
        clips = len(prompts) * options.num_waveforms_per_prompt
        parallel = choose_strategy(
            options,
            self.networks(),
            clips,
            length.seconds,
            windowed=window is not None,
            drafted=drafter is not None,
        )
        noise = ClipNoise(seeded_streams(generator, options.seed), clips)
        start = initial_latents(latents, noise, clips, length, self.config.unet.in_channels)
        if drafter is not None:
            drafter.check_attention(options, window_s or length.seconds)
        request = Request(
            prompts,
            options,
            recording,
            length,
            window,
            attention,
            parallel,
            noise,
            start,
            drafter,
        )
        self._warn_of_memory(request)
        return request

    def _as_drafter(self, request: Request, scale_factor: float) -> Drafter:
        """This model for a request of another one, whose latents have that scale."""
        condition, negative = self._encode(request)
        length = request.window or request.length
        attention = self.check_attention(request.options, length.seconds)
        scale = self.config.vae.scale_factor / scale_factor
        return Drafter(self.networks()[0], condition, negative, attention, scale)

    def _encode(self, request: Request) -> tuple[Condition, Condition | None]:
        """Conditions of every clip, and of what guidance steers away from."""
        prompts, options = request.prompts, request.options
        condition, negative = prompts.embeds, prompts.negative_embeds
        guided, copies = options.guided, options.num_waveforms_per_prompt
        if condition is None or (guided and negative is None):
            with self.on_device(self.text):
                if condition is None:
                    together = options.unconditional == "empty_prompt"
                    condition = self.text.encode(prompts.texts or [], pad_together=together)
                if guided and negative is None:
                    negative = self.text.negative(
                        prompts.negative_texts, condition, options.unconditional
                    )
        if self._evaluate != self.unet.evaluate:  # compiled
            condition = pad_tokens(condition)
            negative = None if negative is None else pad_tokens(negative)
        # the candidates of a prompt stand together
        condition = repeat_condition(condition, copies)
        return condition, repeat_condition(negative, copies) if guided and negative else None

    def _denoise(
        self,
        request: Request,
        condition: Condition,
        negative: Condition | None,
        drafter: Drafter | None,
        step_end: StepEnd,
        call: RunningCall,
    ) -> Tensor:
        """Latents (clips, 8, t, 16), of all clips together or in groups that fit into memory."""
        # 1. What is known: the latents of the recording
        start, options, known = request.start, request.options, None
        if request.recording is not None:
            with self.on_device(self.vae):
                known = request.recording.encode(
                    self.vae, self.config.vocoder, start.shape[2], options.decode
                )

        # 2. Denoise, with less at once where memory runs out
        def denoise_group(group: slice) -> Tensor:
            steps = strategy(request.parallel)(
                self.networks(),
                start[group],
                condition[group],
                None if negative is None else negative[group],
                options,
                self.config.schedule,
                attention=request.attention,
                fresh=request.noise[group],
                known=known,
                window=None if request.window is None else request.window.latent_frames,
                step_end=step_end,
                drafter=None if drafter is None else drafter[group],
            )
            for latents in steps:
                denoised = latents
                if call.stopped:
                    break
            return denoised

        with ExitStack() as running:
            for model in filter(None, (self, request.drafter)):
                running.enter_context(model.on_device(model.unet))
            latents = torch.cat(halve_on_oom(len(start), denoise_group))
        check_finite("latents after the last step", latents)
        return latents

    def _sounds(
        self, request: Request, latents: Tensor, on_block: OnBlock | None
    ) -> list[Iterator[Tensor]]:
        """Consecutive blocks (1, n) of every clip, with the recording where it is kept."""
        samples, decode = request.length.samples, request.options.decode
        message, recording = self._oom_message(request), request.recording
        sounds = [self.blocks(x[None], samples, decode, on_block, message) for x in latents]
        if recording is None or not recording.keeps_part:
            return sounds
        return [recording.splice(blocks) for blocks in sounds]

    def _collect(self, sounds: list[Iterator[Tensor]], samples: int) -> Tensor:
        """Blocks of every clip -> waveforms (n, samples)."""
        audios = torch.empty(len(sounds), samples)
        with self.on_device(self.vae, self.vocoder):
            for audio, blocks in zip(audios, sounds, strict=True):
                fill(audio, blocks)
        return audios

    def _warn_of_memory(self, request: Request) -> None:
        """On CPUs, which rather kill a process than refuse memory."""
        if self.device.type != "cpu" or (free := available_memory()) is None:
            return
        clips, length, window = len(request.start), request.length, request.window
        at_once, keeps = clips * length.latent_frames, request.options.refresh > 1
        if window is not None:
            at_once = min(at_once, max(clips, TOGETHER) * window.latent_frames)

        def bytes_of(model: AudioLDM2Pipeline) -> float:
            size = model.config, at_once, model.unet.conv_in.weight.element_size()
            return denoising_bytes(*size) + keeps * kept_bytes(*size)

        needed = max(map(bytes_of, filter(None, (self, request.drafter))))
        if needed > free:
            warnings.warn(
                f"{clips_text(clips)} of {length.seconds:g} s need about {needed / 1e9:.1f} GB, "
                f"and {free / 1e9:.1f} GB are free; {self._remedies(clips)}",
                stacklevel=4,
            )

    def _oom_message(self, request: Request) -> str:
        clips, seconds = len(request.start), request.length.seconds
        return (
            f"out of memory on {self.device} making {clips_text(clips)} of {seconds:g} s, even "
            f"one at a time; {self._remedies(clips)}"
        )

    def _remedies(self, clips: int) -> str:
        itemsize = self.unet.conv_in.weight.element_size()
        return oom_remedies(self.on_device, clips=clips, itemsize=itemsize)


def _returned(
    audios: Any, rate: int, scores: Tensor | None, request: Request, return_dict: bool
) -> AudioOutput:
    if not return_dict:
        return (audios,)  # type: ignore[return-value]  # as whoever asks for it knows
    return AudioOutput(audios, rate, scores, request.attention, request.parallel)
