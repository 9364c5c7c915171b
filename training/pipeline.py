"""RLFF-ESC from end to end: sft → collect → rm → grpo → evaluate, in one folder.

    esc train pipeline --preset qwen2.5-0.5b --out runs/small

    RUN/run.json           what is run
    RUN/base, RUN/rm-base  models made from scratch (`model: tiny`)
    RUN/population         conversations it learns to speak from (`sft_data: population`)
    RUN/sft                the policy that can speak
    RUN/collect            stage 1: responses and their futures
    RUN/rm                 stage 2: the reward model
    RUN/grpo               stage 3: the trained policy
    RUN/eval/NAME          whole conversations with each policy, as `esc eval` keeps them
    RUN/report.json, .md   what came of it
    RUN/timing.jsonl       how long each stage took

Every stage keeps what it has finished: the same call goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from esc_env.agents.spec import resolve_agent
from esc_env.errors import BudgetExceeded, ConfigError
from esc_env.evaluation.pages.run import run_pages, write_pages
from esc_env.evaluation.runs.report import success_text
from esc_env.evaluation.runs.runner import evaluate
from esc_env.folder import RunFolder
from esc_env.models import ModelSettings, Options
from esc_env.models.local import LocalModel
from esc_env.models.options import check_names
from esc_env.protocols import Agent
from esc_env.records import write_json, write_records, write_text
from esc_env.rules import Rules
from esc_env.seeds import derive
from esc_env.training.collect import collect
from esc_env.training.config import STAGES, CollectStage, GRPOStage, PipelineConfig, Setting, processes
from esc_env.training.data import CONVERSATIONS, read_samples
from esc_env.training.outcome import outcome, page, shown
from esc_env.training.stage import FREE, asked, chairs_of, clocked, is_main, on_processor, quiet, together
from esc_env.trajectory import Trajectory, stop_if_spent

__all__ = ["on_valid", "run_pipeline"]

TINY = "tiny"
"""The model that is made from scratch."""

POPULATIONS = ("population", "population:steady")
"""Conversations of scripted supporters: with those who are hasty in their third and fourth turn, and without."""

Told = Callable[[str], None]
"""Told one line about what happens."""


def run_pipeline(config: PipelineConfig, folder: str | Path, *, told: Told = print) -> dict[str, Any]:
    """Run all stages that are not skipped and not finished; returns the report, as report.json has it.

    Of several processes (`accelerate launch`, `torchrun`) every one calls this. Collecting and evaluating are done by
    the first one, while the others wait.

    Raises:
        ConfigError: a stage is skipped whose result another one needs; or several processes cannot talk in one way.
        SpecError: the policy takes no such option.
        ProtocolMismatch: the folder holds another run; the message names what differs.
        RecordError: the folder cannot be used, or another process writes there.
    """
    if processes() > 1 and not config.sft.cpu == config.rm.cpu == config.grpo.cpu:
        raise ConfigError(
            "several processes talk to each other in one way: set cpu in sft, rm and grpo alike, or run the stages one "
            "by one"
        )
    folder = Path(folder)
    job = _Pipeline(config, folder, told if is_main() else lambda line: None)
    options = Options.of(config.setting.agent_options, "agent")
    check_names(options, LocalModel.OPTIONS, "agent", "the policy", body=False)
    home = RunFolder(folder, "pipeline")
    free = {"skip", "models", *FREE}  # which stages are run now, and how they are computed
    identity = json.loads(json.dumps(asdict(config), default=str))  # a path as text
    claimed = home.claim(identity, free=free, usual=asdict(PipelineConfig()))
    with quiet(), claimed if is_main() else nullcontext():
        job.together()
        for stage in filter(config.runs, STAGES):
            begun = time.perf_counter()
            job.told(f"{stage}: {folder}")
            getattr(job, stage)()
            if is_main():
                clocked(folder, stage=stage, seconds=round(time.perf_counter() - begun, 1))
        made = outcome(config, folder)
        if is_main():
            write_json(folder / "report.json", made)
            write_text(folder / "report.md", page(made))
        return made


class _Pipeline:
    """One run: what its stages need of each other."""

    def __init__(self, config: PipelineConfig, folder: Path, told: Told) -> None:
        self.config = config
        self.setting: Setting = config.setting
        self.folder = folder
        self.told = told
        self.rules = Rules(max_turns=config.setting.max_turns)

    def together(self) -> None:
        """Wait for all processes, where there are several."""
        together(cpu=on_processor(self.config.grpo))

    # --- the stages -----------------------------------------------------------------------------------

    def sft(self) -> None:
        """The policy learns to speak."""
        from esc_env.training.sft import lessons, lessons_from, train_sft

        setting = self.setting
        if setting.sft_data in POPULATIONS:
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
                self._collector(stage), self.setting.people(), **self.setting.chairs(), rules=self.rules,
                source=stage.source, limit=stage.limit, contexts=stage.contexts, candidates=stage.candidates,
                rollouts=stage.rollouts, horizon=stage.horizon, trials=stage.trials, valid=stage.valid,
                valid_candidates=stage.valid_candidates, valid_rollouts=stage.valid_rollouts,
                seed=self.setting.seed, out=self.folder / "collect", **asdict(self.config.calls(stage)),
            )  # fmt: skip
            solved = made.card["all"]["solved"]
            self.told(f"collect: {made.card['samples']:,} samples, solved {solved or 0:.1%}")
        self.together()

    def rm(self) -> None:
        """Stage 2."""
        from esc_env.training.reward_model import train_reward_model

        config = replace(self.config.rm, model=self._reward_base())
        report = train_reward_model(config, self.folder / "rm", read_samples(self._needs("collect")))
        self.told(f"rm: AUC {shown(report.auc)}, within contexts {shown(report.auc_within)}")

    def grpo(self) -> None:
        """Stage 3."""
        from esc_env.training.grpo import optimise

        optimise(
            replace(self.config.grpo, model=self._policy()),
            self.setting,
            self.folder / "grpo",
            samples=[] if self.config.grpo.reward == "env" else read_samples(self._needs("collect"), tails=False),
            reward_model=self._reward_model(),
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
                for persona in stage.personas if name != "last" else ():
                    self._hold(f"{name}-{persona}", policy, stage.temperature, persona)
        self.together()

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
        write_pages(run_pages(report), report.folder)
        self.told(f"evaluate {label}: SR {success_text(report)}")

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

    def _reward_base(self) -> str:
        """What a reward model begins with."""
        if self.setting.reward_model != TINY:
            return self.setting.reward_model
        base = self.folder / "rm-base"
        if is_main() and not base.exists():
            from esc_env.training.tiny import make_reward_model

            make_reward_model(base, self._policy())
        self.together()
        return str(base)

    def _reward_model(self) -> str | Path | None:
        """What the reward of GRPO reads, if it reads one."""
        if self.config.grpo.reward == "untrained":
            return self._reward_base()
        return self._needs("rm") if self.config.grpo.reward == "rlff" else None

    def _policies(self) -> dict[str, str]:
        named = {"start": self._policy()}
        trained = self.folder / "grpo"
        if self.config.runs("grpo") or trained.is_dir():
            named["grpo"] = str(trained)
        if self.config.evaluate.last and (last := self._last()):
            named["last"] = str(last)
        return named

    def _last(self) -> Path | None:
        """The last checkpoint of GRPO, where another one was chosen on valid."""
        made = self.folder / "grpo"
        kept = {int(path.name.rpartition("-")[2]): path for path in made.glob("checkpoints/checkpoint-*")}
        return kept[max(kept)] if kept and max(kept) != RunFolder(made, "stage").about().get("chosen") else None

    def _needs(self, stage: str) -> Path:
        folder = self.folder / stage
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not there, and the stage {stage!r} that makes it is skipped")
        return folder

    def _population(self) -> list[Trajectory]:
        """Conversations of scripted supporters, held once and kept."""
        from esc_env.training.tiny import population

        kept = RunFolder(self.folder / "population", "population", (CONVERSATIONS,))
        if is_main() and not kept.finished:
            chairs = chairs_of(self.setting, self.config.calls(self.config.collect), self.rules)
            people = self.setting.people()
            held = population(
                people, chairs.seeker, chairs.critic, self.rules,
                renamed=0.6 if self.setting.model == TINY else 0.0,
                hasty=self.setting.sft_data == POPULATIONS[0], seed=self.setting.seed,
            )  # fmt: skip
            try:
                stop_if_spent(held)
            except BudgetExceeded as error:
                raise BudgetExceeded(f"{error}. The conversations of sft_data population begin anew") from None
            steady = {} if self.setting.sft_data == POPULATIONS[0] else {"supporters": "steady"}
            with kept.claim({"seed": self.setting.seed, **steady}, scenarios=people):
                write_records(kept.path / CONVERSATIONS, "trajectory", (item.to_json() for item in held))
                kept.note(finished=True)
        self.together()
        return list(kept.records(CONVERSATIONS, "trajectory", Trajectory.from_json))

    def _base(self, held: Sequence[Trajectory]) -> None:
        """The tiny policy, made from scratch."""
        if is_main() and not (self.folder / "base").exists():
            from esc_env.training.tiny import make_policy

            make_policy(self.folder / "base", held, seed=self.setting.seed)
        self.together()

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
            rules=self.rules, persona=self.setting.persona or None, limit=self.setting.valid_limit,
            seed=self.setting.seed,
            out=self.folder / "valid" / Path(policy).name, fresh=True,
            **asdict(self.config.calls(self.config.evaluate)),
        )  # fmt: skip
        self.told(f"valid, {Path(policy).name}: SR {success_text(report)}")
        return report.success_rate_of_all


def on_valid(config: PipelineConfig, folder: str | Path, *, told: Told = print) -> Callable[[str], float]:
    """What tells the success rate of a checkpoint on `config.setting.valid`, for `optimise`.

    Args:
        config: whose setting, models, evaluation temperature and completion length count.
        folder: its `valid` keeps the conversations.
        told: told every success rate.
    """
    return _Pipeline(config, Path(folder), told).success
