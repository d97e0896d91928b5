"""A first day with a model, in one go: `run_checks`."""

import os
from collections.abc import Iterator

import torch

from audiolitefocus.check.environment import check_environment
from audiolitefocus.check.model import Stages, check_clip, check_origin
from audiolitefocus.check.parity import check_parity
from audiolitefocus.check.report import ERRORS, Row, Section, one_line, without_paths
from audiolitefocus.check.speed import check_speed, recommend
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.runtime import choose_device, choose_dtype


def run_checks(
    model: str | os.PathLike,
    *,
    device: torch.device | str | None = "auto",
    dtype: torch.dtype | str | None = "auto",
    offload: bool = False,
) -> Iterator[Section]:
    """Check the machine and a model on it, section by section.

    Args:
        model, device, dtype, offload: as for `AudioLDM2Pipeline.from_pretrained`.

    Yields:
        Findings. What fails is a row that says so: `report.failures` lists them.

    Raises:
        ValueError: an unknown device or dtype, or one that is not present.
    """
    place = choose_device(device)
    chosen = choose_dtype(dtype, place)
    yield check_environment(place, chosen)
    try:
        pipe = AudioLDM2Pipeline.from_pretrained(model, device=place, dtype=chosen, offload=offload)
    except ERRORS as error:
        yield Section("Model", [Row("loading", without_paths(one_line(error)), ok=False)])
        return
    yield check_origin(os.fspath(model), pipe)
    stages = Stages(pipe)
    yield stages.check()
    yield check_clip(pipe)
    yield check_parity(stages)
    yield check_speed(stages)
    if stages.works:
        yield recommend(stages)
