"""What weights that were distilled make of a call's options: few steps, and no second half."""

import warnings
from dataclasses import replace

from audiolitefocus.config import BundleConfig
from audiolitefocus.diffusion.schedule import consistency_grid
from audiolitefocus.options import DEFAULTS, GenerationOptions, OptionError

STEPS = 4


def options_for(config: BundleConfig, options: GenerationOptions) -> GenerationOptions:
    """A call's options for the weights of a model.

    With weights that were distilled, what has its default becomes theirs: "lcm" for "ddim", `STEPS`
    for 200, and the guidance that is baked in. Other weights change nothing.

    Raises:
        OptionError: "lcm" for weights that were not distilled, more steps than it has, or options
            that need guidance.
    """
    # 1. Whose sampler it is
    distilled = config.distilled
    if distilled is None:
        if options.sampler == "lcm":
            raise OptionError(
                "{sampler} lcm needs weights that were distilled for it, and those of {0} were "
                "not: load such an adapter (load_lora, --lora), make one (audiolitefocus finetune "
                "--distill lcm), or take {sampler} dpm++",
                config.name,
            )
        return options
    if options.sampler not in (DEFAULTS["sampler"], distilled.sampler):
        return options

    # 2. Its defaults
    steps, most = options.num_inference_steps, len(consistency_grid(config.schedule.train_steps))
    if steps == DEFAULTS["num_inference_steps"]:
        steps = STEPS
    if steps > most:
        raise OptionError(
            "{num_inference_steps} {0}: lcm takes {1} at most, and 2 to 8 are what it is for",
            steps,
            most,
        )
    return replace(
        options,
        sampler=distilled.sampler,
        num_inference_steps=steps,
        guidance_scale=distilled.guidance_scale,
    )


def warn_of_distillation(config: BundleConfig, options: GenerationOptions) -> None:
    """Warn if a caller's options ask distilled weights for what they do not do."""
    distilled = config.distilled
    if distilled is None:
        return
    baked = distilled.guidance_scale
    if options.sampler not in (DEFAULTS["sampler"], distilled.sampler):
        warnings.warn(
            f"sampler {options.sampler}: {config.name} has weights that were distilled for "
            f"{distilled.sampler}, with guidance {baked:g} baked in",
            stacklevel=4,
        )
    elif options.guidance_scale not in (DEFAULTS["guidance_scale"], baked):
        warnings.warn(
            f"guidance_scale {options.guidance_scale:g} does nothing: {config.name} has weights "
            f"with {baked:g} baked in",
            stacklevel=4,
        )
