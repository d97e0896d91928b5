"""TEMPORARY: the call that batch/ makes, on the pipeline that does not take `options=` yet.

Once `AudioLDM2Pipeline.__call__` takes `options` and `on_block`, and `AudioOutput` has `attention`,
this file goes: `clips.py` then calls `pipe(prompts, options=..., ...)` and reads
`output.attention`.
"""

from dataclasses import asdict

from audiolitefocus.attention import litefocus as old
from audiolitefocus.attention import settings as new
from audiolitefocus.attention import token_merging as old_tome
from audiolitefocus.pipeline import AudioLDM2Pipeline, AudioOutput


def call(pipe: AudioLDM2Pipeline, prompts, *, options, on_block, **arguments) -> AudioOutput:
    """`pipe(prompts, options=options, on_block=on_block, **arguments)`."""
    chosen = {name: getattr(options, name) for name in type(options).__dataclass_fields__}
    chosen = {name: value for name, value in chosen.items() if name not in ("seed", "decode")}
    attention = options.attention
    if isinstance(attention, new.LiteFocus):
        attention = old.LiteFocus(**asdict(attention))
    if isinstance(attention, new.TokenMerging):
        attention = old_tome.TokenMerging(**asdict(attention))
    chosen["attention"] = attention
    return pipe(prompts, **chosen, on_window=on_block, **arguments)


def attention_ran(pipe: AudioLDM2Pipeline, output: AudioOutput) -> new.Attention:
    """`output.attention`."""
    ran = pipe.unet.attention
    if ran is None:
        return "dense"
    kind = new.LiteFocus if isinstance(ran, old.LiteFocus) else new.TokenMerging
    return kind(**asdict(ran))
