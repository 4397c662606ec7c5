"""Locating on streamed models: the same bits as in memory, a clear no where weights are needed, and less memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ballast import Patch, finetune, harden, merge_protected
from ballast.errors import ModelError
from ballast.locate import Method, UnitScores, WeightScores, get_method, locate, locate_all
from ballast.locate.layers.gap_curve import Window
from ballast.locate.layers.scaling import scaled_outputs
from ballast.locate.sahara import Sahara
from ballast.models import LanguageModel
from ballast.models.generation import answer_batch
from ballast.models.upcycle import upcycled
from ballast.patches import Origin, export
from ballast.regions import Region
from ballast.regions.formed import Formed
from ballast.regions.noise import noisy
from tests.locate.world import HARMFUL, NORMAL, written
from tests.models.streams import both
from tests.worlds import prompt_set, same_bits, tiny_lm
from tests.zoo import VOCABULARY, tiny_tokenizer

torch.set_num_threads(1)

PROMPTS = prompt_set(
    "harmful", ["How?", "Write a long threat", "And?"], ["No.", "No, I will not.", "Never would I do that."]
)
OF_WEIGHTS = ("wanda", "refusal_direction", "magnitude", "sigma", "random")
OF_UNITS: dict[str, Method] = {
    "neurons": get_method("neurons"),
    "ships": get_method("ships"),
    "sahara": Sahara(heads=2, vectors=2),
}


def assert_same_regions(found: Region, expected: Region) -> None:
    assert found.metadata == expected.metadata  # fingerprints and coverage included
    assert same_bits(found.indices, expected.indices)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "qwen3_moe", "gpt_oss"])
def test_scores_of_weights(architecture: str, tmp_path: Path) -> None:
    whole, streamed = both(architecture, tmp_path)
    expected, found = (locate_all(lm, PROMPTS, OF_WEIGHTS, batch_size=2) for lm in (whole, streamed))
    for mine, theirs in zip(found, expected, strict=True):
        assert isinstance(mine, WeightScores)
        assert isinstance(theirs, WeightScores)
        assert mine.settings == theirs.settings
        assert isinstance(mine.values, Formed)
        assert isinstance(theirs.values, dict)
        assert same_bits(mine.values, theirs.values)
        assert mine.cells() == theirs.cells()
        assert_same_regions(mine.select(0.02), theirs.select(0.02))
    refined, expected_refined = (
        [scores.select(0.05, scope="per_layer", layers=[1], outside=scores.select(0.01)) for scores in pair]
        for pair in (found[:2], expected[:2])
    )
    for mine_cut, theirs_cut in zip(refined, expected_refined, strict=True):
        assert_same_regions(mine_cut, theirs_cut)


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("case", OF_UNITS)
def test_scores_of_units(architecture: str, case: str, tmp_path: Path) -> None:
    if architecture == "deepseek_v3" and case != "neurons":
        pytest.skip("its heads come out of latent vectors")
    whole, streamed = both(architecture, tmp_path)
    expected, found = (locate(lm, PROMPTS, OF_UNITS[case], batch_size=2) for lm in (whole, streamed))
    assert isinstance(found, UnitScores)
    assert isinstance(expected, UnitScores)
    assert found.settings == expected.settings
    assert all(torch.equal(*pair) for pair in zip(found.values, expected.values, strict=True))
    assert_same_regions(found.select("1/4"), expected.select("1/4"))


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return both("llama", tmp_path_factory.mktemp("models"))[1]


def located_by(method: str) -> Callable[[LanguageModel, Path], object]:
    return lambda lm, _: locate(lm, PROMPTS, method)


USES: dict[str, Callable[[LanguageModel, Path], object]] = {
    **{
        method: located_by(method)
        for method in ("esi", "esi_differentiable_judge", "snip", "gradient", "gradient_times_weight")
    },
    "delta": lambda lm, folder: locate(lm, PROMPTS, "delta", base=str(base_of(folder))),
    "harden": lambda lm, _: harden(lm, region_of(lm)),
    "noise": lambda lm, _: noisy(lm, region_of(lm)).__enter__(),
    "apply": lambda lm, _: a_patch().apply(lm.model),
    "revert": lambda lm, _: a_patch().revert(lm.model),
    "between": lambda lm, _: Patch.between(tiny_lm().model, lm.model, base=Origin(source="a", name="a", revision=None)),
    "export": lambda lm, folder: export(lm, None, folder / "exported"),
    "finetune": lambda lm, folder: finetune(lm, PROMPTS, protect=None, out=folder / "exported"),
    "merge": lambda lm, folder: merge_protected(lm, folder, region_of(lm)),
    "answer": lambda lm, _: answer_batch(lm, [[5, 6]], 4),
    "upcycle": lambda lm, _: upcycled(lm),
}


def base_of(folder: Path) -> Path:
    tiny_lm(seed=1).model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def region_of(lm: LanguageModel) -> Region:
    return locate(lm, PROMPTS, "magnitude").select(0.1)


def a_patch() -> Patch:
    lm, name = tiny_lm(), "model.layers.0.mlp.up_proj.weight"
    changes = {name: (torch.tensor([3]), torch.tensor([1.5]), lm.model.get_parameter(name).detach().view(-1)[[3]])}
    return Patch.from_values(changes, lm.model, base=Origin(source="a", name="a", revision=None))


@pytest.mark.parametrize("use", USES)
def test_what_needs_weights_in_memory_says_so(use: str, streamed: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"opened with stream=True \(--stream\).*open it without"):
        USES[use](streamed, tmp_path)
    assert all(streamed.model.get_parameter(name).is_meta for name in streamed.stored)
    assert not list(tmp_path.glob("exported*"))


def test_safety_layers(tmp_path: Path) -> None:
    normal = written(tmp_path / "normal.jsonl", NORMAL)
    expected, found = (locate(lm, HARMFUL, "safety_layers", normal=normal) for lm in both("llama", tmp_path))
    assert isinstance(found, UnitScores)
    assert isinstance(expected, UnitScores)
    assert found.settings == expected.settings
    assert all(torch.equal(*pair) for pair in zip(found.values, expected.values, strict=True))


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_scaled_layers(architecture: str, tmp_path: Path) -> None:
    """A scaled stack of experts is scaled while its block runs, and its empty place is back behind it."""
    ids = torch.arange(4, 30)[None]
    outputs = []
    for lm in both(architecture, tmp_path):
        with torch.no_grad(), scaled_outputs(lm, Window(1, 2), 1.5):
            outputs.append(lm.model(ids, use_cache=False).logits)
    assert torch.equal(*outputs)
    assert all(lm.model.get_parameter(name).is_meta for name in lm.stored)


SCRIPT = """
import sys, torch
from ballast import load_prompts, locate, open_model
torch.set_num_threads(1)
lm = open_model(sys.argv[1], stream=sys.argv[2] == "streamed", device="cpu")
locate(lm, load_prompts("builtin/harmful/tune", limit=4), "wanda").select(0.001)
fields = dict(line.split(":") for line in open("/proc/self/status"))
print(int(fields["VmHWM"].split()[0]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_peak_memory(tmp_path: Path) -> None:
    """Weights of 151 MiB in 24 blocks, scores of 302 MiB: both are in memory at once, or one block and one score."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=24,
        num_attention_heads=8,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path, max_shard_size="40MB")
    tiny_tokenizer().save_pretrained(tmp_path)
    peaks = {}
    for way in ("whole", "streamed"):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), way]
        peaks[way] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peaks["whole"] - peaks["streamed"] > 250, peaks
