"""Did a run happen as it says? What can be computed again is, and what cannot is said.

What builtin seekers, critics and agents say depends on (scenario, dialogue, seed) alone, so they are asked again about
every dialogue; chat models answer again from the file that recorded them. Nothing else that a run names is imported,
fetched or spoken to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import replace as changed
from fnmatch import fnmatchcase
from glob import escape
from math import comb, isclose
from os.path import lexists
from pathlib import Path
from random import Random
from typing import Any, Literal

from esc_env.agents import identity_of, resolve_agent
from esc_env.background import each, run
from esc_env.builtin.bank import bank
from esc_env.chairs.critics import resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.conversation import as_message
from esc_env.dialogue import Dialogue, Message
from esc_env.errors import RecordError, SpecError
from esc_env.evaluation.ranking.submission import opened
from esc_env.evaluation.runs.builtin import is_builtin
from esc_env.evaluation.runs.report import Report
from esc_env.evaluation.runs.runner import TRAJECTORIES, read_run, run_folder, run_key, run_rules
from esc_env.fields import mapping, read, text
from esc_env.folder import RunFolder
from esc_env.models import ModelSettings
from esc_env.progress import Progress, Told
from esc_env.protocols import VOTES, Agent, Critic, Seeker, Verdict
from esc_env.records import read_json
from esc_env.rules import PROTOCOL_VERSION, Fingerprint, Rules
from esc_env.scenarios import Scenario, ScenarioSet
from esc_env.secrets import MARK
from esc_env.seeds import Seed, episode_seed
from esc_env.specs import parse_spec
from esc_env.trajectory import StopReason, Trajectory

__all__ = ["STANDINGS", "SpotCheck", "Standing", "Verification", "verify"]

Standing = Literal["verified", "replayed", "spot-checked", "as claimed", "refused"]

STANDINGS: Mapping[Standing, str] = {
    "verified": "agent, seeker and critic gave every line and vote again, chat models from the record that was given",
    "replayed": "seeker and critic did, or answered so in the record that was given; the agent's lines are as claimed",
    "spot-checked": "the critic was asked again about a random sample; the rest is as claimed",
    "as claimed": "nothing contradicts itself, and nothing more is known",
}
"""What each standing of a run that is not refused says."""

CHANCE = 0.01
"""A spot check refuses a run if too few of its verdicts *solved* are given again: so few that a critic that agrees with
itself half of the time would give as few in less than this share of checks. Ours."""
_TOLD, _LONGEST = 20, 400
"""Contradictions that are named, the rest are counted; and the characters of one, which may quote what was forged."""


@dataclass(frozen=True, slots=True)
class SpotCheck:
    """What the same critic said when it was asked again about a random sample of verdicts.

    Attributes:
        solved: how many that are said to be solved it found solved again, and of how many.
        unsolved: how many of the others it found unsolved again, and of how many.
        difference: mean score as claimed, less the one given now, in [−2, 2].
    """

    solved: tuple[int, int]
    unsolved: tuple[int, int]
    difference: float

    def __str__(self) -> str:
        (solved, of), (unsolved, others) = self.solved, self.unsolved
        again = f"{solved} of {of} solved and {unsolved} of {others} not solved"
        return f"asked again, the critic found {again} once more (score {self.difference:+.2f} as claimed)"


@dataclass(frozen=True, slots=True)
class Verification:
    """What became of a run that was checked.

    Attributes:
        report: counted afresh from its conversations.
        standing: how far it can be believed.
        contradictions: what it says that cannot be, a line each; empty unless refused.
        replayed: how many lines or verdicts of each chair were computed again.
        notes: what could not be, and why.
        spot_check: where a critic was asked again.
    """

    report: Report
    standing: Standing
    contradictions: tuple[str, ...] = ()
    replayed: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    spot_check: SpotCheck | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the same names; of the report what tells it from others."""
        one = self.report
        return {
            "agent": one.agent, "run_key": one.run_key, "fingerprint": one.fingerprint.digest, **asdict(self),
            "report": one.to_json(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Opened:
    """The parts of a run that can be asked again."""

    agent: Agent | None
    seeker: Seeker | None
    critic: Critic | None


def verify(
    source: str | Path,
    *,
    replay: str | Path | None = None,
    rejudge: int = 0,
    critic: Critic | None = None,
    seed: int | None = None,
    progress: Told | None = None,
) -> Verification:
    """Check a run: what it says of itself, and all that can be computed again.

    Args:
        source: the folder of a run, or a file that `submit` wrote.
        replay: the file in which its chat models were recorded (`--record`).
        rejudge: so many verdicts are asked for again, at least half of them ones that are said to be solved where there
            are so many.
        critic: whom to ask; of the same identity as the run's.
        seed: of the sample; None for one that nobody can foresee.
        progress: told how many conversations were asked again.

    Raises:
        RecordError: no run, or one that cannot be read or contradicts itself within a record; the message names file,
            line and field. Or there is no file to replay.
        SpecError: `rejudge` without a critic, or with another one than the run's.
    """
    with opened(source) as folder:
        return _verify(folder, Path(source), replay, rejudge, critic, seed, progress or (lambda _: None))


def _verify(
    folder: Path,
    source: Path,
    replay: str | Path | None,
    rejudge: int,
    critic: Critic | None,
    seed: int | None,
    told: Told,
) -> Verification:
    kept = run_folder(folder)
    about = kept.about()
    report = read_run(folder)
    report = changed(report, folder=source, scenarios=_whom(report.scenarios, kept.scenarios().values()))
    rules = run_rules(about["identity"])
    if rejudge and critic is None:
        raise SpecError("name the critic that is asked again: --critic, with the options that the run had")
    if critic is not None and (differs := Fingerprint({"critic": report.fingerprint.parts["critic"]}).differences(
        Fingerprint({"critic": critic.identity})
    )):  # fmt: skip
        raise SpecError(f"this is not the critic of the run. What differs (there / here): {'; '.join(differs)}")
    found = list(_lines(kept))
    sound: list[Trajectory] = []  # what contradicts itself is not asked about: it may ask for a billion votes
    for trajectory in report.trajectories:
        wrong = [f"{_place(trajectory)}: {line}" for line in _within(trajectory, rules, about["identity"])]
        found += wrong
        sound += [] if wrong else [trajectory]
    parts, notes = _open(about, replay)
    replayed: Counter[str] = Counter()
    found += _replay(sound, rules, parts, replayed, told)
    found += _said_of_itself(about, report, kept.path)
    check = _spot_check(report.trajectories, rules, critic, rejudge, Random(seed)) if critic and rejudge else None
    if check and check.solved[1] and _tail(*check.solved) < CHANCE:
        found.append(f"{check}: the verdicts are not this critic's")
    standing = _standing(report, found, parts, check)
    return Verification(report, standing, _named(found), dict(replayed), tuple(map(_shortened, notes)), check)


def _standing(report: Report, found: Sequence[str], parts: _Opened, check: SpotCheck | None) -> Standing:
    if found:
        return "refused"
    if report.completed and parts.seeker and parts.critic:
        return "verified" if parts.agent else "replayed"
    telling = check and _tail(0, check.solved[1]) < CHANCE  # a smaller sample could not have refused it
    return "spot-checked" if telling else "as claimed"


def _named(found: Sequence[str]) -> tuple[str, ...]:
    more = len(found) - _TOLD
    return (*map(_shortened, found[:_TOLD]), *([f"and {more:,} more contradictions"] if more > 0 else []))


def _shortened(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _place(trajectory: Trajectory) -> str:
    return f"{trajectory.scenario.id}, trial {trajectory.trial}"


def _whom(name: str, people: Iterable[Scenario]) -> str:
    """The name of a set, unless it is that of a builtin one whose first scenarios these are not."""
    if name not in ("builtin", "builtin:train", "builtin:valid", "builtin:test"):
        return name
    here = ScenarioSet.of(name, people)
    there = bank(name.partition(":")[2])[: len(here)]
    same = {there.digest, *(there.with_persona(persona).digest for persona in {each_.persona for each_ in here})}
    return name if here.digest in same else f"a choice of somebody's own, called {name}"


# --- what a run says of itself ---------------------------------------------------------------------

_COUNTED = (
    "episodes", "completed", "errors", "supporter_failures", "success_rate", "strict_success_rate", "average_turns",
    "mean_score",
)  # fmt: skip
"""What report.json says that follows from the conversations by counting alone."""


def _said_of_itself(about: Mapping[str, Any], report: Report, folder: Path) -> Iterator[str]:
    """run.json against its own identity, and report.json against the conversations."""
    for name, there, now in (
        ("fingerprint", about.get("fingerprint"), report.fingerprint.digest),
        ("run_key", report.run_key, run_key(report.fingerprint, about["identity"]["agent"])),
    ):
        if there != now:
            yield f"run.json: {name} is {there}; of what it says was run, it is {now}"
    path, counted = folder / "report.json", report.to_json()
    claimed = read_json(path, mapping) if lexists(path) else {}
    for name in _COUNTED if claimed.get("complete") else ():  # of one that is not, it may be older than the last lines
        there, now = claimed.get(name, counted[name]), counted[name]
        same = there == now or (isinstance(there, float) and isinstance(now, float) and abs(there - now) < 1e-9)
        if not same:
            yield f"report.json: {name} is {there}; counted from the conversations, it is {now}"


def _lines(kept: RunFolder) -> Iterator[str]:
    """The record file line by line: an episode ends once, goes on from where it broke, and counts its attempts."""
    last: dict[tuple[str, int], tuple[int, Trajectory]] = {}
    for number, now in enumerate(kept.records(TRAJECTORIES, "trajectory", Trajectory.from_json), 1):
        where = f"{TRAJECTORIES}:{number}: {_place(now)}"
        attempt, before = last.get((now.scenario.id, now.trial), (0, None))
        if before and before.completed:
            yield f"{where} had ended ({before.stop_reason.value}) in an earlier line, and is held once more"
        elif before and not _goes_on(before, now):
            yield f"{where} does not go on from where it broke, but was held again"
        elif now.attempts != attempt + 1:
            yield f"{where} says that it is attempt {now.attempts:,}, and is line {attempt + 1:,} of this conversation"
        last[now.scenario.id, now.trial] = attempt + 1, now


def _goes_on(before: Trajectory, after: Trajectory) -> bool:
    """Whether a conversation begins with all that was said and judged before."""
    said, judged = before.dialogue.messages, before.verdicts
    return after.dialogue.messages[: len(said)] == said and after.verdicts[: len(judged)] == judged


def _within(trajectory: Trajectory, rules: Rules, identity: Mapping[str, Any]) -> Iterator[str]:
    """One conversation against the rules and the run."""
    scenario, messages = trajectory.scenario, trajectory.dialogue.messages
    seed = episode_seed(identity["seed"], scenario.id, trajectory.trial)
    if trajectory.seed != seed:
        yield f"its seed is {trajectory.seed}; in a run of seed {identity['seed']} it is {seed}"
    begun = messages and messages[0].role == "seeker" and trajectory.history == 1
    if not begun and (messages or trajectory.completed):
        yield "it does not begin with one message of the seeker"
    elif rules.opening == "situation" and messages and messages[0].content != scenario.situation:
        yield "it does not begin with the situation of its scenario"
    for turn, message in enumerate(_said(trajectory, "supporter"), 1):
        if len(message.content) > rules.max_chars:
            yield f"turn {turn}: the supporter says {len(message.content):,} characters, more than {rules.max_chars:,}"
    if any(verdict.solved for verdict in trajectory.verdicts[:-1]):
        yield "it goes on after it was solved"
    judge = identity["critic"]
    least = rules.votes if is_builtin(judge) else rules.votes / 2 if judge.get("name") == "llm" else None
    for turn, verdict in enumerate(trajectory.verdicts, 1):
        if least and (not least <= len(verdict.votes) <= rules.votes or not {*verdict.votes} <= {*VOTES.values()}):
            given = ", ".join(f"{vote:+g}" for vote in verdict.votes[:20])
            yield f"turn {turn}: the votes {given} cannot be {rules.votes:,} of the critic {judge['name']}"


def _said(trajectory: Trajectory, role: str) -> list[Message]:
    return [message for message in trajectory.dialogue.messages[trajectory.history :] if message.role == role]


# --- asking again ----------------------------------------------------------------------------------


def _open(about: Mapping[str, Any], replay: str | Path | None) -> tuple[_Opened, list[str]]:
    """The parts of a run that can be asked again, and why the others cannot."""
    identity = about["identity"]
    config = about["config"] if isinstance(about.get("config"), Mapping) else {}
    settings = ModelSettings(replay=Path(replay)) if replay is not None else None
    if replay is not None and not Path(replay).is_file():
        raise RecordError(f"{replay}: no such file. Give the one that --record named when the run was held")
    notes: list[str] = []
    made: dict[str, Any] = {}
    if identity.get("protocol") != PROTOCOL_VERSION:
        told = f"held by protocol {identity.get('protocol')}, and this release has {PROTOCOL_VERSION}"
        return _Opened(None, None, None), [f"{told}: nobody is asked again"]
    for role, opening in (("agent", _agent), ("seeker", _seeker), ("critic", _critic)):
        ours = role != "agent" and is_builtin(identity[role])  # which nothing else can take back
        try:
            part = opening(about, {} if ours else config, settings)
        except Exception as error:  # whatever comes of what a stranger's run.json says
            part = f"{role}: cannot be asked again ({error})"
        if isinstance(part, str):
            notes.append(part)
        elif differs := Fingerprint({role: identity[role]}).differences(Fingerprint({role: identity_of(part)})):
            notes.append(f"{role}: not the one of this release, so it is not asked again ({'; '.join(differs)})")
        else:
            made[role] = part
    if models := [role for role, part in made.items() if hasattr(part, "model")]:
        notes.append(f"{', '.join(models)}: answered from {replay}, which is as true as whoever recorded it is honest")
    return _Opened(made.get("agent"), made.get("seeker"), made.get("critic")), notes


def _agent(about: Mapping[str, Any], config: Mapping[str, Any], settings: ModelSettings | None) -> Any:
    listed = config.get("agents")
    said = listed[0] if isinstance(listed, list) and len(listed) == 1 and isinstance(listed[0], Mapping) else {}
    name = read(about, "agent", text)
    options = said.get("options")
    if isinstance(options, Mapping) and str(options.get("system", "")).startswith("@"):
        raise SpecError("its system prompt names a file of this machine, which is not read")
    return _part("agent", name, settings, lambda: resolve_agent(
        name, settings, temperature=said.get("temperature", 0.0), options=options,
    ))  # fmt: skip


def _seeker(about: Mapping[str, Any], config: Mapping[str, Any], settings: ModelSettings | None) -> Any:
    name = str(config.get("seeker", about["identity"]["seeker"].get("name")))
    return _part("seeker", name, settings, lambda: resolve_seeker(
        name, settings, temperature=config.get("seeker_temperature", 0.7), options=config.get("seeker_options"),
    ))  # fmt: skip


def _critic(about: Mapping[str, Any], config: Mapping[str, Any], settings: ModelSettings | None) -> Any:
    name = str(config.get("critic", about["identity"]["critic"].get("name")))
    return _part("critic", name, settings, lambda: resolve_critic(
        name, settings, mode=config.get("critic_mode", "votes"), temperature=config.get("critic_temperature", 1.1),
        options=config.get("critic_options"),
    ))  # fmt: skip


def _part(role: str, name: str, settings: ModelSettings | None, make: Callable[[], Any]) -> Any:
    """The part, or why it cannot be asked again. Nothing is opened but what is builtin, or answers from a record."""
    try:
        kind = parse_spec(name).kind
    except SpecError:
        return f"{role}: {name} cannot be opened again by that name (the run was started from Python, with objects)"
    if kind == "builtin":
        return make()
    if kind != "model":
        return f"{role}: {name} is code or weights of somebody's own machine, which are not loaded"
    if settings is None:
        return f"{role}: {name} is a chat model; give the file that recorded it with --replay"
    return make()


def _replay(
    trajectories: Sequence[Trajectory], rules: Rules, parts: _Opened, replayed: Counter[str], told: Told
) -> list[str]:
    """Ask everybody again about every conversation; what comes out otherwise, named by conversation and turn."""
    found: list[tuple[int, str]] = []
    if not any((parts.agent, parts.seeker, parts.critic)):
        return []
    done = 0

    async def one(item: tuple[int, Trajectory]) -> None:
        nonlocal done
        place, trajectory = item
        if (differs := await _differs(trajectory, rules, parts, replayed)) is not None:
            found.append((place, f"{_place(trajectory)}, {differs}"))
        done += 1
        told(Progress(done, len(trajectories)))

    run(each(enumerate(trajectories), one, 64))
    return [line for _, line in sorted(found)]


async def _differs(trajectory: Trajectory, rules: Rules, parts: _Opened, replayed: Counter[str]) -> str | None:
    """The first thing in a conversation that does not come out again; None where everything does."""
    scenario, messages, name = trajectory.scenario, trajectory.dialogue.messages, Seed(trajectory.seed)
    turn = 0
    for place, message in enumerate(messages):
        before = Dialogue(messages[:place])
        turn += message.role == "supporter"
        seed, ask = name.at(turn=turn, role=message.role), None
        if message.role == "supporter":
            ask = parts.agent.respond(before, seed=seed) if parts.agent else None
        elif place >= trajectory.history or rules.opening == "seeker":
            ask = parts.seeker.reply(scenario, before, seed=seed) if parts.seeker else None
        if ask is not None:
            try:
                reply = await ask
            except Exception as error:  # whatever it raises, it does not say this
                return f"turn {turn}: the {message.role} does not say this when asked again ({error})"
            again = as_message(reply) if message.role == "supporter" else Message("seeker", reply.content)
            if not _agree(again, message):
                return f"turn {turn}: the {message.role} says something else when asked again"
            replayed[message.role] += 1
        if parts.critic and message.role == "seeker" and 0 < turn <= trajectory.turns:
            try:
                verdict = await _judged(parts.critic, trajectory, turn, rules, name)
            except Exception as error:
                return f"turn {turn}: the critic does not vote so when asked again ({error})"
            claimed = trajectory.verdicts[turn - 1]
            if not _same(claimed, verdict):
                scores = f"a score of {claimed.score:+.2f} is claimed, {verdict.score:+.2f} comes out"
                return f"turn {turn}: the critic votes otherwise when asked again ({scores})"
            replayed["critic"] += 1
    if parts.agent and trajectory.stop_reason is StopReason.SUPPORTER_FAILED:
        turn += 1
        try:
            reply = await parts.agent.respond(trajectory.dialogue, seed=name.at(turn=turn, role="supporter"))
            failed = len(as_message(reply).content) > rules.max_chars
        except Exception:  # as it is said to have done
            failed = True
        if not failed:
            return f"turn {turn}: the supporter is said to have failed, and answers when asked again"
    return None


def _agree(again: Message, kept: Message) -> bool:
    """Whether two messages agree; of one that a key was struck out of, whatever stands around it."""
    if MARK not in f"{kept.content}{kept.thought}":
        return again == kept
    return all(
        fnmatchcase(said or "", "*".join(map(escape, (as_kept or "").split(MARK))))
        for said, as_kept in ((again.content, kept.content), (again.thought, kept.thought))
    )


def _same(one: Verdict, other: Verdict) -> bool:
    """Whether two verdicts agree; the last digit of an expectation is the machine's."""
    near = isclose(one.expected or 0.0, other.expected or 0.0, abs_tol=1e-6)
    return near and changed(one, expected=None) == changed(other, expected=None)


async def _judged(critic: Critic, trajectory: Trajectory, turn: int, rules: Rules, name: Seed) -> Verdict:
    """The verdict after so many turns."""
    after = Dialogue(trajectory.dialogue.messages[: trajectory.history + 2 * turn])
    seed = name.at(turn=turn, role="critic")
    return rules.count(await critic.judge(trajectory.scenario, after, votes=rules.votes, seed=seed))


def _spot_check(
    trajectories: Sequence[Trajectory], rules: Rules, critic: Critic, count: int, draw: Random
) -> SpotCheck:
    """Ask a critic again about a random sample; by other seeds, since a server may remember its answers."""
    told = [(each_, turn) for each_ in trajectories for turn in range(1, each_.turns + 1)]
    solved = [item for item in told if item[0].verdicts[item[1] - 1].solved]
    others = [item for item in told if not item[0].verdicts[item[1] - 1].solved]
    many = min(len(solved), max(count - count // 2, count - len(others)))
    sample = [*draw.sample(solved, many), *draw.sample(others, min(len(others), count - many))]
    given: dict[int, Verdict] = {}

    async def one(place: int) -> None:
        trajectory, turn = sample[place]
        given[place] = await _judged(critic, trajectory, turn, rules, Seed(trajectory.seed, rollout=1))

    run(each(range(len(sample)), one, 64))
    pairs = [(trajectory.verdicts[turn - 1], given[place]) for place, (trajectory, turn) in enumerate(sample)]
    same = Counter(claimed.solved for claimed, now in pairs if now.solved == claimed.solved)
    difference = sum(claimed.score - now.score for claimed, now in pairs) / len(pairs) if pairs else 0.0
    return SpotCheck((same[True], many), (same[False], len(sample) - many), difference)


def _tail(same: int, asked: int) -> float:
    """The chance that a fair coin falls on one side at most `same` times of `asked`."""
    return float(sum(comb(asked, k) for k in range(same + 1)) / 2**asked)
