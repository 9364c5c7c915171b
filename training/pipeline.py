"""RLFF-ESC from end to end: sft → collect → rm → grpo → evaluate, in one folder.

    esc train pipeline --preset qwen2.5-0.5b --out runs/small

    RUN/config.json        what is run
    RUN/base, RUN/rm-base  models made from scratch (`model: tiny`)
    RUN/sft                the policy that can speak
    RUN/collect            stage 1: responses and their futures
    RUN/rm                 stage 2: the reward model
    RUN/grpo               stage 3: the trained policy
    RUN/eval/NAME          whole conversations with each policy, as `esc eval` keeps them
    RUN/report.json, .md   what came of it

Every stage keeps what it has finished: the same call goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_env import _loop
from esc_env.agents.chat import system_prompt
from esc_env.agents.spec import resolve_agent
from esc_env.datasets import load_scenarios
from esc_env.errors import BudgetExceeded, ConfigError, ProtocolMismatch
from esc_env.evaluation.report import Report
from esc_env.evaluation.runner import check_models, evaluate, is_run, read_run
from esc_env.evaluation.statistics import clustered_mean
from esc_env.models import ModelSettings, Options
from esc_env.models.local import LocalModel
from esc_env.models.options import check_names
from esc_env.protocols import Agent
from esc_env.records import RecordWriter, read_records, write_json
from esc_env.rewards import FutureReward, RandomReward, ThinkFormatReward, combine, grpo_row
from esc_env.rules import Rules
from esc_env.seeds import derive
from esc_env.training.collect import collect
from esc_env.training.config import STAGES, CollectStage, GRPOStage, PipelineConfig, Setting
from esc_env.training.data import CANDIDATES, Sample, read_samples
from esc_env.training.stage import FREE, chairs_of, is_finished, is_main, load_tokenizer, prompt_ids
from esc_env.trajectory import Trajectory

__all__ = [
    "asked", "best_start", "evaluations", "gain", "lessons_from", "on_valid", "optimise", "prompts_from",
    "run_pipeline", "texture",
]  # fmt: skip

TINY = "tiny"
"""The model that is made from scratch."""

Told = Callable[[str], None]
"""Told one line about what happens."""


def run_pipeline(config: PipelineConfig, folder: str | Path, *, told: Told = print) -> dict[str, Any]:
    """Run all stages that are not skipped and not finished; returns the report, as report.json has it.

    Under `accelerate launch` every process calls this. Collecting and evaluating are done by the first one, while the
    others wait.

    Raises:
        ConfigError: a stage is skipped whose result another one needs.
        SpecError: the policy takes no such option.
        ProtocolMismatch: the folder holds another run; the message names what differs.
    """
    folder = Path(folder)
    job = _Pipeline(config, folder, told if is_main() else lambda line: None)
    check_names(
        Options.of(config.setting.agent_options, "agent"), LocalModel.OPTIONS, "agent", "the policy", body=False
    )
    job.claim()
    for stage in STAGES:
        if config.runs(stage):
            begun = time.perf_counter()
            job.told(f"{stage}: {folder}")
            getattr(job, stage)()
            job.note(stage, time.perf_counter() - begun)
    return job.report()


def _together() -> None:
    """Wait for all processes, where there are several."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from accelerate import PartialState  # type: ignore[import-untyped]

        PartialState(timeout=timedelta(hours=48)).wait_for_everyone()


class _Pipeline:
    """One run: what its stages need of each other."""

    def __init__(self, config: PipelineConfig, folder: Path, told: Told) -> None:
        self.config = config
        self.setting: Setting = config.setting
        self.folder = folder
        self.told = told
        self.rules = Rules(max_turns=config.setting.max_turns)

    def claim(self) -> None:
        """Refuse a folder that holds another run."""
        _together()
        if not is_main():
            return
        path = self.folder / "config.json"
        wanted = json.loads(json.dumps(asdict(self.config), default=str))
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if known is not None:
            free = {"skip", *FREE, *wanted["models"]}  # which stages are run now, and how they are computed
            defaults = json.loads(json.dumps(asdict(PipelineConfig())))  # of a field that came later
            then = {section: {**defaults[section], **known.get(section, {})} for section in wanted}
            differing = [
                f"{section}.{name}: {then[section].get(name)!r} there, {value!r} now"
                for section, values in wanted.items()
                for name, value in values.items()
                if name not in free and then[section].get(name) != value
            ]
            if differing:
                raise ProtocolMismatch(f"{self.folder} holds another run ({'; '.join(differing)}). Give another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)

    # --- the stages -----------------------------------------------------------------------------------

    def sft(self) -> None:
        """The policy learns to speak."""
        from esc_env.training.sft import lessons, train_sft

        setting = self.setting
        if setting.sft_data == "population":
            held = self._population()
            if setting.model == TINY:
                self._base(held)
            items = lessons(held, solved=False)
        else:
            items = lessons_from(setting.sft_data)
        config = replace(self.config.sft, model=self._begin())
        train_sft(config, self.folder / "sft", items, system=asked(setting, items))

    def collect(self) -> None:
        """Stage 1, by the first process."""
        if is_main():
            stage = self.config.collect
            made = collect(
                self._collector(stage), self.setting.scenarios, **self.setting.chairs(), rules=self.rules,
                source=stage.source, limit=stage.limit, contexts=stage.contexts, candidates=stage.candidates,
                rollouts=stage.rollouts, horizon=stage.horizon, trials=stage.trials, valid=stage.valid,
                seed=self.setting.seed, out=self.folder / "collect", **asdict(self.config.calls(stage)),
            )  # fmt: skip
            solved = made.card["all"]["solved"]
            self.told(f"collect: {made.card['samples']:,} samples, solved {solved or 0:.1%}")
        _together()

    def rm(self) -> None:
        """Stage 2."""
        from esc_env.training.reward_model import train_reward_model

        base = self.setting.reward_model
        if base == TINY:
            base = str(self.folder / "rm-base")
            if is_main() and not Path(base).exists():
                from esc_env.training.tiny import make_reward_model

                make_reward_model(base, self._policy())
            _together()
        report = train_reward_model(
            replace(self.config.rm, model=base), self.folder / "rm", read_samples(self._needs("collect"))
        )
        self.told(f"rm: AUC {_shown(report.auc)}, within contexts {_shown(report.auc_within)}")

    def grpo(self) -> None:
        """Stage 3."""
        optimise(
            replace(self.config.grpo, model=self._policy()),
            self.setting,
            self.folder / "grpo",
            samples=[] if self.config.grpo.reward == "env" else read_samples(self._needs("collect"), tails=False),
            reward_model=self._needs("rm") if self.config.grpo.reward == "rlff" else None,
            continuing=self._collector(self.config.grpo) if self.config.grpo.reward == "future" else None,
            success=self.success,
            models=self.config.calls(self.config.grpo),
        )

    def evaluate(self) -> None:
        """Whole conversations with the policy before and after GRPO, by the first process."""
        if is_main():
            stage = self.config.evaluate
            for name, policy in self._policies().items():
                self._hold(name, policy, stage.temperature)
                if name == "start":
                    for temperature in stage.sweep:
                        self._hold(f"{name}-t{temperature:g}", policy, temperature)
                for persona in stage.personas:
                    self._hold(f"{name}-{persona}", policy, stage.temperature, persona)
        _together()

    def _hold(self, label: str, policy: str, temperature: float, persona: str | None = None) -> None:
        """The conversations of one evaluation. Those with a persona have other seeds than the rest."""
        stage = self.config.evaluate
        report = evaluate(
            self._agent(policy, temperature), self.setting.test, **stage.chairs(self.setting), rules=self.rules,
            persona=persona, limit=stage.limit,
            trials=stage.persona_trials if persona else stage.trials,
            seed=derive(self.setting.seed, "personas") if persona else self.setting.seed,
            out=self.folder / "eval" / label, **asdict(self.config.calls(stage)),
        )  # fmt: skip
        self.told(f"evaluate {label}: SR {_shown(report.success_rate, '.1%')}")

    # --- what they need -------------------------------------------------------------------------------

    def _begin(self) -> str:
        """The policy before any stage."""
        if self.setting.model != TINY:
            return self.setting.model
        base = self.folder / "base"
        if not base.is_dir():
            raise ConfigError(
                f"model {TINY!r} is made from the conversations it learns from: set sft_data to population, and do not "
                "skip sft"
            )
        return str(base)

    def _policy(self) -> str:
        """The policy before GRPO."""
        made = self.folder / "sft"
        return str(made) if self.config.runs("sft") or made.is_dir() else self._begin()

    def _policies(self) -> dict[str, str]:
        named = {"start": self._policy()}
        trained = self.folder / "grpo"
        if self.config.runs("grpo") or trained.is_dir():
            named["grpo"] = str(trained)
        return named

    def _needs(self, stage: str) -> Path:
        folder = self.folder / stage
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not there, and the stage {stage!r} that makes it is skipped")
        return folder

    def _population(self) -> list[Trajectory]:
        """Conversations of scripted supporters, held once and kept."""
        from esc_env.training.tiny import population

        path = self.folder / "population.jsonl"
        if is_main() and not path.exists():
            chairs = chairs_of(self.setting, self.config.calls(self.config.collect), self.rules)
            held = population(
                load_scenarios(self.setting.scenarios), chairs.seeker, chairs.critic, self.rules,
                renamed=0.6 if self.setting.model == TINY else 0.0, seed=self.setting.seed,
            )  # fmt: skip
            _stop_if_spent(held)
            fresh = path.with_suffix(".new")
            fresh.unlink(missing_ok=True)
            with RecordWriter(fresh, "trajectory") as writer:
                for item in held:
                    writer.write(item.to_json())
            fresh.rename(path)
        _together()
        return [Trajectory.from_json(data) for data in read_records(path, "trajectory")]

    def _base(self, held: Sequence[Trajectory]) -> None:
        """The tiny policy, made from scratch."""
        if is_main() and not (self.folder / "base").exists():
            from esc_env.training.tiny import make_policy

            make_policy(self.folder / "base", held, seed=self.setting.seed)
        _together()

    def _agent(self, policy: str, temperature: float) -> Agent:
        """A policy of this machine as a supporter, prompted as in training, whose replies are as long as there."""
        name = f"local:{policy}#{self.setting.style}"
        options = {"max_tokens": self.config.grpo.completion_length, **self.setting.agent_options}
        return resolve_agent(name, ModelSettings(), temperature=temperature, options=options)

    def _collector(self, within: CollectStage | GRPOStage) -> Agent:
        """Who responds to contexts, and goes on after a response."""
        stage = self.config.collect
        if not stage.agent:
            return self._agent(self._policy(), stage.temperature)
        settings = self.config.calls(within)
        return resolve_agent(stage.agent, settings, temperature=stage.temperature, options=stage.agent_options)

    def success(self, policy: str) -> float:
        """The success rate of a checkpoint on valid scenarios; the same people each time."""
        report = evaluate(
            self._agent(policy, self.config.evaluate.temperature), self.setting.valid, **self.setting.chairs(),
            rules=self.rules, limit=self.setting.valid_limit, seed=self.setting.seed,
            out=self.folder / "valid" / Path(policy).name, fresh=True,
            **asdict(self.config.calls(self.config.evaluate)),
        )  # fmt: skip
        self.told(f"valid, {Path(policy).name}: SR {_shown(report.success_rate, '.1%')}")
        return report.success_rate or 0.0

    # --- what came of it ------------------------------------------------------------------------------

    def note(self, stage: str, seconds: float) -> None:
        """Keep how long a stage took, if it did anything."""
        if is_main():
            path = self.folder / "seconds.json"
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            write_json(path, {**known, stage: round(known.get(stage, 0.0) + seconds, 1)})

    def report(self) -> dict[str, Any]:
        """Everything that is known about the run, written as report.json and report.md by the first process."""
        runs = evaluations(self.folder)
        best = best_start(runs)
        made: dict[str, Any] = {
            "setting": asdict(self.setting),
            "reward": self.config.grpo.reward,
            "evaluation": {
                name: {
                    "success_rate": run.success_rate, "interval": run.interval, "average_turns": run.average_turns,
                    "conversations": run.completed, "errors": run.errors, **texture(run),
                }
                for name, run in runs.items()
            },
            "gain": gain([(runs[best], runs["grpo"])]) if best and "grpo" in runs else None,
            "gain_over": best,
            "valid": _read(self.folder / "grpo" / "valid.json"),
            "reward_model": _read(self.folder / "rm" / "report.json"),
            "collection": _read(self.folder / "collect" / "card.json"),
            "seconds": _read(self.folder / "seconds.json"),
        }  # fmt: skip
        if is_main():
            write_json(self.folder / "report.json", made)
            (self.folder / "report.md").write_text(_markdown(made), encoding="utf-8")
        return made


def _stop_if_spent(held: Sequence[Trajectory]) -> None:
    for item in held:
        if item.failure and item.failure.kind == BudgetExceeded.__name__:
            raise BudgetExceeded(f"{item.failure.message}. The conversations of sft_data population begin anew")


# --- pieces that single commands use too ----------------------------------------------------------


def lessons_from(source: str | Path) -> list[Any]:
    """What `train_sft` learns from: a folder of `esc collect` or `esc eval` (what was solved), or human dialogues.

    Raises:
        ScenarioError: it is none of these.
    """
    from esc_env.training.sft import lessons

    folder = Path(source)
    if (folder / CANDIDATES).is_file():
        return lessons(read_samples(folder, tails=False))
    if is_run(folder):
        return lessons(read_run(folder).trajectories)
    return lessons(load_scenarios(source))


def asked(setting: Setting, items: Sequence[Any] = ()) -> str:
    """The policy's system message; `think` asks for no thoughts where lessons are given and none of them has any."""
    thinks = setting.style == "think" and (not items or any(said.thought for item in items for said in item.dialogue))
    return system_prompt("think" if thinks else "plain", setting.agent_options.get("system"))


def prompts_from(samples: Sequence[Sample], *, system: str | None = None) -> list[dict[str, Any]]:
    """Rows for GRPO: every context of a collection once."""
    found: dict[Any, Sample] = {}
    for sample in samples:
        if not sample.tail:
            found.setdefault(sample.key[:3], sample)
    return [grpo_row(item.scenario, item.context, seed=item.seed, system=system) for item in found.values()]


def on_valid(config: PipelineConfig, folder: str | Path, *, told: Told = print) -> Callable[[str], float]:
    """What tells the success rate of a checkpoint on `config.setting.valid`, for `optimise`.

    Args:
        config: whose setting, models, evaluation temperature and completion length count.
        folder: its `valid` keeps the conversations.
        told: told every success rate.
    """
    return _Pipeline(config, Path(folder), told).success


def optimise(
    config: GRPOStage,
    setting: Setting,
    folder: str | Path,
    *,
    samples: Sequence[Sample] = (),
    reward_model: str | Path | None = None,
    continuing: str | Agent | None = None,
    success: Callable[[str], float] | None = None,
    models: ModelSettings | None = None,
) -> Path:
    """GRPO with the reward that `config.reward` names: R + α · R_thk-fmt.

    Args:
        config: the stage.
        setting: style, chairs and what they are asked, and for `env` the scenarios.
        folder: of the stage.
        samples: a collection, whose contexts are answered; all rewards but `env` need it.
        reward_model: for `rlff`.
        continuing: who goes on after a response, for `future`: the policy as it was when it was collected from. What a
            string names is asked the setting's `agent_options`.
        success: see `train_grpo`.
        models: how chat models in the chairs are called, for `future` and `env`.

    Raises:
        ConfigError: the reward lacks what it needs.
        BudgetExceeded: the budget is spent; the same call with a larger one goes on from the last checkpoint.
        ModelError: a chat model does not answer at all; nothing was started.
    """
    from esc_env.training.grpo import train_grpo
    from esc_env.training.online import Online, opener

    horizon = config.horizon if config.reward == "future" and config.horizon else config.max_turns
    rules = Rules(max_turns=horizon)
    system = asked(setting)
    tokenizer = load_tokenizer(config.model)
    settings = models or ModelSettings(config.concurrency)
    if config.reward == "env":
        chairs = chairs_of(setting, settings, rules)
        _check(folder, rules, chairs.seeker, chairs.critic)
        online = Online(load_scenarios(setting.scenarios), chairs, config, tokenizer, system=system)
        return train_grpo(
            config, folder, reward=online.reward, prompts=online.rows, rollout=online.rollout, evaluate=success
        )
    prompts = prompts_from(samples, system=system)
    if not prompts:
        raise ConfigError(f"reward {config.reward!r} answers collected contexts, and there are none. Type: esc collect")
    random.Random(config.seed).shuffle(prompts)
    first: Any
    if config.reward == "rlff":
        from esc_env.rewards.model import RewardModelReward

        if reward_model is None:
            raise ConfigError("reward 'rlff' needs a reward model. Type: esc train rm")
        first = RewardModelReward(reward_model, device="cpu" if config.cpu else None)
    elif config.reward == "future":
        if continuing is None:
            raise ConfigError("reward 'future' needs to know who goes on after a response: name the agent")
        options = setting.agent_options if isinstance(continuing, str) else None
        agent = resolve_agent(continuing, settings, temperature=CollectStage.temperature, options=options)
        chairs = chairs_of(setting, settings, rules)
        first = FutureReward(
            agent, chairs.seeker, chairs.critic, rules, gamma=config.gamma, seed=config.seed,
            concurrency=config.concurrency,
        )  # fmt: skip
        _check(folder, rules, chairs.seeker, chairs.critic, agent)
    else:
        first = RandomReward(config.seed)
    form = ThinkFormatReward(opener(tokenizer, prompt_ids(tokenizer, prompts[0]["prompt"])))
    if config.reward == "format":
        reward = combine({"format": form}, format=config.alpha)
    else:
        reward = combine({"reply": first, "format": form}, reply=1.0, format=config.alpha)
    return train_grpo(config, folder, reward=reward, prompts=prompts, evaluate=success)


def _check(folder: str | Path, rules: Rules, *seated: object) -> None:
    """Ask the chairs' models for a word before any weights are loaded, if there is anything left to train."""
    if is_main() and not is_finished(Path(folder)):
        _loop.run(check_models(*seated, votes=rules.votes))


# --- reporting ------------------------------------------------------------------------------------


def evaluations(folder: Path) -> dict[str, Report]:
    """The evaluations of a run by name: `start` and `grpo`, `start-tX` at another temperature, `NAME-PERSONA`."""
    return {path.name: read_run(path) for path in sorted((folder / "eval").glob("*")) if is_run(path)}


def best_start(runs: Mapping[str, Report]) -> str | None:
    """Which evaluation of the policy before GRPO has the best success rate, over all temperatures."""
    swept = [name for name in runs if name == "start" or re.fullmatch(r"start-t[\d.e-]+", name)]
    return max(swept, key=lambda name: runs[name].success_rate or 0.0, default=None)


def gain(pairs: Iterable[tuple[Report, Report]]) -> dict[str, Any] | None:
    """How much more the second run of each pair solves than the first: the difference of SR and its 95 % interval.

    Paired by episode; the interval resamples whole scenarios, over all pairs (one for each training seed). None if no
    episode ended in both runs.
    """
    differences: dict[str, list[float]] = {}
    for before, after in pairs:
        known = {(item.scenario.id, item.trial): item.solved for item in before.trajectories if item.completed}
        for item in after.trajectories:
            if item.completed and (item.scenario.id, item.trial) in known:
                change = float(item.solved) - float(known[item.scenario.id, item.trial])
                differences.setdefault(item.scenario.id, []).append(change)
    if not differences:
        return None
    mean, interval = clustered_mean(differences.values())
    return {"difference": mean, "interval": list(interval), "scenarios": len(differences)}


def texture(run: Report) -> dict[str, float | None]:
    """Whether replies have collapsed: distinct-2, words a reply, and shares in [0, 1].

    `top_reply` is the share of the most frequent reply, `repeated` the share of replies that the same conversation had
    already had. All None if nothing was said.
    """
    spoken = [
        [message.content.split() for message in item.dialogue if message.role == "supporter"]
        for item in run.trajectories
    ]
    replies = [words for said in spoken for words in said]
    if not replies:
        return {"distinct_2": None, "words": None, "top_reply": None, "repeated": None}
    pairs = [pair for words in replies for pair in pairwise(words)]
    new = sum(len(set(map(tuple, said))) for said in spoken)
    return {
        "distinct_2": round(len(set(pairs)) / len(pairs), 4) if pairs else 0.0,
        "words": round(fmean(map(len, replies)), 1),
        "top_reply": round(Counter(map(tuple, replies)).most_common(1)[0][1] / len(replies), 4),
        "repeated": round(1 - new / len(replies), 4),
    }


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _shown(number: float | None, form: str = ".3f") -> str:
    return "–" if number is None else format(number, form)


def _markdown(report: Mapping[str, Any]) -> str:
    setting = report["setting"]
    lines = [
        f"# {setting['model']}: RLFF-ESC with reward `{report['reward']}`",
        "",
        f"Trained on {setting['scenarios']}, evaluated on {setting['test']}; T = {setting['max_turns']}, seed "
        f"{setting['seed']}.",
        "",
        "| policy | SR | 95 % interval | AT | conversations | errors | distinct-2 | words | most frequent reply | "
        "repeated |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in report["evaluation"].items():
        low, high = run["interval"] or (None, None)
        lines.append(
            f"| {name} | {_shown(run['success_rate'], '.1%')} | {_shown(low, '.1%')} – {_shown(high, '.1%')} | "
            f"{_shown(run['average_turns'], '.2f')} | {run['conversations']} | {run['errors']} | "
            f"{_shown(run['distinct_2'])} | {_shown(run['words'], '.1f')} | {_shown(run['top_reply'], '.1%')} | "
            f"{_shown(run['repeated'], '.1%')} |"
        )
    if change := report["gain"]:
        low, high = change["interval"]
        lines += [
            "",
            f"grpo − {report['gain_over']}: {100 * change['difference']:+.1f} points SR, 95 % interval "
            f"{100 * low:+.1f} to {100 * high:+.1f}, paired by episode, clustered by {change['scenarios']} scenarios.",
        ]
    if model := report["reward_model"]:
        lines += [
            "",
            f"Reward model ({model['kind']}): AUC {_shown(model['auc'])}, within contexts "
            f"{_shown(model['auc_within'])}, accuracy {_shown(model['accuracy'])}, ECE {_shown(model['ece'])}.",
        ]
    if report["valid"]:
        curve = ", ".join(f"step {step}: {rate:.1%}" for step, rate in report["valid"].items())
        lines += ["", f"SR on valid while training: {curve}."]
    if report["seconds"]:
        spent = ", ".join(f"{stage} {seconds:,.0f} s" for stage, seconds in report["seconds"].items())
        lines += ["", f"Wall time: {spent}."]
    return "\n".join(lines) + "\n"
