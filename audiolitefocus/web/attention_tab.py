"""A tab that shows where the attention of the model goes: Figure 2 of the LiteFocus paper."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import gradio as gr
import torch
from PIL import Image

from audiolitefocus.attention.watch import Share, Watch, first_of_every_level, steps_between
from audiolitefocus.options import GenerationOptions
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.web.form import component, read_options
from audiolitefocus.web.limits import Limits, check_for_model, check_prompt
from audiolitefocus.web.look import one_line
from audiolitefocus.web.pictures import attention_maps
from audiolitefocus.web.worker import Worker

LONGEST = 2.0  # trained lengths: dense attention of longer clips takes too long to look at
# options that can be chosen here, with what they begin with
FIELDS: dict[str, dict] = {
    "audio_length_in_s": {},
    "num_inference_steps": {"value": 20},
    "seed": {"value": "0"},
}
NOTE = (
    "Each picture is one self-attention in one step of a clip made with dense attention. Its "
    "tokens are in order of frequency row: queries upwards, keys to the right. LiteFocus rests on "
    "squares along the diagonal where there are most rows: attention stays in the query's own row."
)


def build(pipe: AudioLDM2Pipeline, worker: Worker, limits: Limits) -> None:
    """Put the tab's components where they are called."""
    gr.Markdown(NOTE)
    with gr.Row():
        prompt = gr.Textbox("a bell over rain", label="Prompt", scale=3, min_width=240)
        fields = [component(n, min_width=110, elem_id=f"look-{n}", **FIELDS[n]) for n in FIELDS]
    look = gr.Button("Look", variant="primary")
    picture = gr.Image(
        show_label=False,
        format="png",
        buttons=["download", "fullscreen"],
        alt_text="Attention maps: a row for each level, a column for each step",
    )
    columns = ["rows", "step", "in its row", "by chance"]
    table = gr.Dataframe(headers=columns, label="Mean of all attentions", interactive=False)

    def run(
        prompt: str,
        seconds: str,
        steps: float,
        seed: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ):
        try:
            options = read_options(dict(zip(FIELDS, (seconds, steps, seed), strict=True)))
            check_prompt("prompt", prompt)
            return look_at(pipe, worker, prompt, options, limits, progress)
        except (ValueError, MemoryError) as error:
            raise one_line(error) from None

    look.click(
        run,
        [prompt, *fields],
        [picture, table],
        concurrency_limit=1,
        api_visibility="private",
    )


def look_at(
    pipe: AudioLDM2Pipeline,
    worker: Worker,
    prompt: str,
    options: GenerationOptions,
    limits: Limits,
    progress: Callable[..., Any],
) -> tuple[Image.Image, list[list[str]]]:
    """Make a clip with dense attention, and see where that goes: a picture, and a table of means.

    Raises:
        ValueError: options that the model does not have, or a clip that is too long.
    """
    longest = LONGEST * pipe.config.trained_seconds
    if check_for_model(pipe, options, None, limits) > longest:
        raise ValueError(f"duration: to look at attention, at most {longest:g} s")
    watching = Watch(
        pipe.unet, first_of_every_level(pipe.unet), steps_between(options.num_inference_steps)
    )

    def on_step(step: int, timestep: int, latents: torch.Tensor) -> None:
        watching.next_step(step, timestep, latents)
        progress((step + 1, options.num_inference_steps), unit="steps")

    with worker.device, watching:
        pipe(
            prompt,
            options=options,
            attention="dense",
            guidance_scale=1.0,
            output_type="latent",
            callback=on_step,
        )
    return attention_maps(watching.maps, watching.shares), means(watching.shares)


def means(shares: list[Share]) -> list[list[str]]:
    """A line for each number of rows and step: how much stays in the row, and would by chance."""
    groups: dict[tuple[int, int], list[Share]] = {}
    for share in shares:
        groups.setdefault((share.rows, share.step), []).append(share)
    return [
        [str(rows), str(step + 1), f"{fmean(s.share for s in group):.1%}", f"{1 / rows:.1%}"]
        for (rows, step), group in sorted(
            groups.items(), key=lambda item: (-item[0][0], item[0][1])
        )
    ]
