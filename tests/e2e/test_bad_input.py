"""What users get wrong: one sentence, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MambaConfig

from ballast.cli import main
from tests.e2e.world import command, environment, left_behind, make_checkpoint, make_prompts
from tests.locate.adapters import adapted
from tests.worlds import tiny_lm
from tests.zoo import HIDDEN, VOCABULARY, tiny_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 1) -> str:
    """Run a command that must fail; give what it says, which is one sentence and no traceback."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert stopped.value.code == code, printed.err
    assert printed.out == ""
    assert "Traceback" not in printed.err
    message = printed.err.strip().splitlines()[-1]
    assert message.startswith("Error: ")
    return message


def test_prompt_files(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    empty, broken = tmp_path / "empty.jsonl", tmp_path / "broken.jsonl"
    empty.write_text("")
    broken.write_text('{"prompt": "one"}\n{"prompt": \n')
    measure = ("measure", checkpoint, "--out", out, "--judge", "keyword", "--safety")
    assert "no prompts" in fails(capsys, *measure, empty)
    assert "line 2" in fails(capsys, *measure, broken)
    assert "does not exist" in fails(capsys, *measure, tmp_path / "gone.jsonl")
    assert "builtin/harmful" in fails(capsys, *measure, "builtin/harmfull")
    long = make_prompts(tmp_path / "long.jsonl", "word " * 600, 1)
    assert "room for" in fails(capsys, *measure, long)
    assert not (out / "summary.json").exists()


def test_usage(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = make_prompts(tmp_path / "bad.jsonl", "make", 2)
    locate = ("locate", checkpoint, "--prompts", prompts, "--out", tmp_path / "out")
    for fraction in ("0", "1.5", "nan", "-1"):
        assert "fraction" in fails(capsys, *locate, "--fraction", fraction, code=2)
    assert "esi" in fails(capsys, *locate, "--method", "esy", code=2)
    assert "samples" in fails(capsys, *locate, "--setting", "sample=3", code=2)
    assert "per_row" in fails(capsys, *locate, "--scope", "rows", code=2)
    for layers in ("2-1", "last", "-1", "1-", "0-x"):
        assert "such as 15-29" in fails(capsys, *locate, f"--layers={layers}", code=2)
    measure = ("measure", checkpoint, "--out", tmp_path / "out", "--safety", prompts)
    assert "keyword" in fails(capsys, *measure, "--judge", "keywords")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stopped:
        main(["measure"])
    assert stopped.value.code == 2


def test_model_folders(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def opening(folder: Path) -> str:
        return fails(capsys, "measure", folder, "--out", tmp_path / "out", "--safety", "builtin/harmful/test")

    assert "not a model folder" in opening(tmp_path / "gone")
    bare = Path(shutil.copytree(checkpoint, tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    assert "no weights" in opening(bare)
    torch.save({}, bare / "pytorch_model.bin")
    assert "--allow-pickle" in opening(bare)
    cut = Path(shutil.copytree(checkpoint, tmp_path / "cut"))
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "damaged" in opening(cut)
    assert not (tmp_path / "out").exists()


def test_artefacts_of_another_model(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_checkpoint(tmp_path / "other", seed=1)
    prompts = make_prompts(tmp_path / "bad.jsonl", "make", 2)
    main_ok("locate", checkpoint, "--prompts", prompts, "--fraction", "0.1", "--out", tmp_path / "region")
    capsys.readouterr()
    region = tmp_path / "region" / "region.safetensors"
    before = left_behind(tmp_path)
    assert "locate" in fails(capsys, "harden", other, region, "--out", tmp_path / "hardened")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(region.read_bytes()[:-7])
    fails(capsys, "harden", checkpoint, damaged, "--out", tmp_path / "hardened")
    fails(capsys, "patch", "info", region)
    assert left_behind(tmp_path) == before | {"damaged.safetensors"}
    assert "other settings" in fails(
        capsys, "locate", checkpoint, "--prompts", prompts, "--fraction", "0.2", "--out", tmp_path / "region"
    )


def test_utility_without_answers(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = make_prompts(tmp_path / "asked.jsonl", "make", 2)
    message = fails(capsys, "locate", checkpoint, "--utility", prompts, "--out", tmp_path / "region")
    assert "make-0 of asked has no response, but utility is read from answers; let the model write them" in message
    assert "`ballast prompts answer MODEL SET --harmless --out FILE.jsonl`" in message
    assert left_behind(tmp_path) == {"asked.jsonl"}
    main_ok(  # reads prompts alone
        *("locate", checkpoint, "--method", "neurons", "--fraction", "0.2", "--utility", prompts),
        *("--prompts", make_prompts(tmp_path / "bad.jsonl", "hurt", 3), "--out", tmp_path / "neurons"),
    )


def test_prompts_that_cannot_be_answered(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = make_prompts(tmp_path / "asked.jsonl", "make", 2)
    done = make_prompts(tmp_path / "done.jsonl", "make", 2, response="No.")
    before = left_behind(tmp_path)
    answer, out = ("prompts", "answer", checkpoint), ("--out", tmp_path / "out.jsonl")
    assert "end it with .jsonl" in fails(capsys, *answer, asked, "--out", tmp_path / "out.csv", code=2)
    assert "is there already" in fails(capsys, *answer, asked, "--out", done, code=2)
    assert "Every prompt of done has a response" in fails(capsys, *answer, done, *out)
    harmful = fails(capsys, *answer, "builtin/harmful/test", "--harmless", *out)
    assert "is a prompt of builtin/harmful, so the set is not harmless" in harmful
    nothing = fails(capsys, *answer, asked, *out)  # a random model babbles
    assert "None of the 2 answers of tiny to asked is a refusal (" in nothing
    assert left_behind(tmp_path) == before


def test_fewer_prompts_than_asked(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, said = make_prompts(tmp_path / "bad.jsonl", "make", 4), tmp_path / "answers.jsonl"
    make_prompts(said, "say", 3, response="the kettle")
    locate = ("locate", checkpoint, "--prompts", prompts, "--out", tmp_path / "out")
    both = "has 4 prompts, fewer than the 5 asked for; lower the limit or give a larger set."
    assert both in fails(capsys, *locate, "--limit", "5", code=2)
    utility = fails(capsys, *locate, "--utility", said, "--limit", "4", code=2)
    assert "answers has 3 prompts, fewer than the 4 asked for" in utility
    measure = ("measure", checkpoint, "--safety", prompts, "--judge", "keyword", "--out", tmp_path / "out")
    assert both in fails(capsys, *measure, "--limit", "5", code=2)
    assert left_behind(tmp_path) == {"bad.jsonl", "answers.jsonl"}


def test_a_guard_without_verdict_tokens(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = make_prompts(tmp_path / "bad.jsonl", "make", 2)
    locate = ("locate", checkpoint, "--prompts", prompts, "--method", "esi_differentiable_judge")
    judge = ("--out", tmp_path / "out", "--setting", f"judge={checkpoint}")
    same = fails(capsys, *locate, *judge, "--setting", "unsafe=sad")  # one token a byte: both begin with "s"
    assert "is a guard without verdict tokens: 'safe' and 'sad' begin with the same token; give the words" in same
    keyword = fails(capsys, *locate, "--out", tmp_path / "out", "--setting", "judge=keyword")
    assert "The judge keyword has no gradient; use embedded, or a folder or hub id of a guard." in keyword
    assert left_behind(tmp_path / "out") == {"run.json"}


def test_an_adapter_for_another_model(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = make_prompts(tmp_path / "bad.jsonl", "make", 2)
    adapted(tiny_lm("gpt_neox"), tmp_path / "adapter")
    locate = ("locate", checkpoint, "--prompts", prompts, "--out", tmp_path / "out", "--method", "nlsr")
    message = fails(capsys, *locate, "--setting", f"adapter={tmp_path / 'adapter'}")
    assert "which tiny does not have; it is for another model." in message
    assert "give the folder of a PEFT LoRA adapter" in fails(
        capsys, *locate[:-3], tmp_path / "o", *locate[-2:], "--setting", f"adapter={checkpoint}"
    )


def test_an_architecture_that_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mamba")
    tiny_tokenizer().save_pretrained(tmp_path / "mamba")
    prompts = make_prompts(tmp_path / "bad.jsonl", "make", 2)
    message = fails(capsys, "locate", tmp_path / "mamba", "--prompts", prompts, "--out", tmp_path / "out")
    assert "MambaForCausalLM has no weight matrix of a known role" in message
    assert "use a transformer language model whose layers transformers itself implements." in message


def test_weights_that_are_not_numbers(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sick = Path(shutil.copytree(checkpoint, tmp_path / "sick"))
    tensors = load_file(sick / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, sick / "model.safetensors", {"format": "pt"})
    prompts = make_prompts(tmp_path / "bad.jsonl", "make", 2)
    assert "not finite" in fails(capsys, "locate", sick, "--prompts", prompts, "--out", tmp_path / "out")
    assert left_behind(tmp_path / "out") == {"run.json"}


def test_a_full_disk(checkpoint: Path, tmp_path: Path) -> None:
    """A limit on the size of files, which the system enforces, stands for a full disk."""
    prompts = make_prompts(tmp_path / "bad.jsonl", "make", 4)
    out = tmp_path / "out"
    arguments = command("locate", checkpoint, "--prompts", prompts, "--fraction", "0.5", "--out", out)

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    done = subprocess.run(
        arguments, env=environment(), capture_output=True, text=True, preexec_fn=little_room, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert left_behind(out) <= {"run.json"}


def main_ok(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 0


def test_json_is_one_value(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = make_prompts(tmp_path / "bad.jsonl", "make", 3)
    main_ok("--json", "measure", checkpoint, "--safety", prompts, "--judge", "keyword", "--out", tmp_path / "out")
    assert json.loads(capsys.readouterr().out)["sets"][0]["n"] == 3
