"""The whole method in one folder: every preset to its last line, resumed, refused where it makes no sense."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import warnings
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from conftest import bank
from tiny_models import CHATML, save_model

from esc_env import Dialogue, Message, Rules
from esc_env.cli import main
from esc_env.errors import BudgetExceeded, ConfigError, ProtocolMismatch, SpecError
from esc_env.evaluation.runs.runner import evaluate, read_run
from esc_env.folder import PLACE, TIMING
from esc_env.models.budget import spent
from esc_env.models.local import LocalModel
from esc_env.protocols import Completion, Request
from esc_env.testing import ScriptedAgent
from esc_env.training.ablate import Claim, ablate
from esc_env.training.collect import collect
from esc_env.training.config import Setting
from esc_env.training.config_loading import presets, read_pipeline
from esc_env.training.outcome import gain, texture
from esc_env.training.pipeline import run_pipeline
from esc_env.training.stage import asked

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning"),  # TRL's own
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning"),  # in TRL and PEFT
    pytest.mark.filterwarnings("ignore::esc_env.errors.TrainingWarning"),  # untrained models support nobody
]

TALK = ("I cannot sleep.", "What happened?", "My job.", "That sounds hard.", "It is.", "Tell me more about it.")
TROUBLES = (
    "My manager said that I would be let go.", "We broke up after six years.", "I failed the exam twice.",
    "My father is ill and far away.", "I moved and know nobody here.", "Debts keep me awake at night.",
)  # fmt: skip
SMALL = [
    "--sft.max_steps=1", "--sft.max_length=300", "--collect.limit=6", "--collect.contexts=8",
    "--collect.candidates=2", "--collect.rollouts=1", "--collect.trials=1", "--collect.valid=0.5",
    "--collect.temperature=1.0",
    "--rm.max_steps=1", "--rm.max_length=300", "--grpo.max_steps=1", "--grpo.batch_size=4", "--grpo.accumulation=1",
    "--grpo.group_size=4", "--grpo.prompt_length=200", "--grpo.completion_length=8", "--grpo.vllm=off",
    "--grpo.save_steps=1", "--evaluate.limit=2", "--evaluate.trials=1", "--valid_limit=2", "--max_turns=2",
    *(f"--{stage}.{name}" for stage in ("sft", "rm", "grpo") for name in ("precision=fp32", "cpu=true")),
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy, a reward model, and files of scenarios with human dialogues."""
    folder = tmp_path_factory.mktemp("world")
    plain = CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
    said = Dialogue(tuple(Message("supporter" if place % 2 else "seeker", text) for place, text in enumerate(TALK)))
    for name in ("train", "valid", "test"):
        lines = [
            json.dumps(
                {**person.to_json(), "id": f"{name}-{person.id}", "situation": trouble, "dialogue": said.to_json()}
            )
            for person, trouble in zip(bank(len(TROUBLES)), TROUBLES, strict=True)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "policy": save_model(folder / "policy", template=plain),
        "reward_model": save_model(folder / "reward", template=plain, seed=1),
        **{name: folder / f"{name}.jsonl" for name in ("train", "valid", "test")},
    }


def arguments(world: dict[str, Path], *more: str) -> list[str]:
    return [
        f"--model={world['policy']}", f"--reward_model={world['reward_model']}", f"--scenarios={world['train']}",
        f"--valid={world['valid']}", f"--test={world['test']}", f"--sft_data={world['train']}",
        "--seeker=builtin", "--critic=builtin", "--evaluate.seeker=builtin", "--evaluate.critic=builtin",
        *SMALL, *more,
    ]  # fmt: skip


@pytest.fixture
def alternating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained models solve nothing; let every other future be solved, so that there are two classes."""
    import esc_env.training.data as data

    read = data.read_samples

    def mixed(folder: Any, **options: Any) -> list[Any]:
        from dataclasses import replace

        samples = read(folder, **options)
        return [
            replace(sample, futures=tuple(replace(each, solved=place % 2 == 0) for each in sample.futures))
            for place, sample in enumerate(samples)
        ]

    monkeypatch.setattr("esc_env.training.pipeline.read_samples", mixed)


def assert_tables_are_even(page: str) -> None:
    """Every row of a Markdown table has as many cells as its header."""
    for block in page.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1, block


@pytest.mark.parametrize("preset", presets())
@pytest.mark.usefixtures("alternating")
def test_every_preset_runs_to_its_last_line(preset: str, world: dict[str, Path], tmp_path: Path) -> None:
    config = read_pipeline(preset, arguments(world, "--skip", "none", "--evaluate.personas", "guarded"))
    lines: list[str] = []
    report = run_pipeline(config, tmp_path / "run", told=lines.append)
    assert set(report["evaluation"]) >= {"start", "grpo"}
    assert report["reward_model"]["kind"] == config.rm.kind
    assert report["valid"].keys() == {"0", "1"}
    page = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert page.startswith("# ")
    assert_tables_are_even(page)
    begun = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert run_pipeline(config, tmp_path / "run", told=lines.append)["evaluation"] == report["evaluation"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == begun


@pytest.mark.usefixtures("alternating")
def test_the_models_of_the_tiny_preset_are_made_on_the_way(world: dict[str, Path], tmp_path: Path) -> None:
    once = ["--evaluate.personas", "none", "--evaluate.sweep=0.5"]
    tiny = ["--model=tiny", "--reward_model=tiny", "--sft_data=population", *once]
    report = run_pipeline(read_pipeline("tiny", arguments(world, *tiny)), tmp_path, told=lambda line: None)
    for made in ("base", "sft", "rm-base", "rm", "grpo"):
        assert (tmp_path / made / "model.safetensors").exists(), made
    assert set(report["evaluation"]) == {"start", "start-t0.5", "grpo"}
    with pytest.raises(ConfigError, match="do not skip sft"):
        run_pipeline(
            read_pipeline("tiny", arguments(world, *tiny, "--skip", "sft")), tmp_path / "b", told=lambda line: None
        )


@pytest.mark.usefixtures("alternating")
def test_the_same_seed_is_the_same_run_in_every_byte_also_on_a_busy_machine(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = ["--model=tiny", "--reward_model=tiny", "--sft_data=population", "--collect.contexts=none"]
    more = ["--grpo.max_steps=2", "--grpo.completion_length=24", "--evaluate.personas=none", "--evaluate.sweep=none"]
    config = read_pipeline("tiny", arguments(world, *tiny, *more))

    def run_once() -> dict[str, str]:
        """The hash of every file but those that say how long things took."""
        run_pipeline(config, tmp_path / "run", told=lambda line: None)
        kept = (tmp_path / "run").rename(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        files = [path for path in kept.rglob("*") if path.is_file() and path.name not in (PLACE, TIMING)]
        return {str(path.relative_to(kept)): sha256(path.read_bytes()).hexdigest() for path in sorted(files)}

    quiet = run_once()
    answer, draw = LocalModel.complete, random.Random(0)

    async def delayed(self: LocalModel, request: Request) -> Completion:
        await asyncio.sleep(draw.choice((0.0, 0.002, 0.02)))
        found = await answer(self, request)
        await asyncio.sleep(draw.choice((0.0, 0.002, 0.02)))
        return found

    monkeypatch.setattr(LocalModel, "complete", delayed)
    with ExitStack() as stack:
        for _ in range(2):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(busy.kill)
        assert run_once() == quiet
    for made in ("collect/candidates.jsonl", "eval/grpo/trajectories.jsonl", "grpo/model.safetensors"):
        assert made in quiet


@pytest.mark.usefixtures("alternating")
def test_an_ablation_trains_every_arm_on_what_they_share_and_resumes(world: dict[str, Path], tmp_path: Path) -> None:
    few = ["--evaluate.personas", "guarded", "--evaluate.sweep", "0.0", "0.5"]
    config = read_pipeline("tiny", arguments(world, *few))
    arms = ["rlff", "no tails", "no think-format", "noise + format", "env", "rlff, steady start"]
    table = ablate(config, tmp_path, seeds=1, grpo_seeds=2, arms=arms, told=lambda line: None)
    assert_tables_are_even(table)
    tables = [
        [line.split("|")[1].strip() for line in block.splitlines() if line.startswith("| ")]
        for block in table.split("\n\n")
        if block.startswith("|")
    ]
    before = ["before GRPO", "before GRPO, temperature 0", "before GRPO, temperature 0.5"]
    steady = [name.replace("GRPO", "GRPO, steady start") for name in before]
    assert tables[0][1:] == [*before, *steady, *arms]
    assert table.count("does not hold") + table.count("| holds |") == 4
    assert tables[2][1:] == [before[0], steady[0], *arms]
    assert "† rests on fewer than 240 conversations" in table
    assert "what is paid for" in table.lower()
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {name: len(report["rows"][name]["each"]) for name in ("rlff", "env", "no think-format")} == {
        "rlff": 2, "env": 2, "no think-format": 1,
    }  # fmt: skip
    gains = [report["rows"][name]["gain"] for name in ("rlff", "no think-format")]
    assert [(gain["runs"], gain["between"] is None) for gain in gains] == [(2, False), (1, True)]
    assert report["rows"]["rlff"]["last"] is not None
    assert set(report["moves"]["scores"]) == {"R_fut", "rm-classification", "rm-classification-no-tail"}
    home = tmp_path / "seed-0"
    assert (home / "rlff-2" / "sft").resolve() == (home / "rlff" / "sft").resolve() == home / "shared" / "sft"
    about = [json.loads((home / name / "grpo" / "run.json").read_text(encoding="utf-8")) for name in ("rlff", "rlff-2")]
    assert [each["identity"]["seed"] for each in about] == [0, 1000]
    assert {(home / arm / "rm").resolve() for arm in ("rlff", "no-think-format")} == {home / "rm-classification" / "rm"}
    assert (home / "no-tails" / "rm").resolve() == home / "rm-classification-no-tail" / "rm"
    assert (home / "rlff-steady-start" / "rm").resolve() == home / "steady-rm-classification" / "rm"
    assert (home / "rlff-steady-start" / "sft").resolve() == home / "steady" / "sft"
    assert not (home / "noise-and-format" / "rm").exists()
    curves = ElementTree.parse(tmp_path / "curves.svg")
    assert len(curves.findall(".//{http://www.w3.org/2000/svg}polyline")) == 4 * len(arms)
    begun = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert ablate(config, tmp_path, seeds=1, grpo_seeds=2, arms=arms, told=lambda line: None) == table
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == begun
    wider = ablate(config, tmp_path, seeds=2, arms=["noise", "env"], jobs=2)
    assert_tables_are_even(wider)
    row = next(line for line in wider.splitlines() if line.startswith("| noise |"))
    assert row.split("|")[3].count("%") == 2
    now = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert {**now, **begun} == now
    assert home / "noise" / "grpo" / "model.safetensors" in now
    with pytest.raises(SpecError, match="Did you mean 'ranking'"):
        ablate(config, tmp_path, seeds=1, arms=["rankin"])


@pytest.mark.usefixtures("alternating")
def test_the_last_checkpoint_is_evaluated_where_another_was_chosen(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [
        "--grpo.reward=noise",
        "--grpo.max_steps=2",
        "--skip",
        "sft",
        "--evaluate.last",
        "--evaluate.personas",
        "none",
    ]
    rates = {"checkpoint-1": 0.5, "checkpoint-2": 0.25}
    monkeypatch.setattr(
        "esc_env.training.pipeline._Pipeline.success", lambda _, policy: rates.get(Path(policy).name, 0.0)
    )
    config = read_pipeline("qwen2.5-0.5b", arguments(world, *two, "--evaluate.personas", "none"))
    report = run_pipeline(config, tmp_path / "early", told=lambda line: None)
    assert set(report["evaluation"]) == {"start", "grpo", "last"}
    rates["checkpoint-1"] = 0.1
    report = run_pipeline(config, tmp_path / "late", told=lambda line: None)
    assert set(report["evaluation"]) == {"start", "grpo"}, "it is the one that was chosen"


@pytest.mark.parametrize("reward", ["future", "env", "untrained", "noise"])
def test_other_rewards_need_no_reward_model(reward: str, world: dict[str, Path], tmp_path: Path) -> None:
    config = read_pipeline("qwen2.5-0.5b", arguments(world, f"--grpo.reward={reward}", "--skip", "sft", "evaluate"))
    report = run_pipeline(config, tmp_path, told=lambda line: None)
    assert not (tmp_path / "rm").exists()
    assert (tmp_path / "collect").exists() == (reward != "env")
    assert report["valid"].keys() == {"0", "1"}
    assert (tmp_path / "grpo" / "run.json").exists()


def test_a_skipped_stage_that_is_needed_is_named(world: dict[str, Path], tmp_path: Path) -> None:
    config = read_pipeline("qwen2.5-0.5b", arguments(world, "--skip", "sft", "collect", "rm"))
    with pytest.raises(ConfigError, match="'collect' that makes it is skipped"):
        run_pipeline(config, tmp_path, told=lambda line: None)


def test_another_configuration_is_refused_in_the_same_folder(world: dict[str, Path], tmp_path: Path) -> None:
    skip = ["--skip", "sft", "collect", "rm", "grpo", "evaluate"]
    run_pipeline(read_pipeline("qwen2.5-0.5b", arguments(world, *skip)), tmp_path, told=lambda line: None)
    with pytest.raises(ProtocolMismatch, match=r"grpo\.beta: 0\.04 / 0\.5"):
        run_pipeline(
            read_pipeline("qwen2.5-0.5b", arguments(world, "--grpo.beta=0.5", *skip)), tmp_path, told=lambda line: None
        )


def test_what_only_says_how_it_is_computed_is_no_other_run(world: dict[str, Path], tmp_path: Path) -> None:
    skip = ["--skip", "sft", "collect", "rm", "grpo", "evaluate"]
    run_pipeline(read_pipeline("qwen2.5-0.5b", arguments(world, *skip)), tmp_path, told=lambda line: None)
    path = tmp_path / "run.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    known = about["identity"]
    del known["models"], known["grpo"]["concurrency"], known["grpo"]["top_p"]  # as a version without them wrote it
    path.write_text(json.dumps(about), encoding="utf-8")
    other = [
        "--budget=5 USD", "--rpm=60", "--timeout=9", "--collect.concurrency=3", "--grpo.concurrency=3",
        "--evaluate.concurrency=3", "--grpo.save_limit=1",
    ]  # fmt: skip
    run_pipeline(read_pipeline("qwen2.5-0.5b", arguments(world, *other, *skip)), tmp_path, told=lambda line: None)
    with pytest.raises(ProtocolMismatch, match=r"grpo\.top_p: 1\.0 / 0\.9"):
        run_pipeline(
            read_pipeline("qwen2.5-0.5b", arguments(world, "--grpo.top_p=0.9", *skip)), tmp_path, told=lambda line: None
        )


PAID = """
from esc_env.testing import FakeChatModel

seeker = FakeChatModel("It is my job.")
"""


def tokens() -> int:
    return spent().prompt_tokens + spent().completion_tokens


@pytest.mark.parametrize("reward", ["future", "env"])
def test_a_spent_budget_stops_grpo_in_one_line_and_a_larger_one_goes_on(
    reward: str, world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "paid.py").write_text(PAID, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    collect("builtin:template", world["train"], limit=2, source="human", candidates=1, out=tmp_path / "collect")

    def grpo(*typed: str) -> tuple[int, str]:
        warnings.simplefilter("ignore")
        with pytest.raises(SystemExit) as ended:
            main([
                "train", "grpo", "--reward", reward, "--out", str(tmp_path / "grpo"), "--model", str(world["policy"]),
                "--scenarios", str(world["train"]), "--data", str(tmp_path / "collect"), "--seeker",
                "python:paid:seeker", "--agent", "builtin:template", "--group-size=4", "--batch-size=4",
                "--accumulation=1", "--max-steps=3", "--save-steps=1", "--max-turns=2", "--completion-length=8",
                "--prompt-length=200", "--precision=fp32", "--cpu", "--no-require-end", "--valid=none", *typed,
            ])  # fmt: skip
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().err

    before = tokens()
    assert grpo("--max-steps=1", "--out", str(tmp_path / "once"))[0] == 0
    step = tokens() - before
    code, told = grpo(f"--budget={tokens() + int(1.5 * step)} tokens", "--concurrency=2", "--rpm=100000")
    assert code == 1
    assert told.splitlines()[-1].startswith("esc: the budget of ")
    assert "Traceback" not in told
    assert [path.name for path in (tmp_path / "grpo" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-1"]
    assert grpo(f"--budget={tokens() + 10 * step} tokens")[0] == 0
    steps = [entry["step"] for entry in json.loads((tmp_path / "grpo" / "log.json").read_text(encoding="utf-8"))]
    assert steps[-1] == 3


def test_a_budget_holds_for_all_stages_of_a_pipeline_together(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "paid.py").write_text(PAID, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    chairs = ["--seeker=python:paid:seeker", "--evaluate.seeker=python:paid:seeker", "--grpo.reward=future"]
    skip = ["--skip", "sft", "--evaluate.personas", "none", "--collect.agent=builtin:template"]

    def pipeline(budget: int) -> dict[str, Any]:
        config = read_pipeline("qwen2.5-0.5b", arguments(world, *chairs, f"--budget={budget} tokens", *skip))
        return run_pipeline(config, tmp_path / "run", told=lambda line: None)

    reached = []
    for more in (1000, 1500, 2000, 3000, 4000, 6000, 8000, 10**6):
        try:
            report = pipeline(tokens() + more)
            break
        except BudgetExceeded:
            reached.append(sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()))
    assert ["collect"] in reached
    assert ["collect", "grpo", "valid"] in reached
    assert report["evaluation"]["grpo"]["conversations"] == 2


def test_every_chair_is_asked_what_its_options_say_in_every_stage(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "optioned.py").write_text(PAID, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    chairs = ["--seeker=python:optioned:seeker", "--seeker-options", "max_tokens=9", "stop=END", "--grpo.reward=future"]
    agents = ["--agent-options", "max_tokens=5", "system=Be kind.", "--skip", "sft", "--evaluate.personas", "none"]
    other = ["--evaluate.seeker=python:optioned:seeker", "--evaluate.seeker-options", "max_tokens=11"]

    def pipeline(*more: str) -> None:
        config = read_pipeline("qwen2.5-0.5b", arguments(world, *chairs, *agents, *more))
        run_pipeline(config, tmp_path / "run", told=lambda line: None)

    pipeline("--skip", "sft", "evaluate")
    optioned: Any = sys.modules["optioned"]
    assert {(call.max_tokens, call.stop) for call in optioned.seeker.calls} == {(9, ("END",))}
    valid = read_run(tmp_path / "run" / "valid" / "checkpoint-1")
    assert valid.replies.max_tokens == 5
    with pytest.raises(ProtocolMismatch, match=r"evaluate\.seeker_options.*max_tokens.* 11"):
        pipeline(*other)
    with pytest.raises(ProtocolMismatch, match=r"setting\.seeker_options.*max_tokens.*9.* 7"):
        pipeline("--seeker-options", "max_tokens=7")
    with pytest.raises(SpecError, match=r"the policy takes no option 'top_pp'. Did you mean 'top_p'"):
        pipeline("--agent-options", "top_pp=1")
    assert asked(Setting(agent_options={"system": "Be kind."})).startswith("Be kind.")


def test_stages_are_commands_of_their_own(world: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    small = ["--max-steps", "1", "--precision=fp32", "--cpu", "--batch-size=4", "--accumulation", "1"]
    stop: list[Any] = []

    def esc(*typed: Any) -> str:
        warnings.simplefilter("ignore")
        with pytest.raises(SystemExit) as ended:
            main([str(item) for item in typed])
        stop.append(ended.value.code)
        return capsys.readouterr().out

    sft = tmp_path / "sft"
    assert str(sft) in esc("train", "sft", "--data", world["train"], "--model", world["policy"], "--out", sft, *small)
    esc(
        "train", "grpo", "--reward", "env", "--scenarios", world["train"], "--model", sft, "--out", tmp_path / "grpo",
        "--group-size", 4, "--max-turns", 1, "--completion-length", 8, "--prompt-length", 200, *small,
    )  # fmt: skip
    assert (tmp_path / "grpo" / "adapter_model.safetensors").exists()
    assert list(json.loads((tmp_path / "grpo" / "run.json").read_text(encoding="utf-8"))["valid"]) == ["0", "1"]
    assert "fsdp" in esc("train", "presets")
    skip = ["--skip", "sft", "collect", "rm", "grpo", "evaluate"]
    shown = esc("train", "pipeline", "--preset", "tiny", "--out", tmp_path / "run", *arguments(world, *skip))
    assert "RLFF-ESC with reward `rlff`" in shown
    assert stop == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("claim", "difference", "interval", "holds"),
    [
        (Claim("env", "best", least=0.15, above=0.0), 0.15, (0.01, 0.3), True),
        (Claim("env", "best", least=0.15, above=0.0), 0.15, (0.0, 0.3), False),
        (Claim("env", "best", least=0.15, above=0.0), 0.14, (0.1, 0.2), False),
        (Claim("noise", "start", below=0.1), 0.0, (-0.1, 0.09), True),
        (Claim("noise", "start", below=0.1), 0.0, (-0.1, 0.1), False),
    ],
)
def test_a_claim_holds_only_if_difference_and_interval_bear_it_out(
    claim: Claim, difference: float, interval: tuple[float, float], holds: bool
) -> None:
    assert claim.holds(difference, interval) is holds


def test_the_gain_is_paired_and_clustered_by_scenario(tmp_path: Path) -> None:
    class Kind(ScriptedAgent):
        pass

    people = bank(12)
    options: dict[str, Any] = {"trials": 2, "critic": lambda scenario, dialogue: "solved"}
    worse: dict[str, Any] = {"trials": 2, "critic": lambda scenario, dialogue: "same"}
    good = evaluate(ScriptedAgent(["Hello."]), people, out=tmp_path / "a", **options)
    bad = evaluate(Kind(["Hello."]), people, out=tmp_path / "b", **worse)
    better = gain([(bad, good)]) or {}
    assert (better["difference"], better["scenarios"]) == (1.0, 12)
    assert better["interval"] == [pytest.approx(1 - 2 * (1 - 0.05 ** (1 / 12))), 1.0], (
        "twelve people, who all agree, are still few"
    )
    assert (gain([(good, good), (bad, good)]) or {})["difference"] == 0.5
    assert gain([]) is None


def test_texture_tells_replies_that_say_the_same_again(tmp_path: Path) -> None:
    def held(lines: list[str], name: str) -> dict[str, float | None]:
        asked: dict[str, Any] = {"critic": lambda scenario, dialogue: "same", "rules": Rules(max_turns=4)}
        return texture(evaluate(ScriptedAgent(lines), bank(3), out=tmp_path / name, trials=1, **asked))

    again = held(["I hear you."], "again")
    assert again == {"distinct_2": round(2 / 24, 4), "words": 3.0, "top_reply": 1.0, "repeated": 0.75}
    fresh = held(["One two.", "Three four.", "Five six.", "Seven eight."], "fresh")
    assert (fresh["top_reply"], fresh["repeated"]) == (0.25, 0.0)
