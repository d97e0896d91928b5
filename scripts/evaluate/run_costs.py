"""What a run costs, by counted operations, whatever options make it cheaper."""

from audiolitefocus.attention.settings import Attention
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.diffusion.guidance import guidance_scales
from audiolitefocus.diffusion.windows import Layout, window_seconds
from audiolitefocus.options import GenerationOptions
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.reuse.settings import choose_reuse
from scripts.reuse.costs import Costs


class RunCosts:
    """Operations of runs of one clip.

    Args:
        pipe, drafter: that make it.
        seconds: its length.
    """

    def __init__(self, pipe: AudioLDM2Pipeline, drafter: AudioLDM2Pipeline | None, seconds: float):
        self.pipe, self.drafter, self.seconds = pipe, drafter, seconds
        self.counted: dict[tuple, Costs] = {}

    def of(self, options: GenerationOptions) -> float | None:
        """Of a run; None where they depend on the clip, or where two models reuse."""
        drafts = options.drafter_interval is not None
        if options.adaptive_guidance is not None or (drafts and options.reuse != "off"):
            return None
        steps = options.steps_taken
        interval = options.guidance_interval or (0.0, 1.0)
        scale = options.guidance_scale if options.guided else 1.0
        scales = guidance_scales(scale, interval, steps)
        reuse = choose_reuse(options.reuse, options.sampler, steps)
        table = {} if reuse is None else reuse.table(steps)
        drafted = options.drafted_steps if drafts else ()
        seconds, count = self.at_once(options)
        total = 0.0
        for step, scale in enumerate(scales):
            costs = self.evaluation(step in drafted, seconds, options.attention, 1 + (scale != 1))
            total += costs.counted.with_reused([u for u, row in table.items() if not row[step]])
        return count * total

    def at_once(self, options: GenerationOptions) -> tuple[float, int]:
        """Seconds of what is denoised at once, and how many there are: a clip, or its windows."""
        config, seconds = self.pipe.config, self.seconds
        window = window_seconds(options.windows, seconds, config.trained_seconds)
        if window is None:
            return seconds, 1
        frames, length = (ClipLength(s, config).latent_frames for s in (seconds, window))
        return window, len(Layout(frames, length).starts)

    def evaluation(
        self, drafts: bool, seconds: float, attention: Attention, branches: int
    ) -> Costs:
        """Of one model, counted once."""
        pipe = self.drafter if drafts and self.drafter is not None else self.pipe
        key = drafts, seconds, pipe.choose_attention(attention, seconds), branches
        if key not in self.counted:
            self.counted[key] = Costs(pipe.config, *key[1:])
        return self.counted[key]
