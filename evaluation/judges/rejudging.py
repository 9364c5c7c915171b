"""The same conversations under other critics: whether a success rate is the agents' doing or the critic's.

A rejudging is a folder (see `esc_env.folder`) with `run.json`, `scenarios.jsonl`, and `verdicts.jsonl`, one line per
turn that another critic has judged. Every turn is judged, with the seed that the run's own critic had: the same critic
says the same again. A conversation that its own critic ended as solved cannot go on; where another critic does not find
it solved by then it stays *open*, and the other's success rate is known only between two bounds.

Imported conversations had no critic, and rules are given for them. As in ours a verdict follows each turn that the
seeker answers, up to T; one with fewer turns than T that a critic never finds solved is open for it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, Unpack

from esc_env.background import run
from esc_env.builtin.language import sentences
from esc_env.builtin.moves import MOVES
from esc_env.builtin.moves import read as moves_in
from esc_env.chairs.critics import CriticMode, resolve_critic
from esc_env.dialogue import Dialogue
from esc_env.errors import RecordError, ScenarioError, SpecError, whole
from esc_env.evaluation.judges.agreement import alpha, check_libraries, kappa, rank_correlation
from esc_env.evaluation.judges.asking import ask_all, failure_of
from esc_env.evaluation.judges.counting import mean_mark
from esc_env.evaluation.judges.design import Conversation, check_english, in_english, people_of, systems_of, words_of
from esc_env.evaluation.runs.builtin import is_builtin
from esc_env.evaluation.runs.holding import check_models
from esc_env.evaluation.runs.report import Report
from esc_env.evaluation.validity.critics import Estimate
from esc_env.fields import integer, mapping, optional, read, text
from esc_env.folder import RunFolder
from esc_env.models import ModelOptions, ModelSettings
from esc_env.progress import Progress, Told
from esc_env.protocols import Critic, Usage, Verdict
from esc_env.records import RecordWriter
from esc_env.rules import Fingerprint, Rules
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed
from esc_env.trajectory import Failure, StopReason, Trajectory

__all__ = ["AS_HELD", "CriticView", "Kept", "Matrix", "Rejudging", "matrix", "read_rejudging", "rejudge"]

VERDICTS = "verdicts.jsonl"
View = Mapping[Conversation, Sequence[Verdict]]
"""The verdicts of one critic, for conversations of which it judged every turn."""
AS_HELD = "as held"
"""The critic that judged while the conversations were held; imported ones had none."""


@dataclass(frozen=True)
class Rejudging:
    """What one critic says of conversations that were held under another.

    Attributes:
        critic: as it was given, or its name.
        verdicts: of every turn of a conversation, None for those that were not judged.
        failures: what went wrong, most frequent first: (message of the first, how often).
        folder: where it is kept.
        rules: by which it judged.
        left_out: imported conversations without a turn that the seeker answers: there is nothing to judge.
    """

    critic: str
    verdicts: Mapping[Conversation, Sequence[Verdict | None]]
    failures: tuple[tuple[str, int], ...]
    folder: Path
    rules: Rules
    left_out: int = 0

    @property
    def missing(self) -> int:
        """Turns without a verdict."""
        return sum(verdict is None for row in self.verdicts.values() for verdict in row)


def rejudge(
    runs: Iterable[str | Path | Report],
    critic: str | Critic | Callable[..., Any],
    *,
    rules: Rules | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Told | None = None,
    critic_mode: CriticMode = "votes",
    critic_temperature: float = 1.1,
    critic_options: Mapping[str, Any] | None = None,
    time_limit: float | None = None,
    **models: Unpack[ModelOptions],
) -> Rejudging:
    """Have another critic judge every turn of the conversations of runs, by the rules of those runs; or of imports.

    Args:
        runs: run folders, folders that hold runs, or reports, all of one fingerprint; or imports of one source with the
            same people.
        critic: as a string, an object or a callable.
        rules: for imports: T, votes and threshold; by default those of `Rules()`. Runs have their own.
        limit: only the first so many scenarios, at least 1.
        out: the folder; by default `runs/rejudged-<key>`.
        fresh: start over; what is in the folder is kept beside it.
        progress: called with a `Progress` before anything is judged and after every turn.
        critic_mode, critic_temperature, critic_options: of a critic that is a chat model; see `evaluate`.
        time_limit: seconds for this call; what is not judged by then is judged by the next call.
        models: how chat models are called: the fields of `esc_env.models.ModelSettings`.

    Raises:
        SpecError, ScenarioError, ModelError, ProtocolMismatch, RecordError: as `judge_runs` does.
    """
    check_libraries()
    whole(limit=1 if limit is None else limit)
    if time_limit is not None and not time_limit > 0:
        raise SpecError(f"time_limit must be a number of seconds above 0, not {time_limit}")
    settings = ModelSettings.of(models, rejudge)
    judge = resolve_critic(critic, settings, mode=critic_mode, temperature=critic_temperature, options=critic_options)
    systems = systems_of(runs)
    own = systems[0].rules
    if own and rules:
        raise SpecError("runs are judged by the rules that they were held by; only imported conversations take others")
    rules = own or rules or Rules()
    people = people_of(systems, limit)
    there = {
        (system.label, *episode): trajectory
        for system in systems
        for episode, trajectory in system.held.items()
        if episode[0] in people
    }
    held = {key: each for key, each in there.items() if own or _turns(each, rules)}
    if not held:
        raise ScenarioError(
            "the runs have no finished conversation" if own else "the seekers never answer: there is no turn to judge"
        )
    if is_builtin(judge.identity):
        check_english("the builtin critic", "--critic", held.values())
    identity = {
        "critic": dict(judge.identity), "votes": rules.votes, "threshold": rules.threshold,
        "judged": {each.label: each.content(key for key in each.held if key[0] in people) for each in systems},
        **({} if own else {"max_turns": rules.max_turns}),
    }  # fmt: skip
    key = Fingerprint(identity).digest
    folder = RunFolder(
        Path(out) if out is not None else Path("runs") / f"rejudged-{key}", "rejudging", (VERDICTS,),
        "Give another folder with --out, or --fresh to start over (the old one is kept beside it)",
    )  # fmt: skip
    name = critic if isinstance(critic, str) else str(judge.identity.get("name", type(judge).__name__))
    begun = not fresh and folder.begun
    if not begun:
        run(check_models(judge, votes=rules.votes))
    with (
        folder.claim(identity, scenarios=people.values(), facts={"critic": name, "key": key}, fresh=fresh),
        RecordWriter(folder.path / VERDICTS, "verdict") as writer,
    ):
        known: dict[Conversation, list[Verdict | None]] = {
            key: [None] * _turns(each, rules) for key, each in held.items()
        }
        for where, turn, verdict in _kept(folder, people, known):
            known[where][turn - 1] = verdict
        missing = [(each, turn) for each, row in known.items() for turn, at in enumerate(row, 1) if at is None]
        turns = sum(map(len, known.values()))
        now = Progress(turns - len(missing), turns, "verdicts")
        tell = progress or (lambda _: None)
        tell(now)
        failed: list[Failure] = []

        async def one(item: tuple[Conversation, int]) -> Failure | None:
            nonlocal now
            where, turn = item
            verdict, usage, failure = await _verdict(judge, held[where], turn, rules)
            known[where][turn - 1] = verdict
            failed.extend([failure] if failure else [])
            writer.write(
                {
                    "system": where[0], "scenario": where[1], "trial": where[2], "turn": turn,
                    "verdict": verdict.to_json() if verdict else None, "usage": usage.to_json(),
                    "failure": asdict(failure) if failure else None,
                }
            )  # fmt: skip
            now = replace(now, done=now.done + (verdict is not None), errors=now.errors + (verdict is None))
            tell(now)
            return failure

        if missing:
            if begun:
                run(check_models(judge, votes=rules.votes))
            run(ask_all(missing, one, settings.concurrency, time_limit))
    kinds = Counter(failure.kind for failure in failed)
    first = {failure.kind: failure.message for failure in reversed(failed)}
    failures = tuple((first[kind], count) for kind, count in kinds.most_common())
    return Rejudging(name, known, failures, folder.path, rules, len(there) - len(held))


def _turns(held: Trajectory, rules: Rules) -> int:
    """How many of its turns are judged: those that the seeker answers, up to T."""
    return min(rules.max_turns, (len(held.dialogue) - held.history) // 2)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a rejudging has come to.

    Attributes:
        critic: as it was given, or its name.
        keys: of the systems that were judged, by label.
        most: T, where rules were given for imports; None for runs, of which every turn is judged.
        verdicts: by conversation and turn; None where the critic failed.
    """

    critic: str
    keys: Mapping[str, str]
    most: int | None
    verdicts: Mapping[Conversation, Mapping[int, Verdict | None]]


def read_rejudging(path: str | Path) -> Kept:
    """Read the folder of a rejudging. Raises RecordError where it is none, or cannot be read."""
    folder = RunFolder(Path(path), "rejudging", (VERDICTS,))
    about = folder.about()
    try:
        identity = about["identity"]
        keys = {name: read(each, "run_key", text) for name, each in read(identity, "judged", mapping).items()}
        most = read(identity, "max_turns", integer(1), None)
        critic = read(about, "critic", text)
    except SpecError as error:
        raise RecordError(f"{folder.path}/run.json: no rejudging ({error}). Was it edited?") from error
    found: dict[Conversation, dict[int, Verdict | None]] = defaultdict(dict)
    for where, turn, verdict in folder.records(VERDICTS, "verdict", _from_json):
        found[where][turn] = verdict
    return Kept(critic, keys, most, found)


def _from_json(data: Mapping[str, Any], scenario: Scenario) -> tuple[Conversation, int, Verdict | None]:
    where = (read(data, "system", text), scenario.id, read(data, "trial", integer(0)))
    return where, read(data, "turn", integer(1)), read(data, "verdict", optional(Verdict.from_json))


def _kept(
    folder: RunFolder, people: Mapping[str, Scenario], known: Mapping[Conversation, Sequence[Any]]
) -> list[tuple[Conversation, int, Verdict | None]]:
    def made(data: Mapping[str, Any], scenario: Scenario) -> tuple[Conversation, int, Verdict | None]:
        where, turn, verdict = _from_json(data, scenario)
        if where not in known:
            raise SpecError(f"system: {where[0]!r}, trial {where[2]}, is no part of this rejudging")
        if turn > len(known[where]):
            raise SpecError(f"turn: must be a whole number from 1 to {len(known[where])}, not {turn}")
        return where, turn, verdict

    return list(folder.records(VERDICTS, "verdict", made, people))


async def _verdict(
    critic: Critic, held: Trajectory, turn: int, rules: Rules
) -> tuple[Verdict | None, Usage, Failure | None]:
    said = Dialogue(held.dialogue.messages[: held.history + 2 * turn])
    try:
        seed = Seed(held.seed, role="critic", turn=turn)
        ballot = await critic.judge(held.scenario, said, votes=rules.votes, seed=seed)
        return rules.count(ballot), ballot.usage, None
    except Exception as error:  # whatever a critic raises leaves the turn without a verdict
        return None, Usage(), failure_of("critic", error)


# --- how critics agree ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CriticView:
    """One critic's view of the conversations.

    Attributes:
        judged: conversations of which it judged every turn.
        solved: those that it finds solved at some turn.
        open: those that ended early (an import before T), and are not solved for it: what would have come of them is
            not known.
        lowest, highest: its success rate if all of those failed, and if all were solved; None without a conversation.
        score: mean final score, from −1 to 1.
        turns: at which turn it first finds conversations solved: (turn, how many).
        by_system: (lowest, highest) for each system.
        length: rank correlation of the supporter's words with how much higher its final scores are than the mean of
            all other critics'; 0 without length bias.
        style: how much higher its final scores are than that mean, from −2 to 2, by the move that the supporter makes
            most, as the builtin classifier reads it, in conversations in English.
    """

    judged: int
    solved: int
    open: int
    lowest: float | None
    highest: float | None
    score: float | None
    turns: Mapping[int, int]
    by_system: Mapping[str, tuple[float, float]]
    length: Estimate | None
    style: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Matrix:
    """How critics of the same conversations agree.

    Attributes:
        rules: by which they judged.
        views: by critic, the one of the runs first (imports have none).
        kappa: by two critics, Cohen's κ of "solved or not", turn by turn; None where it is undefined.
        ranks: by two critics, rank correlation of final scores, with its interval.
        alpha: Krippendorff's α of all critics' scores, turn by turn; None where it is undefined.
    """

    rules: Rules
    views: Mapping[str, CriticView]
    kappa: Mapping[tuple[str, str], float | None]
    ranks: Mapping[tuple[str, str], Estimate | None]
    alpha: float | None

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "rules": {name: getattr(self.rules, name) for name in ("max_turns", "votes", "threshold")},
            "critics": {name: asdict(view) for name, view in self.views.items()},
            "agreement": [
                {"critics": list(two), "kappa": value, "ranks": asdict(ranks) if (ranks := self.ranks[two]) else None}
                for two, value in self.kappa.items()
            ],
            "alpha": self.alpha,
        }


def matrix(runs: Iterable[str | Path | Report], rejudged: Sequence[Rejudging]) -> Matrix:
    """Compare critics with each other, and with the one of the runs.

    Raises:
        RecordError: two of the critics have one name, or judged other conversations or by other rules.
    """
    systems = systems_of(runs)
    own = systems[0].rules
    rules = own or (rejudged[0].rules if rejudged else Rules())
    if other := next((each for each in rejudged if each.rules != rules), None):
        raise RecordError(f"{other.critic} judged by other rules than {rejudged[0].critic}; rejudge with the same")
    every = {(system.label, *episode): held for system in systems for episode, held in system.held.items()}
    if rejudged and (stray := next((key for each in rejudged for key in each.verdicts if key not in every), None)):
        raise RecordError(f"{stray[0]}, {stray[1]}: was rejudged, and is no part of these runs")
    held = {key: every[key] for key in (rejudged[0].verdicts if rejudged else every)}
    seen: dict[str, dict[Conversation, tuple[Verdict, ...]]] = (
        {AS_HELD: {key: each.verdicts for key, each in held.items()}} if own else {}
    )
    for each in rejudged:
        if each.critic in seen:
            raise RecordError(f"two critics are called {each.critic!r}; name each once")
        seen[each.critic] = {
            key: tuple(verdict for verdict in row if verdict)
            for key, row in each.verdicts.items()
            if None not in row and key in held
        }
    common = [key for key in held if all(row.get(key) for row in seen.values())]
    table = [[verdict.score for key in common for verdict in row[key]] for row in seen.values()]
    return Matrix(
        rules,
        {name: _view(name, seen, held, common, rules) for name in seen},
        {(one, other): _kappa(seen[one], seen[other]) for one, other in combinations(seen, 2)},
        {(one, other): _ranks(seen[one], seen[other]) for one, other in combinations(seen, 2)},
        alpha(table, "interval") if common else None,
    )


def _kappa(
    one: Mapping[Conversation, Sequence[Verdict]], other: Mapping[Conversation, Sequence[Verdict]]
) -> float | None:
    both = [(a.solved, b.solved) for key in one if key in other for a, b in zip(one[key], other[key], strict=True)]
    return kappa([a for a, _ in both], [b for _, b in both])


def _ranks(one: View, other: View) -> Estimate | None:
    both = [key for key in one if key in other and one[key]]
    return rank_correlation(
        [one[key][-1].score for key in both], [other[key][-1].score for key in both], [key[1] for key in both]
    )


def _view(
    name: str,
    seen: Mapping[str, View],
    held: Mapping[Conversation, Trajectory],
    common: Sequence[Conversation],
    rules: Rules,
) -> CriticView:
    own = seen[name]
    when = {key: next((turn for turn, at in enumerate(row, 1) if at.solved), None) for key, row in own.items()}
    left = {key for key in own if when[key] is None and _ended_early(held[key], rules)}

    def rates(keys: Sequence[Conversation]) -> tuple[float, float]:
        solved = sum(when[key] is not None for key in keys)
        return solved / len(keys), (solved + sum(key in left for key in keys)) / len(keys)

    whole_range = rates(list(own)) if own else (None, None)
    by_system = defaultdict(list)
    for key in own:
        by_system[key[0]].append(key)
    others = [row for other, row in seen.items() if other != name]
    gaps = {key: own[key][-1].score - fmean(row[key][-1].score for row in others) for key in common} if others else {}
    styles: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for key, gap in gaps.items():
        if in_english(held[key]):
            styles[_style(held[key])].append((key[1], gap))
    words = [float(words_of(held[key])) for key in gaps]
    return CriticView(
        judged=len(own),
        solved=sum(turn is not None for turn in when.values()),
        open=len(left),
        lowest=whole_range[0],
        highest=whole_range[1],
        score=fmean(row[-1].score if row else -1.0 for row in own.values()) if own else None,
        turns=dict(sorted(Counter(turn for turn in when.values() if turn).items())),
        by_system={label: rates(keys) for label, keys in by_system.items()},
        length=rank_correlation(list(gaps.values()), words, [key[1] for key in gaps]),
        style={style: mean for style, rows in sorted(styles.items()) if (mean := mean_mark(rows, -2, 2))},
    )


def _ended_early(held: Trajectory, rules: Rules) -> bool:
    """Whether it might have gone on: its own critic ended it, or whoever held it elsewhere did before T."""
    return held.solved or (held.stop_reason is StopReason.UNJUDGED and _turns(held, rules) < rules.max_turns)


def _said(held: Trajectory) -> list[str]:
    return [each.content for each in held.dialogue.messages[held.history :] if each.role == "supporter"]


def _style(held: Trajectory) -> str:
    """The move that the supporter makes most."""
    readings = [moves_in(sentence) for message in _said(held) for sentence in sentences(message)]
    return max(MOVES, key=lambda move: sum(reading[move] for reading in readings)) if readings else "silence"
