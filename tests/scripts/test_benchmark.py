"""The benchmark: who is timed, what is counted, and what is kept of it."""

import json
import sys

import pytest

from audiolitefocus.attention.settings import LiteFocus
from scripts.benchmark import speed as benchmark
from scripts.benchmark import timing
from scripts.benchmark.contenders import BATCH, attention_of, flops
from scripts.benchmark.report import Result, markdown, record

LEVEL_1_ATTENTIONS, LEVEL_1_CHANNELS = 20, 256  # of audioldm2-full
BEFORE_THE_TEXT = 3  # of those: two without a context and the next one's first


def test_flops_saved_by_a_query_that_sees_its_row_alone():
    rows, length = 8, 16
    tokens = rows * length
    per_attention = 2 * 2 * LEVEL_1_CHANNELS  # a product for scores, one for values
    attentions = BATCH * LEVEL_1_ATTENTIONS - BEFORE_THE_TEXT
    saved = attentions * per_attention * (tokens**2 - rows * length**2)
    assert flops("dense", 1.28) - flops("litefocus:0", 1.28) == saved


@pytest.mark.slow  # two networks of full size are counted
def test_flops_saved_by_adding_up_taps():
    """On CPUs four of nine products are left of every upsampling convolution."""
    pixels = {256: 64 * 16, 384: 32 * 8, 640: 16 * 4}  # after it, of 2.56 s
    saved = sum(2 * BATCH * (9 - 4) * channels**2 * n for channels, n in pixels.items())
    assert flops("diffusers", 2.56) - flops("naive", 2.56) == saved
    assert flops("diffusers", 2.56, "cuda") == flops("naive", 2.56, "cuda")


def test_flops_saved_by_doing_once_what_comes_before_the_text():
    first, tokens, c0, c1 = 64 * 16, 32 * 8, 128, 256
    level_0 = 9 * first * (8 * c0 + 4 * c0**2) + 9 * tokens * c0**2  # two blocks, downsampling
    resnet = tokens * (9 * c0 * c1 + 9 * c1**2 + c0 * c1)
    self_transformer = 2 + 2 * 4 + 12  # in and out, two attentions, feed-forward
    projections = tokens * c1**2 * (self_transformer + 1 + 4)  # up to the first cross-attention
    attention = BEFORE_THE_TEXT * 2 * tokens**2 * c1
    saved = 2 * (level_0 + resnet + projections + attention)
    assert flops("naive", 2.56) - flops("dense", 2.56) == saved


def test_contenders_attend_as_their_names_say():
    assert attention_of("auto", 10.24) == "dense"
    assert attention_of("auto", 80) == LiteFocus.for_duration(80)
    assert attention_of("litefocus:0:levels=1-2", 80) == LiteFocus(sparse_ratio=0, levels=(1, 2))
    assert attention_of("authors", 80).duplicates


def test_the_table_tells_how_many_times_faster_than_the_baseline_of_the_same_run():
    def run(baseline: float, ours: float) -> dict:
        results = [Result("diffusers", "float32", 80.0, times=[baseline])]
        results += [Result("auto", "bfloat16", 80.0, flops=600, times=[ours, 9 * ours, ours])]
        return record(results, {}, {"bfloat16": 1000.0})

    assert run(6.0, 2.0)["results"][1]["share_of_peak"] == 0.3
    table = markdown([run(6.0, 2.0), run(5.0, 1.0)])  # a later run replaces an earlier one
    assert "| 80 s | bfloat16 | - | 1.00 s, 5.00x |" in table.splitlines()


def test_clips_of_the_demo_model(tmp_path, monkeypatch, capsys):
    options = ["--what", "pipeline", "--seconds", "0.64", "--steps", "1", "--repeats", "1"]
    options += ["--dtypes", "float32", "--contenders", "dense", "litefocus:0", "diffusers"]
    options += ["--output", str(tmp_path / "made.json")]
    monkeypatch.setattr(sys, "argv", ["speed", *options])
    monkeypatch.setitem(timing.PEAK_SIZE, "cpu", 512)
    benchmark.main()
    found = json.loads((tmp_path / "made.json").read_text())
    assert found == json.loads(capsys.readouterr().out.splitlines()[-1])
    medians = {result["contender"]: result["median"] for result in found["results"]}
    assert medians["dense"] > 0 and medians["litefocus:0"] > 0 and medians["diffusers"] is None
    assert found["what"] == "pipeline" and found["peak_flops"]["float32"] > 1e9


def test_a_contender_nobody_knows(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--contenders", "flash"])
    with pytest.raises(SystemExit):
        benchmark.arguments()
    assert "attention 'flash'" in capsys.readouterr().err
