"""Critics: from a string, an object or a callable to something that votes on the seeker's relief."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from esc_env.background import call
from esc_env.chairs.seat import Seat
from esc_env.dialogue import ChatMessage, Dialogue, split_thought
from esc_env.errors import BadCompletion, SpecError, did_you_mean, one_of
from esc_env.identity import code_digest, name_of
from esc_env.models import PROBE, ModelSettings, Options, check_model, check_parameters
from esc_env.models.options import told_apart
from esc_env.prompts import Prompts, seal, sealed_transcript
from esc_env.protocols import VOTES, Ballot, ChatModel, Critic, Request, Usage
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed
from esc_env.specs import Spec, check_takes

__all__ = ["CallableCritic", "CriticMode", "LLMCritic", "parse_vote", "resolve_critic"]

CriticMode = Literal["votes", "logprobs"]
"""`votes`: each vote is a sampled answer. `logprobs`: one answer with the probabilities of the four option letters,
from which the votes are drawn."""

_PROMPTS = Prompts(Path(__file__).parents[1] / "prompts")
_USED = ("critic", "critic-question", "critic-again")

ATTEMPTS = 3
"""How often unreadable votes are asked for before they stay unreadable. Ours."""
_LETTERS: Mapping[str, str] = dict(zip("ABCD", VOTES, strict=True))
_SENTENCES: Mapping[str, str] = {
    "no, the seeker feels worse": "worse",
    "no, the seeker feels the same": "same",
    "no, but the seeker feels better": "better",
    "yes, the seeker's issue has been solved": "solved",
}
_LEADING: Mapping[str, str] = {
    **{option: option for option in VOTES},
    **_SENTENCES,
    **{re.sub(r"^(?:no|yes),(?: but)? ", "", sentence): option for sentence, option in _SENTENCES.items()},
    "the same": "same",
    "no, the seeker feels better": "better",
}
"""What names an option at the beginning; further on, the seeker may well feel better in an issue that is solved."""
_MARKS = str.maketrans(
    {**{chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F)}, **dict.fromkeys("*_`#$\\"),
     **dict.fromkeys("[{［｛【", "("), **dict.fromkeys("]}］｝】", ")"), **dict.fromkeys("“”„「」«»", '"'),
     "’": "'", "。": "."}
)  # fmt: skip
"""Full-width letters as plain ones; of Markdown, LaTeX, brackets and quotation marks only `(`, `)`, `"` and `'`."""
_BOXED = re.compile(r"\\boxed\b|\\(?:text|math)[a-z]*")
_KEY = re.compile(r"(?:(?:my|the) )?(?:final |chosen )?(?:answer|option|verdict|choice|vote)")
_OPENERS = r"(?:[Tt](?:hey|he|heir|here|his)|[Hh](?:e|is|er)|[Ss]he|[Ii]t|[Nn]othing|That|No|Yes|While|After|I|In|At)\b"
_FITS = r"(?:fits|describes|applies)\b|(?:is|seems)\ (?:the\ |my\ )?(?:most\ \w+|best|right|correct|choice|vote)\b"
_OPTION = re.compile(
    rf"""["(]{{0,4}}+ (?: (?P<letter>[A-D]) | (?P<words>{"|".join(map(re.escape, _LEADING))})
          (?:\ (?:than|as)\ (?:before|at\ the\ (?:start|beginning)))?+ ) (?![\w'])
        (?: [.!]?+[")]{{0,4}}+\s*+\Z | [")]{{0,4}}+ (?:\ ?\n | \ [-–—]\ )
          | [.!")]{{0,4}}[.!)] (?:\s | \Z | (?=[a-z]{{2}}))
          | (?P<goes_on> [")]{{0,4}}+ ,?\ (?=(?:because|since|as|but|though|although)\b)
              | (?-i:(?<=\b[A-D])|(?<=[a-z]{{2}}|[A-Z]{{2}})) \)?+
                (?: \ ?[,;–—]\s* | \ ?:\s*+(?!no\W{{0,4}}(?:\n|\Z)) | -
                    | \ ?(?=\([^()\n]*\)\s*(?:[.!\n:,;–—-]|because\b|since\b|\Z)) )
              | (?-i:(?<=\b[A-D])) \ (?: (?=(?-i:{_OPENERS})) | {_FITS}) ) )""",
    re.IGNORECASE | re.VERBOSE,
)
"""An option that a sentence or line ends with, or (`goes_on`) that is explained in the sentence that it begins. It is a
plain word or capital then, not in quotation marks: "a (new) day" and '"Solved", they say' choose nothing."""
_ANNOUNCED = re.compile(
    r"""(?: \A | (?<=[.!?\n])\ ? ) (?:(?:so|thus|hence|therefore|overall),?\ )?
        (?: (?:(?:the|my)\ )? (?:(?:final|correct|best|right)\ )? (?:answer|option|verdict|choice|vote)
            (?: \ ?(?:is\b|would\ be\b|[:=–—-])[:\s]* | \ ?\n\s*
              | (?<=\Aanswer)\  | (?<=\Aoption)\  | (?<=\Averdict)\  )
          | i(?:'d|'ll|\ would|\ will)?\ (?:choose|pick|select|answer|vote|go\ with)\b:?\ ?(?:for\ )? )
        (?:option\ )?""",
    re.IGNORECASE | re.VERBOSE,
)
"""What announces an option, at the beginning of the answer or of a sentence: nobody else's sentence is an answer."""
_QUOTED = re.compile(r'"[^"\n]*"')
_LETTER = re.compile(r"(?<![\w'])(?:A(?!\ (?!or\b|and\b|is\b|nor\b|but\b)\w)|[B-D])(?![\w'])")
"""A letter that names an option: not the article of "A person like this"."""
_AGREES = re.compile(r"\W{0,4}+(yes|no)\b", re.IGNORECASE)
_NAMES = "|".join(VOTES)
_DENIED = re.compile(
    rf"(?:\bnot|n't|\bnever|\bhardly|\bno longer|\bneither)\b(?: \w+){{0,3}}? (?:re)?({_NAMES})\b"
    rf"(?: n?or (?:the )?({_NAMES})\b)?",
    re.IGNORECASE,
)
_NAMED = re.compile(rf"\b(?:{_NAMES})\b", re.IGNORECASE)
_EITHER = re.compile(rf"\bor (?:the )?(?:{_NAMES})\b", re.IGNORECASE)
_FELT = {"the same": "same", "as before": "same"}
_CLAIMED = re.compile(r"[^.!?;\n]{0,40}?\bfeels? (?:\w+ )?(worse|better|the same|as before)\b", re.IGNORECASE)
_HEDGE = re.compile(
    r"""\W{0,4}+(?: (?P<other>but|though|although|not|yet)
        | or|if|unless|almost|nearly|maybe|perhaps|possibly|partly|partially|hardly|wrong|incorrect|wait|says )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_TOLD = re.compile(
    r"""(?:(?:the|my)\ )?(?:seeker|supporter|they|she|he|i)\ (?:says?|said|wrote|writes|asks|asked|guess)
        \ ?(?:[.,;!\n]|\Z) | which\b | [^.!?\n,]{1,40},\ (?:is|does|doesn't|would|seems)\b""",
    re.IGNORECASE | re.VERBOSE,
)
"""A sentence that began with an option and is somebody else's, or about it: "Solved, they say", "D, which is wrong"."""
_END = re.compile(r"[.!?\n]")
_TAKEN_BACK = re.compile(r"\bno,? wait\b|\bwait,|\bon second thought|\bscratch that\b|\btake (?:it|that) back\b", re.I)
_UNSAID: Mapping[str | None, str] = {"length": "cut", "refusal": "refused", "content_filter": "filtered"}
"""Finish reasons for which what there is of an answer is no vote, and the kind that they are in `Ballot.redrawn`."""
_TOP = 20
"""Alternatives asked for in logprobs mode: the most that OpenAI's API gives."""


@dataclass(frozen=True)
class CallableCritic:
    """Somebody's `function(scenario, dialogue)` (sync or async) as a Critic.

    It returns one of the four options (`worse`, `same`, `better`, `solved`) or a float in [−1, 1]; either is one vote.
    """

    function: Callable[..., Any]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The function's name and a digest of its code, so that a changed function is another critic."""
        return {"name": name_of(self.function), "code": code_digest(self.function)}

    async def judge(self, scenario: Scenario, dialogue: Dialogue, *, votes: int, seed: Seed) -> Ballot:
        """Call it once. Raises BadCompletion on anything but an option or a float in [−1, 1]."""
        said = await call(self.function, scenario, dialogue)
        if isinstance(said, Ballot):
            return said
        if isinstance(said, str) and said in VOTES:
            return Ballot((VOTES[said],))
        if isinstance(said, (int, float)) and not isinstance(said, bool) and -1 <= said <= 1:
            return Ballot((float(said),))
        raise BadCompletion(
            f"{name_of(self.function)} returned {said!r}; a critic returns {', '.join(VOTES)} or a float in [-1, 1]"
        )


@dataclass(frozen=True)
class LLMCritic:
    """A chat model that is asked whether the seeker's issue is solved now.

    It gets the dialogue as sealed JSON, so that no text in it can forge a turn. Prompts are
    `esc_env/prompts/critic*.txt`. One request a verdict, unless votes are asked for again.

    Attributes:
        model: any ChatModel.
        mode: `votes` or `logprobs`; the two never share a fingerprint.
        temperature: of the votes, above 0. *Source:* PPDPP: 1.1.
        max_tokens: longest answer in votes mode, thinking of the model included.
        stop: strings that end an answer in votes mode.
    """

    model: ChatModel
    mode: CriticMode = "votes"
    temperature: float = 1.1
    max_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_voting(self.mode, self.temperature)

    @property
    def deterministic(self) -> bool:
        """Whether the model says that it answers the same request with the same text."""
        return bool(getattr(self.model, "deterministic", False))

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model, mode, decoding and a hash of the prompts."""
        identity = {
            "name": "llm",
            "model": dict(self.model.identity),
            "mode": self.mode,
            "temperature": self.temperature,
            "prompts": _PROMPTS.digest(_USED),
        }
        if self.mode == "logprobs":
            return identity
        return {**identity, "max_tokens": self.max_tokens, **told_apart(self.stop)}

    async def check(self, votes: int = 1) -> None:
        """Ask the model for a word, just as it will be asked. Raises SpecError or a `ModelError` where that fails."""
        await check_model(self.model, "critic", self._request(PROBE.messages, votes, 0))

    async def judge(self, scenario: Scenario, dialogue: Dialogue, *, votes: int, seed: Seed) -> Ballot:
        """`votes` votes on how the seeker is now.

        Raises:
            BadCompletion: in logprobs mode, when the server gives no distribution over the options.
            ModelError: the model could not be reached.
        """
        chat = critic_messages(scenario, dialogue)
        return await (self._ask if self.mode == "votes" else self._draw)(chat, votes, seed)

    def _request(self, chat: Sequence[ChatMessage], votes: int, seed: int) -> Request:
        if self.mode == "logprobs":
            return Request(chat, temperature=1.0, max_tokens=1, seed=seed, logprobs=_TOP)
        return Request(chat, votes, self.temperature, self.max_tokens, seed, self.stop)

    async def _ask(self, chat: list[ChatMessage], votes: int, seed: Seed) -> Ballot:
        """Sampled answers; unreadable ones are asked for again, told so, under another seed each time, then None."""
        valid: list[float] = []
        first: list[str | None] = []
        usage = Usage()
        faulty = attempt = 0
        while len(valid) < votes and faulty < ATTEMPTS:
            shown = [*chat[:-1], _again(chat[-1])] if faulty else chat
            asked = self._request(shown, votes - len(valid), seed.at(attempt=attempt).value)
            completion = await self.model.complete(asked)
            usage += completion.usage
            endings = (*completion.finish_reasons, *[None] * len(completion.texts))
            said = list(zip(completion.texts[: votes - len(valid)], endings, strict=False))
            read = [None if ending in _UNSAID else parse_vote(text) for text, ending in said]
            unread = [_fault(*answer) if vote is None else None for vote, answer in zip(read, said, strict=True)]
            first += unread[: votes - len(first)]
            valid += [vote for vote in read if vote is not None]
            faulty += None in read or not read  # a server that only gave fewer choices than asked is asked on
            attempt += 1
        redrawn = tuple(fault for fault in first if fault)
        return Ballot((*valid, *[None] * (votes - len(valid))), None, usage, len(redrawn), redrawn)

    async def _draw(self, chat: list[ChatMessage], votes: int, seed: Seed) -> Ballot:
        """Votes drawn by the call seed from the model's own distribution over the four letters."""
        completion = await self.model.complete(self._request(chat, votes, seed.value))
        if not completion.logprobs or not completion.logprobs[0]:
            raise BadCompletion("the critic's server gave no log-probabilities. Use the critic mode 'votes'")
        mass = dict.fromkeys(_LETTERS, 0.0)
        for token, logprob in completion.logprobs[0].items():
            if (letter := token.strip()) in mass:
                mass[letter] += math.exp(logprob)
        if sum(mass.values()) < 0.5:
            likely = max(completion.logprobs[0], key=completion.logprobs[0].__getitem__)
            raise BadCompletion(
                f"the critic answered with no option: {1 - sum(mass.values()):.0%} of the probability lies outside of "
                f"A, B, C and D (most likely: {likely!r}). Use the critic mode 'votes', or another critic"
            )
        best = max(mass.values())
        weights = [(share / best) ** (1 / self.temperature) for share in mass.values()]
        chances = [weight / sum(weights) for weight in weights]
        values = tuple(VOTES.values())
        drawn = tuple(_pick(values, chances, seed.at(sample=rater).uniform("vote")) for rater in range(votes))
        expected = sum(value * chance for value, chance in zip(values, chances, strict=True))
        return Ballot(drawn, expected, completion.usage)


def critic_messages(scenario: Scenario, dialogue: Dialogue) -> list[ChatMessage]:
    """What the critic's model is asked: task and person, then the growing dialogue, the question last."""
    card = {
        "situation": scenario.situation,
        "emotion": scenario.emotion,
        "problem": scenario.problem,
        "how they meet help": scenario.persona,
    }
    system = _PROMPTS.fill("critic", card=seal({name: value for name, value in card.items() if value}))
    question = _PROMPTS.fill("critic-question", transcript=sealed_transcript(dialogue))
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def _again(question: ChatMessage) -> ChatMessage:
    return {"role": "user", "content": f"{question['content']}\n\n{_PROMPTS.text('critic-again')}"}


@lru_cache(maxsize=1024)  # most votes are the same few sentences
def parse_vote(text: str | None) -> float | None:
    """The value of a critic's answer; None unless it says which option it chooses, and does not take it back.

    An option is its letter, label or whole sentence. It is a vote if it stands first, or at the beginning of a sentence
    after a word that announces it ("Final answer: D", "I choose C"); if a sentence or line ends there, or goes on to
    explain it ("D: they know how to go on", "B, since nothing changed"); and if nothing after it names another option
    or denies this one. Thinking, and what is quoted, is no answer. So "has not been solved", "A or B", "D is wrong, A"
    and "D, but not yet" are no votes.

    >>> parse_vote("D. Yes, the seeker's issue has been solved."), parse_vote("The issue has not been solved.")
    (1.0, None)
    >>> parse_vote("They say thanks. **Final answer:** C"), parse_vote("A person like this feels better.")
    (0.5, None)
    """
    answer = _legible(split_thought(text or "")[1])
    for begin in (0, *(announced.end() for announced in _ANNOUNCED.finditer(answer))):
        if found := _OPTION.match(answer, begin):
            option = _LETTERS[found["letter"].upper()] if found["letter"] else _LEADING[found["words"].casefold()]
            rest = answer[found.end() :]
            return VOTES[option] if _stands(option, rest, goes_on=found["goes_on"] is not None) else None
    return None


def _fault(text: str | None, ending: str | None) -> str:
    """Of which kind an answer is that is no vote, and the option that stands first in it, if any: `prose solved`."""
    answer = _legible(split_thought(text or "")[1])
    kind = _UNSAID.get(ending, "prose" if answer else "empty")
    open_ = _DENIED.sub(" ", _QUOTED.sub(" ", answer))
    named = min(filter(None, (_LETTER.search(open_), _NAMED.search(open_))), key=re.Match.start, default=None)
    return f"{kind} {_LETTERS.get(named[0], named[0].casefold())}" if named else kind


def _legible(answer: str) -> str:
    """An answer without what models put around it: JSON, Markdown, LaTeX, full-width letters, runs of spaces."""
    if answer.lstrip("`json \n").startswith("{"):
        with suppress(ValueError, RecursionError):
            data = json.loads(answer.strip("`json \n"))
            said = [value for key, value in data.items() if _KEY.fullmatch(key.casefold().replace("_", " "))]
            answer = str(said[0]) if len(said) == 1 else ""
    plain = _BOXED.sub(lambda tex: "\nanswer: " if tex[0] == "\\boxed" else "", answer).translate(_MARKS)
    return re.sub(r"[^\S\n]+", " ", plain).strip(" \n>-•'")


def _stands(option: str, rest: str, *, goes_on: bool) -> bool:
    """Whether an option stands, given what is said after it; `goes_on` in the sentence that it begins."""
    own = _QUOTED.sub(" ", rest)
    sentences = [sentence.strip("()\"' ,:–—-") for sentence in re.split(r"[.!?;\n]+", own)]
    named = [name for part in (*sentences, *re.split(r"[.!?;\n,:()–—-]+", own)) if (name := _option(part))]
    letters = [_LETTERS[letter] for letter in _LETTER.findall(own)]
    agrees = _AGREES.match(own)
    undenied = _DENIED.sub(" ", own)
    claimed = _CLAIMED.match(undenied)
    felt = _FELT.get(claimed[1].lower(), claimed[1].lower()) if claimed else option
    denied = {name.lower() for pair in _DENIED.findall(own) for name in pair if name}
    hedge = _HEDGE.match(own)
    spared = hedge and hedge["other"] and option != "solved" and _DENIED.search(sentences[0])
    end = _END.search(own)
    return (
        not (goes_on and ((end and end[0] == "?") or _TOLD.match(rest)))
        and {*named, *letters} <= {option}
        and (not hedge or bool(spared))
        and not (agrees and (agrees[1].lower() == "yes") != (option == "solved"))
        and (felt == option or (felt, option) == ("better", "solved"))
        and option not in denied
        and not _EITHER.search(undenied)
        and not _TAKEN_BACK.search(own)
    )


def _option(words: str) -> str | None:
    plain = " ".join(words.casefold().split()).rstrip(".!")
    return plain if plain in VOTES else _SENTENCES.get(plain)


def _pick(values: tuple[float, ...], chances: list[float], draw: float) -> float:
    for value, chance in zip(values, chances, strict=True):
        if draw < chance:
            return value
        draw -= chance
    return values[max(range(len(chances)), key=chances.__getitem__)]


def _check_voting(mode: str, temperature: float) -> None:
    one_of("critic_mode", mode, get_args(CriticMode))
    if not 0 <= temperature < float("inf"):
        raise SpecError(f"critic_temperature must be at least 0, not {temperature!r}")
    if mode == "logprobs" and not temperature > 0:
        raise SpecError("the temperature of a critic with mode 'logprobs' must be above 0; or use mode 'votes'")


def resolve_critic(
    critic: str | Critic | Callable[..., Any],
    settings: ModelSettings | None = None,
    *,
    mode: CriticMode = "votes",
    temperature: float = 1.1,
    options: Mapping[str, Any] | None = None,
) -> Critic:
    """The critic that a string, an object or a callable stands for.

    Args:
        critic: `builtin`, or `builtin:reader`, which reads what is meant; `PROVIDER/NAME[@URL]` or `local:PATH` (a chat
            model as `LLMCritic`); `python:MODULE:NAME`
            (a Critic, a ChatModel or a callable); or such an object itself.
        settings: how chat models are called.
        mode, temperature: of a chat model that votes; checked whoever the critic is.
        options: further fields of every request to a chat model, such as `{"max_tokens": 2000, "top_p": 0.9}`.

    Raises:
        SpecError: an unknown string, an object that is neither a Critic nor callable, or a model that is known not to
            take this mode, temperature or these options.
        MissingExtra: the packages that the model needs are not installed.
    """
    _check_voting(mode, temperature)
    said = Options.of(options, "critic")
    if mode == "logprobs" and said.chair:
        raise SpecError(
            f"critic option {min(said.chair)!r}: with critic mode 'logprobs' the critic writes one token. "
            "Leave it out, or use --critic-mode votes (critic_mode='votes')"
        )

    def builtin(name: str) -> Critic:
        if name == "reader":
            from esc_env.builtin.reader.chairs import ReadingCritic

            return ReadingCritic()
        if name not in ("", "critic"):
            raise SpecError(f"no builtin critic {name!r}. {did_you_mean(name, ['builtin', 'builtin:reader'])}")
        from esc_env.builtin.critic import BuiltinCritic

        return BuiltinCritic()

    def judging(model: ChatModel, spec: Spec | None) -> Critic:
        if spec:
            heat, distribution = temperature if mode == "votes" else 1.0, mode == "logprobs"
            check_parameters(model, "critic", temperature=heat, logprobs=distribution, stop=bool(said.stop))
        return LLMCritic(model, mode, temperature, **said.chair)

    def function(thing: Callable[..., Any]) -> Critic:
        check_takes(thing, "critic", ("scenario", "dialogue"))
        return CallableCritic(thing)

    seat: Seat[Critic] = Seat("critic", "judge", builtin, judging, function, lambda thing: isinstance(thing, Critic))
    return seat.take(critic, settings, said)
