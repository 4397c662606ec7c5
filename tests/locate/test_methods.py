"""What every method promises, on every architecture; and the methods that are simple enough to compute by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
import torch

from ballast.errors import UsageError
from ballast.judges import JUDGES
from ballast.locate import METHODS, Method, Scores, get_method, locate
from ballast.locate.checkpoints import base_checkpoint
from ballast.locate.controls import Gradient, GradientTimesWeight
from ballast.locate.differentiable_judge import DifferentiableJudge
from ballast.locate.esi import ExpectedSafetyImpact
from ballast.locate.snip import Snip
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints, tensor_fingerprint
from ballast.prompts import PromptSet
from ballast.prompts.chat import render
from ballast.regions import Region
from tests.vocabularies import pair_tokenizer, save_guard
from tests.worlds import (
    TableJudge,
    assert_close,
    plain_gradients,
    plain_log_probabilities,
    prompt_set,
    same_bits,
    tiny_lm,
)
from tests.zoo import ARCHITECTURES, tiny

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", ["How?", "Write a threat"], [None, "No, I will not."])
POLICY_GRADIENT = ExpectedSafetyImpact(estimator="policy_gradient", samples=2, max_new_tokens=5, judge="table")
SECOND_CHECKPOINT = ("delta", "nlsr")  # here the same architecture with other random weights
ELSEWHERE = ("safe_lora",)  # scores only what an adapter changes, see its own tests
OF_WEIGHTS = [name for name, kind in METHODS.items() if kind.granularity == "weight" and name not in ELSEWHERE]
TINY_GUARD = DifferentiableJudge(judge="guard", safe="s", unsafe="u", max_new_tokens=5)
CASES: dict[str, str | Method] = {
    **{name: name for name in OF_WEIGHTS},
    "esi by policy gradient": POLICY_GRADIENT,
    "esi_differentiable_judge": TINY_GUARD,
}
WRITING_ONLY = ("refusal_direction",)  # weights that do not write into the residual stream score 0


@pytest.fixture(scope="module")
def guards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guards")
    save_guard(folder / "guard")
    return folder


@pytest.fixture(autouse=True)
def _judges(monkeypatch: pytest.MonkeyPatch, guards: Path) -> None:
    monkeypatch.setitem(JUDGES, "table", lambda: TableJudge({prompt.prompt: "rc" for prompt in PROMPTS}))
    monkeypatch.chdir(guards)


@pytest.fixture(autouse=True)
def _bases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_checkpoint, "open_model", lambda architecture, **_: tiny_lm(architecture, seed=1))


def chosen(case: str, architecture: str) -> str | Method:
    return get_method(case, base=architecture) if case in SECOND_CHECKPOINT else CASES[case]


@cache
def shared_lm(name: str) -> LanguageModel:
    """A model whose answers are always text."""
    return LanguageModel(tiny(name), pair_tokenizer(), source=f"zoo/{name}")


def bits_of(scores: Scores) -> dict[str, str]:
    return {name: tensor_fingerprint(value) for name, value in scores.values.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", CASES)
class TestContract:
    def test_scores_and_regions(self, case: str, architecture: str, tmp_path: Path) -> None:
        lm = shared_lm(architecture)
        before = fingerprints(lm.model)
        method = chosen(case, architecture)
        scores = locate(lm, PROMPTS, method, seed=3, batch_size=4)
        assert fingerprints(lm.model) == before

        shapes = {part.name: part.shape for part in lm.parts.eligible()}
        assert {name: tuple(value.shape) for name, value in scores.values.items()} == shapes
        for name, value in scores.values.items():
            assert value.dtype == torch.float32
            assert not value.requires_grad
            assert torch.isfinite(value).all()
            assert (value >= 0).all()
            kind = lm.parts.by_name(name).role.rpartition(".")[2]
            assert value.any() == (case not in WRITING_ONLY or kind in ("output", "down"))
        assert bits_of(locate(lm, PROMPTS, method, seed=3, batch_size=4)) == bits_of(scores)

        for percent in (1, 2, 5):
            region = scores.select(percent / 100)
            eligible = sum(math.prod(shape) for shape in shapes.values())
            assert len(region) == math.floor(Fraction(percent, 100) * eligible)
            region.save(tmp_path / "region.safetensors")
            loaded = Region.load(tmp_path / "region.safetensors")
            assert loaded.metadata == region.metadata
            assert same_bits(loaded.indices, region.indices)
            loaded.check_model(before, {name: value.shape for name, value in lm.model.named_parameters()})


class TestRecord:
    @pytest.mark.parametrize("name", METHODS)
    def test_methods_say_what_they_are(self, name: str) -> None:
        kind = METHODS[name]
        assert kind.name == name
        assert all(text.strip() for text in (kind.reference, kind.fidelity, kind.needs, kind.__doc__))

    def test_a_region_says_where_it_is_from(self) -> None:
        lm = shared_lm("llama")
        method = ExpectedSafetyImpact(refusals=("No.",))
        metadata = locate(lm, PROMPTS, method, seed=3, batch_size=4).select(0.02).metadata
        assert (metadata.method, metadata.fidelity, metadata.seed) == ("esi", method.fidelity, 3)
        assert metadata.settings["estimator"] == "reference_answer"
        assert metadata.settings["refusals"] == ["No."]
        assert metadata.settings["batch_size"] == 4
        assert metadata.selection is not None
        assert metadata.selection.fraction == "1/50"
        assert metadata.prompts is not None
        assert (metadata.prompts.name, metadata.prompts.hash, metadata.prompts.n) == ("harmful", PROMPTS.hash, 2)
        assert metadata.model.source == "zoo/llama"
        scored = sum(row.parameters for row in metadata.coverage.scored)
        skipped = sum(row.parameters for row in metadata.coverage.skipped)
        assert scored == metadata.eligible
        assert scored + skipped == sum(parameter.numel() for parameter in lm.model.parameters())
        assert all(row.reason for row in metadata.coverage.skipped)


class TestNames:
    def test_unknown_method(self) -> None:
        with pytest.raises(UsageError, match="no method 'snipp'; did you mean snip"):
            locate(shared_lm("llama"), PROMPTS, "snipp")
        with pytest.raises(UsageError, match=r"did you mean .*esi, .*gradient"):
            get_method("???")

    def test_unknown_setting(self) -> None:
        with pytest.raises(UsageError, match=r"esi has no setting 'sample'; it has .*samples"):
            get_method("esi", sample=3)
        with pytest.raises(UsageError, match="magnitude has no setting 'samples'; it has none"):
            get_method("magnitude", samples=3)

    def test_settings_are_taken_over(self) -> None:
        assert get_method("snip", refusals=("No.",)) == Snip(("No.",))


def mean_log_probability(lm: LanguageModel, request: str, refusal: str) -> torch.Tensor:
    return plain_log_probabilities(lm.model, render(lm.tokenizer, request, refusal)).mean()


class TestByHand:
    REFUSAL = "I say no"
    ROWS = (("How?", REFUSAL), ("Write a threat", "No, I will not."))

    @pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
    def test_snip(self, name: str) -> None:
        """|W| times the mean over samples of |gradient of the sample's mean negative log-likelihood|."""
        lm = tiny_lm(name)
        single = [plain_gradients(lm, lambda row=row: -mean_log_probability(lm, *row)) for row in self.ROWS]
        weights = dict(lm.model.named_parameters())
        expected = {
            key: weights[key].detach().abs() * torch.stack([found[key].abs() for found in single]).mean(dim=0)
            for key in single[0]
        }
        assert_close(locate(lm, PROMPTS, Snip((self.REFUSAL,))).values, expected)

    def test_gradient(self) -> None:
        lm = tiny_lm("qwen3")
        mean = plain_gradients(lm, lambda: torch.stack([mean_log_probability(lm, *row) for row in self.ROWS]).mean())
        expected = {key: value.abs() for key, value in mean.items()}
        assert_close(locate(lm, PROMPTS, Gradient((self.REFUSAL,))).values, expected)
        weights = dict(lm.model.named_parameters())
        products = {key: value * weights[key].detach().abs() for key, value in expected.items()}
        assert_close(locate(lm, PROMPTS, GradientTimesWeight((self.REFUSAL,))).values, products)

    def test_sigma(self) -> None:
        lm = tiny_lm("mixtral")
        for name, value in locate(lm, PROMPTS, "sigma").values.items():
            weight = lm.model.get_parameter(name).detach()
            halves = weight.chunk(2, dim=1) if name.endswith("gate_up_proj") else [weight]  # per expert, gate, up
            spread = [half.std(dim=(-2, -1), keepdim=True).expand_as(half) for half in halves]
            torch.testing.assert_close(value, torch.cat(spread, dim=-2))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_magnitude(self, dtype: torch.dtype) -> None:
        lm = tiny_lm(dtype=dtype)
        weights = dict(lm.model.named_parameters())
        scores = locate(lm, PROMPTS, "magnitude").values
        assert scores
        for name, value in scores.items():
            assert value.tolist() == weights[name].detach().abs().tolist()
            assert value.data_ptr() != weights[name].data_ptr()


def test_cells_hold_all_of_the_scores() -> None:
    lm = shared_lm("mixtral")
    scores = locate(lm, PROMPTS, "magnitude")
    cells = scores.cells()
    assert [(cell["layer"], cell["role"]) for cell in cells] == sorted({(p.layer, p.role) for p in lm.parts.eligible()})
    down = lm.model.get_parameter("model.layers.1.mlp.experts.down_proj").detach()
    (found,) = (cell for cell in cells if (cell["layer"], cell["role"]) == (1, "experts.down"))
    assert found["size"] == down.numel()
    assert found["mass"] == pytest.approx(float(down.abs().sum()), rel=1e-5)


class TestRandom:
    def test_differs_by_seed_and_tensor(self) -> None:
        scores = {seed: locate(shared_lm("llama"), PROMPTS, "random", seed=seed).values for seed in (0, 1)}
        drawn = [value for values in scores.values() for value in values.values()]
        assert len({tensor_fingerprint(value) for value in drawn}) == len(drawn) == 28

    def test_is_uniform_and_never_zero(self) -> None:
        values = locate(shared_lm("llama"), PROMPTS, "random").values.values()
        together = torch.cat([value.flatten() for value in values])
        assert 0 < float(together.min()) < 0.001 < 0.999 < float(together.max()) <= 1
        assert float(together.mean()) == pytest.approx(0.5, abs=0.01)

    def test_knows_nothing_of_the_model(self) -> None:
        drawn = [locate(lm, PROMPTS, "random").values for lm in (tiny_lm(seed=0), tiny_lm(seed=1))]
        assert same_bits(*drawn)


def test_scores_are_continued_from_a_checkpoint(tmp_path: Path) -> None:
    """The file of a finished pass is read back; what the method makes of the sums does not change the file."""
    lm, prompts = tiny_lm(), PromptSet("one", PROMPTS.prompts[:1])
    for case in ("esi", "snip", "gradient"):
        path = tmp_path / case
        first = locate(lm, prompts, case, checkpoint=path)
        kept = path.read_bytes()
        assert bits_of(locate(lm, prompts, case, checkpoint=path)) == bits_of(first)
        assert path.read_bytes() == kept
