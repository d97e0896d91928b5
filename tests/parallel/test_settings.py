"""The option `parallel`: its grammar, what "auto" chooses, and what does not go together."""

import pytest

from audiolitefocus.options import GenerationOptions
from audiolitefocus.parallel.settings import (
    AsyncDiff,
    check_parallel,
    choose_parallel,
    parallel_text,
    parse_parallel,
)

TEXTS = {
    "auto": "auto",
    "off": "off",
    "batch": "batch",
    "guidance": "guidance",
    "asyncdiff:2": AsyncDiff(),
    "asyncdiff:4": AsyncDiff(4),
    "asyncdiff:3:warmup=4:last=0:stride=2": AsyncDiff(3, 4, 0, 2),
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_stand_for_settings_and_back(text):
    assert parse_parallel(text) == TEXTS[text] == parse_parallel(TEXTS[text])
    assert parallel_text(TEXTS[text]) == text
    options = GenerationOptions(parallel=text)
    assert options.parallel == TEXTS[text] and options.to_json()["parallel"] == text
    assert GenerationOptions.make(None, options.to_json()) == options


def test_a_name_alone_is_two_parts_and_keys_come_in_any_order():
    assert parse_parallel("asyncdiff") == AsyncDiff()
    assert parse_parallel("asyncdiff:stride=2:parts=4") == AsyncDiff(4, stride=2)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("async", "must be auto, off, batch, guidance, asyncdiff:PARTS or"),
        (2, "must be auto"),
        ("guidance:2", "must be auto"),
        ("asyncdiff:1", "parts '1': must be a whole number from 2 to 16"),
        ("asyncdiff:two", "parts 'two': must be a whole number"),
        ("asyncdiff:2:stride=3", "stride '3': must be a whole number from 1 to 2"),
        ("asyncdiff:2:warmup=0", "warmup '0'"),
        ("asyncdiff:2:shift=1", "'shift=1' is not KEY=VALUE with one of parts, warmup"),
    ],
)
def test_other_texts_are_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError) as error:
        GenerationOptions(parallel=text)
    assert str(error.value).startswith("parallel ") and reason in str(error.value)


@pytest.mark.parametrize(
    "devices, clips, seconds, chosen",
    [
        (1, 1, 600.0, "off"),
        (1, 8, 600.0, "off"),
        (2, 1, 80.0, "off"),
        (2, 1, 250.0, "guidance"),
        (4, 1, 600.0, "guidance"),
        (4, 2, 600.0, "batch"),
        (2, 8, 10.24, "off"),
        (2, 25, 10.24, "batch"),
    ],
)
def test_auto_goes_by_devices_clips_and_length(devices, clips, seconds, chosen):
    call = {"devices": devices, "clips": clips, "seconds": seconds}
    assert choose_parallel("auto", **call) == chosen
    assert choose_parallel(AsyncDiff(), **call) == AsyncDiff()
    compiled = "off" if devices == 1 else "guidance" if clips == 1 else "batch"
    assert choose_parallel("auto", **call, compiled=True) == compiled


def test_strategies_that_do_not_fit_are_refused_with_the_remedy():
    fits = {"devices": ["cuda:0", "cuda:1"], "guided": True, "compiled": False}
    fits |= {"reuse": "off", "refresh": 1}
    for parallel in TEXTS.values():
        if parallel not in (AsyncDiff(4), AsyncDiff(3, 4, 0, 2)):
            check_parallel(parallel, **fits)
    for parallel, changes, reason in (
        (AsyncDiff(3), {}, "asyncdiff:3 needs 3 devices, and the pipeline has cuda:0, cuda:1"),
        (AsyncDiff(stride=2), {}, "asyncdiff:2:stride=2 needs 3 devices"),
        ("guidance", {"devices": ["cpu"]}, "guidance needs 2 devices, and the pipeline has cpu"),
        ("guidance", {"guided": False}, "set guidance_scale above 1"),
        (AsyncDiff(), {"reuse": "deepcache:3"}, "leave out reuse and refresh"),
        (AsyncDiff(), {"refresh": 2}, "leave out reuse and refresh"),
        (AsyncDiff(), {"compiled": True}, "does not run compiled"),
    ):
        with pytest.raises(ValueError, match=reason):
            check_parallel(parallel, **{**fits, **changes})
