"""How good sounds are: Fréchet audio distance, KL divergence and CLAP score, with intervals.

Of clips made by a bundle, for every given length and attention, or of a folder of sounds:

python -m scripts.evaluate.evaluate --reference demo-world --clips 200 --seconds 2.56 10.24 \\
    --attention dense litefocus tome --steps 10 --sampler dpm++ --out quality
python -m scripts.evaluate.evaluate --reference test.csv --sounds made --out quality

Clips and their embeddings are kept: the same command goes on where it was cut off.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from audiolitefocus.attention.settings import parse_attention
from audiolitefocus.audio.length import check_seconds
from audiolitefocus.options import DEFAULTS, OPTIONS, SHORT, GenerationOptions, flag_of
from scripts.evaluate.references import DEMO_WORLD, read_references
from scripts.evaluate.results import Cell, Results, markdown, plot
from scripts.evaluate.runner import MADE_WITH, Evaluation


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--reference", required=True, help=f"a folder, a CSV like AudioCaps', or {DEMO_WORLD}")
    add("--reference-sounds", type=Path, help="folder of a CSV's sounds; default: beside it")
    add("--sounds", type=Path, help="evaluate this folder instead of making clips")
    add("--clips", type=int, help="the first so many of the reference; default: all")
    add("--seconds", type=float, nargs="+", help="clip lengths; default: as trained")
    add("--attention", nargs="+", default=["auto"], help="auto, dense, tome, litefocus:RATIO, ...")
    add("--model", default="demo", help="the bundle that makes clips, and whose CLAP embeds them")
    for name in ("num_inference_steps", "sampler", "guidance_scale"):
        option, default = OPTIONS[name], DEFAULTS[name]
        add(flag_of(name), dest=SHORT[name], type=option.rule.kind, default=default)
    add("--seed", type=int, default=0, help="of the first clip; others follow")
    add("--batch-size", type=int, default=8)
    add("--embedder", help="aisfx or an audio model of transformers, for FAD; default: CLAP")
    add("--classifier", help="audio classifier of transformers for KL; default: the bundle's")
    add("--resamples", type=int, default=1000, help="of the bootstrap")
    add("--device", default="auto")
    add("--dtype", default="auto")
    add("--out", type=Path, required=True, help="folder for clips and all else")
    add("--results", type=Path, help="JSON file; default: results.json in that folder")
    return parser.parse_args(arguments)


def check(chosen: argparse.Namespace) -> None:
    """Raise ValueError for invalid options, before anything is loaded."""
    for text in chosen.attention:
        parse_attention(text)
    for seconds in chosen.seconds or ():
        check_seconds(seconds)
    for name, least in (("clips", 2), ("resamples", 100), ("batch_size", 1)):
        value = getattr(chosen, name)
        if value is not None and value < least:
            raise ValueError(f"{name} {value}: at least {least}")
    GenerationOptions.make(None, {name: getattr(chosen, name) for name in MADE_WITH})
    if chosen.reference != DEMO_WORLD:
        read_references(chosen.reference, sounds=chosen.reference_sounds)


def run(chosen: argparse.Namespace) -> list[Cell]:
    """All cells, old and new, after the new ones have been evaluated."""
    check(chosen)
    evaluation = Evaluation(chosen)
    results = Results(chosen.results or chosen.out / "results.json", evaluation.about())
    if chosen.sounds is not None:
        results.add(evaluation.cell_of(chosen.sounds, (chosen.seconds or [None])[0]))
    else:
        for seconds in chosen.seconds or [evaluation.pipe.config.trained_seconds]:
            for attention in chosen.attention:
                results.add(evaluation.cell(attention, seconds))
    return results.ordered()


def main() -> None:
    chosen = options()
    try:
        cells = run(chosen)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"error: {error}")
    try:
        plot(cells, chosen.out / "quality.png")
    except ModuleNotFoundError:
        print("no plot: pip install 'audiolitefocus[plot]'", file=sys.stderr)
    print(markdown(cells))
    print(json.dumps([asdict(cell) for cell in cells]))


if __name__ == "__main__":
    main()
