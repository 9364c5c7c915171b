"""Seekers: from a string, an object or a callable to something that plays the person with the problem."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from esc_env.background import call
from esc_env.chairs.seat import Seat
from esc_env.dialogue import CONTROL, NAMES, ChatMessage, Dialogue
from esc_env.errors import BadCompletion, SpecError, did_you_mean
from esc_env.identity import code_digest, name_of
from esc_env.models import PROBE, ModelSettings, Options, check_model, check_parameters
from esc_env.models.options import told_apart
from esc_env.prompts import Prompts, seal, sealed_transcript, split_answer
from esc_env.protocols import ChatModel, Reply, Request, Seeker, Usage
from esc_env.scenarios import PERSONAS, Scenario
from esc_env.seeds import Seed
from esc_env.specs import Spec, check_takes

__all__ = ["CallableSeeker", "LLMSeeker", "resolve_seeker", "role_break"]

_PROMPTS = Prompts(Path(__file__).parents[1] / "prompts")
_USED = ("seeker", "seeker-dialogue", "seeker-opening", "seeker-again", *(f"persona-{name}" for name in PERSONAS))

ATTEMPTS = 3
"""How often a seeker is asked for one message before its failure is an error. Ours."""

_COUNSELS = re.compile(
    r"""\bhow\ (?:can|may|could)\ i\ (?:best\ )?(?:help|support|assist)\ you
      | \bi(?:'d|'ll|\ would|\ will)\ be\ (?:more\ than\ )?(?:happy|glad)\ to\ (?:help|assist|listen|support)
      | \b(?:anything|know\ (?:what|how))\ (?:else\ )?(?:that\ )?i\ can
        \ (?:do\ (?:for|to\ (?:help|support))\ you|(?:assist|help|support)\b)
      | \bi(?:'m|\ am)\ (?:always\ |right\ )?here\ (?:for\ you\b|if\ you\b|to\ (?:listen|support|help\ you)\b)
      | \bfeel\ free\ to\ (?:share|tell|express|talk|let)\b | \bthis\ is\ a\ (?:\w+\ )?safe\ (?:space|place)\b
      | \bdon't\ hesitate\ to\b | \bwhat(?:'s|\ is)\ on\ your\ mind\b
      | \bwhat\ (?:brings|brought)\ you\ (?:here|in)\b
      | \b(?:it|that)\ (?:really\ )?(?:sounds|seems)\ like\ you(?:'re|'ve|\ are|\ have)\ (?:\w+\ )?
        (?:feeling|going\ through|dealing\ with|been|carrying|struggling|under)
      | \b(?:that|this|it)\ (?:must\ (?:be|have\ been|feel)|sounds)\ (?:so|really|incredibly|very|extremely|truly)
        \ (?:\w+\ )?(?:hard|difficult|tough|painful|exhausting|stressful|overwhelming)\b(?!\ to\b)
      | \bwould\ you\ like\ to\ (?:talk|tell\ me|share)\b
      | \b(?:can|could|would)\ you\ (?:please\ )?tell\ me\ (?:a\ )?(?:little\ |bit\ )*more\ about
        \ (?:what|your|that|the|this)
      | \bhow\ (?:does|do)\ (?:that|this|it|those)\ (?:\w+\ )?make\ you\ feel
      | \bhow\ (?:are|were|long\ have)\ you\ (?:been\ )?(?:feeling|felt)\b
      | \bhave\ you\ (?:ever\ )?(?:considered|thought\ (?:about|of)|tried)
        \ (?:talking|speaking|reaching|seeking|seeing)\b
      | \byour\ (?:feelings|emotions|pain)\ (?:are|is)\ (?:\w+\ )?(?:valid|understandable|normal)\b
      | \byou\ deserve\b | \byou(?:'re|\ are)\ not\ alone\b
      | \bit(?:'s|\ is)\ (?:\w+\ )?(?:understandable|normal|natural|okay|ok)
        \ (?:that\ you|to\ (?:feel|take)|for\ you\ to)
      | \bit(?:'s|\ is)\ (?:\w+\ )?important\ (?:for\ you\ )?to
        \ (?:take\ care|remember|acknowledge|be\ kind|give\ yourself)
      | \bit\ (?:might|may|could|can)\ be\ (?:helpful|beneficial|useful)
        \ (?:for\ you\ to|to\ (?:make|set|write|break|consider))\b
      | \b(?:one|something|another)\ (?:thing\ )?(?:that\ )?you\ (?:could|can|might)\ try\b
      | \bi(?:'d|\ would)?\ (?:encourage|suggest|recommend|urge)\ (?:that\ )?you\b
      | \bbe\ (?:gentle|kind|patient)\ (?:with|to)\ yourself\b | \btake\ care\ of\ yourself\b
      | \bdo\ you\ have\ (?:any\ ?(?:one|body)|someone|people|friends)\ (?:that\ |who\ )?you\b
      | \bdo\ you\ have\ a\ support\b
      | \bwhat\ support\ do\ you\b | \bwhat\ (?:are\ some\ things|usually)\b[^.!?\n]{0,30}\ you\b
      | \bwhat\ (?:do\ you\ think\ )?(?:would|might|could)\ help\ you\b(?!,?\ if\b)
      | \bi(?:'m|\ am)\ (?:so\ |very\ |really\ |truly\ )*sorry\ (?:to\ hear\ )?(?:that\ )?you
        (?:'re|'ve|\ are|\ have)\ (?:\w+\ )?(?:feeling|going\ through|dealing|struggling|experiencing|been)
      | \b(?:thank\ you|thanks)\ for\ (?:opening\ up|trusting\ me
        |sharing\ (?:this|that|your\ \w+)\ with\ me|sharing,?\ (?:that|this|it)\ (?:sounds|must))
      | \bi\ (?:really\ )?appreciate\ (?:you|your)\ (?:trust|sharing\ (?:this|that)\ with\ me|open|courage)
      | \bi(?:'m|\ am)\ (?:so\ |very\ |really\ |truly\ )*(?:glad|happy|proud)\ (?:that\ |of\ )?you
        \ (?:reached|shared|told|opened|decided\ to|for\ (?:telling|sharing|reaching|opening))
      | \bas\ your\ (?:therapist|counsell?or|supporter)\b
      | \bif\ you(?:'re|\ are)\ (?:in|having)\ (?:a\ )?(?:\w+\ )?(?:crisis|danger|suicidal)\b
      | \b(?:call|contact|dial|text)\ (?:988|911|your\ local\ emergency|an?\ (?:\w+\ )?(?:crisis|suicide|hotline))""",
    re.IGNORECASE | re.VERBOSE,
)
"""What helpers say and seekers do not, unless they tell what somebody said. `benchmarks/seeker_breaks.py` counts."""
_REPORTS = re.compile(
    r"\b(?:sa(?:y|ys|id|ying)|tell|tells|told|ask|asks|asked|goes|keeps?|wrote|heard|think|thought|wonder(?:ed)?)\b|:",
    re.IGNORECASE,
)
"""What makes somebody else's words of those that follow in the sentence."""
_SENTENCE = re.compile(r"(?<=[.!?\n])\s+")
_SPOKEN = re.compile(r'"[^"\n]*"')
_ENDINGS = {"length": "it was cut off", "refusal": "it was a refusal", "content_filter": "a content filter withheld it"}
_NEEDS = {"listen": "to be understood", "plan": "a next step", "both": "to be understood, then a next step"}
_LABEL = re.compile(
    rf"^(?:[^\S\n]|[\-*_#>\[(])*(?:{'|'.join(NAMES.values())}|system|ai|user|human|用户)[*_\])]*\s*[:：]",
    re.IGNORECASE | re.MULTILINE,
)
_SCRIPT = re.compile(
    r"""[.!?\]\n]\s?\[?(?:supporter|therapist|counsell?or|assistant)(?::|\ (?:responds|replies|says)\b)
      | (?:\A|\n)\s?(?:me|you):\ [^\n]*\n\s*(?:me|you):\ """,
    re.IGNORECASE | re.VERBOSE,
)
_NO_PERSON = re.compile(
    r"""\b(?:as|being|i(?:'m|\ am))\ (?:just\ |only\ )?an?
        \ (?:ai(?:\ (?:language\ )?(?:model|assistant|chatbot|system))?
          |artificial\ intelligence|(?:large\ )?language\ model|chat\ ?bot|(?:virtual|ai)\ assistant)\b
        (?=\s*+(?:[,.;!?]|\Z|(?:i|so|and|but|or|it|my)\b))
      | \bi\ was\ (?:trained|created|developed|designed|built)\ (?:by\ (?:openai|anthropic|google|meta)
        |to\ be\ helpful)\b
      | \bi\ (?:don't|do\ not)\ have\ (?:(?:personal|human)\ (?:feelings|emotions|experiences)|feelings\ or\ a\b)
      | \bmy\ (?:training\ data|guidelines|programming|knowledge\ cutoff)\b | \bcontent\ policy\b
      | \b(?:i\ (?:can't|cannot|can\ not|won't|will\ not)|i(?:'m|\ am)\ (?:unable|not\ able)\ to)\ (?:be\ able\ to\ )?
        (?:(?:help|assist)(?:\ you)?\ with\ (?:(?:this|that|your|such)\ request|(?:this|that)\s*+(?:[.,!?]|\Z))
          | comply\b | role-?play\b | fulfill?\b
          | (?:generate|create|produce|write)\ (?:\w+\ )?content\b | engage\ (?:in|with)\ (?:this|that|such)\b
          | continue\ (?:with\ )?th(?:is|e)\ (?:conversation|role|dialogue|request|scenario)
          | provide\ (?:\w+\ )?(?:therapy|advice|assistance|support|content|help)\b)
      | \b(?:these|my)\ instructions\b | \bsystem\ prompt\b
      | \b(?:stay|remain|staying|remaining)\ in\ character\b | \bin\ (?:this|the)\ (?:role-?play|simulation)\b
      | \b(?:according\ to|based\ on|given)\ (?:the|my)\ (?:persona|card|scenario|prompt|profile)\b
      | \bthe\ (?:scenario|prompt|persona|profile|role-?play|card)\ (?:asks|states|gives|requires|wants|instructs)\b
      | \bthe\ (?:scenario|prompt|persona)\ (?:says|said|is\ to)\b
      | \bi(?:'m|\ am)\ (?:playing|role-?playing|portraying)\ (?:an?|the)\ (?:person|seeker|man|woman|character|user)\b
      | \bkeep\ (?:my|the|this)\ (?:message|response|reply|answer)\b | \b(?:this|the)\ person's\ next\ message\b
      | \bthe\ next\ message\b
      | \bthe\ (?:user|supporter)
        (?:'s\b|\ (?:wants|asks|asked|said|says|just|is|has|seems|offers|offered|for\ (?:his|her|their))\b)
      | \bthe\ assistant\ (?:asks|asked|wants|just)\b | \bthe\ seeker\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_ACTS = (
    r"(?:sighs|pauses|shrugs|wipes|takes|nods|stays|smiles|hesitates|cries|sobs|laughs|chuckles|stares|glances|fidgets"
    r"|shakes|swallows|sniffles|whispers|leans|sits|trails|breathes|bites|types|responds|replies|looks(?!\ like\b))"
)
_NARRATES = re.compile(
    rf"""[*_(\[]\s?(?:(?:he|she|they)\ )?(?:[a-z]{{1,15}}ly\ )?
        (?:{_ACTS}\b|(?:voice|hands|eyes)\ [a-z]{{1,15}}ing\b|long\ pause|silence)
      | \A(?:(?:the|this)\ (?:man|woman|person|individual|speaker|character)|he|she|they)\ (?:[a-z]{{1,15}}ly\ )?
        (?: {_ACTS}\ ?(?:[,.]|\ (?:down|away|deeply)\b) | (?:feels|expresses)\ a\ (?:mix|sense)\b )
      | \b(?:as|while)\ (?:he|she|they)\ (?:types|replies|responds)\b
      | \bin\ (?:this|the|his|her)\ (?:next\ )?(?:message|reply|response),?\ (?:the|he|she)\b
      | \A(?:here(?:'s|\ is)\ (?:the|my|a)\ (?:next\ |first\ )?)?(?:message|response|reply)\b[^.!?\n:]{{0,30}}:\ """,
    re.IGNORECASE | re.VERBOSE,
)
"""What is told of a person, and not said by one: actions between marks too, which nobody types in a chat."""


@dataclass(frozen=True)
class CallableSeeker:
    """Somebody's `function(scenario, dialogue) -> str` (sync or async) as a Seeker."""

    function: Callable[..., Any]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The function's name and a digest of its code, so that a changed function is another seeker."""
        return {"name": name_of(self.function), "code": code_digest(self.function)}

    async def reply(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """Call it. Raises TypeError when it returns neither a str nor a Reply."""
        return Reply.parse(await call(self.function, scenario, dialogue), "a seeker")


@dataclass(frozen=True)
class LLMSeeker:
    """A chat model that plays the person of a scenario.

    It is told the scenario and the persona, and gets the dialogue as sealed JSON, so that no text in it can forge a
    turn. An answer that breaks the role (see `role_break`), or was cut off, is asked for again under another seed.
    Prompts are `esc_env/prompts/seeker*.txt` and `persona-*.txt`. One request a message, unless asked again.

    Attributes:
        model: any ChatModel.
        temperature: 0.7, ours: the paper gives none for the seeker.
        max_tokens: longest message, thinking of the model included.
        stop: strings that end a message.
    """

    model: ChatModel
    temperature: float = 0.7
    max_tokens: int = 512
    stop: tuple[str, ...] = ()

    @property
    def deterministic(self) -> bool:
        """Whether the model says that it answers the same request with the same text."""
        return bool(getattr(self.model, "deterministic", False))

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model, decoding and a hash of the prompts."""
        return {
            "name": "llm",
            "model": dict(self.model.identity),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "prompts": _PROMPTS.digest(_USED),
            **told_apart(self.stop),
        }

    async def check(self, votes: int = 1) -> None:
        """Ask the model for a word, just as it will be asked. Raises SpecError or a `ModelError` where that fails."""
        await check_model(self.model, "seeker", self._request(PROBE.messages, 0))

    async def reply(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The person's next message, or the first one of an empty dialogue.

        Raises:
            BadCompletion: the model broke its role, or was cut off, three times.
            ModelError: the model could not be reached.
        """
        chat = seeker_messages(scenario, dialogue)
        instructions = _PROMPTS.fill("seeker", card="", persona=_PROMPTS.text(f"persona-{scenario.persona}"))
        usage = Usage()
        fault = ""
        for attempt in range(ATTEMPTS):
            asked = chat if not fault else [*chat[:-1], _again(chat[-1], fault)]
            completion = await self.model.complete(self._request(asked, seed.at(attempt=attempt).value))
            usage += completion.usage
            finish = completion.finish_reasons[0] if completion.finish_reasons else None
            thought, said = _unwrapped((completion.texts[0] if completion.texts else None) or "")
            fault = _ENDINGS.get(finish or "", "") or role_break(said, instructions)
            if not fault:
                return Reply(said, thought, usage=usage, finish_reason=finish)
        raise BadCompletion(
            f"the seeker's model gave no usable message in {ATTEMPTS} attempts: {fault}. "
            "Run the same command again, or choose a stronger model with --seeker"
        )

    def _request(self, chat: Sequence[ChatMessage], seed: int) -> Request:
        return Request(chat, temperature=self.temperature, max_tokens=self.max_tokens, seed=seed, stop=self.stop)


def seeker_messages(scenario: Scenario, dialogue: Dialogue) -> list[ChatMessage]:
    """What the seeker's model is asked: role and person, then the growing dialogue, the question last."""
    persona = _PROMPTS.text(f"persona-{scenario.persona}")
    system = _PROMPTS.fill("seeker", card=_card(scenario), persona=persona)
    if dialogue.messages:
        question = _PROMPTS.fill("seeker-dialogue", transcript=sealed_transcript(dialogue))
    else:
        question = _PROMPTS.text("seeker-opening")
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def role_break(said: str, instructions: str = "") -> str:
    """What is wrong with a seeker's message, in a few words; "" when nothing is.

    It is empty; speaks for the supporter too; counsels; speaks as a program, refuses, or speaks of its task; tells of
    the person instead of speaking; holds markup of a chat template; or repeats eight words in a row of `instructions`.
    Word lists, made to spare people, who also tell what others said: they miss what is put in other words
    (docs/models.md has the counts), and that is left to the model that plays.
    """
    plain = said.replace("’", "'").replace("“", '"').replace("”", '"')
    if not said.strip():
        return "it was empty"
    if _LABEL.search(said) or _SCRIPT.search(said) or said.lstrip().startswith(('{"', '[{"')):
        return "it wrote turns instead of one message"
    if CONTROL.search(said):
        return "it held markup of a chat template"
    own = _SPOKEN.sub(" ", plain)
    if _NO_PERSON.search(own) or _shares_words(plain, instructions):
        return "it spoke of its instructions"
    if _NARRATES.search(own):
        return "it told of the person instead of speaking"
    for sentence in _SENTENCE.split(own):
        found = _COUNSELS.search(sentence)
        if found and not _REPORTS.search(sentence, 0, found.start()):
            return "it spoke as a helper"
    return ""


def _card(scenario: Scenario) -> str:
    """What the seeker knows about itself, as sealed JSON."""
    card = {
        "situation": scenario.situation,
        "emotion": scenario.emotion,
        "problem": scenario.problem,
        "distress from 1 to 5": scenario.intensity,
        "who": scenario.profile,
        "facts, told only when drawn out": list(scenario.facts),
        "what would help": list(scenario.helps),
        "what would hurt": list(scenario.hurts),
        "needs most": _NEEDS[scenario.need],
    }
    return seal({name: value for name, value in card.items() if value not in (None, "", [])})


def _again(question: ChatMessage, fault: str) -> ChatMessage:
    return {"role": "user", "content": f"{question['content']}\n\n{_PROMPTS.fill('seeker-again', fault=fault)}"}


def _unwrapped(text: str) -> tuple[str | None, str]:
    """Thought and message without what models wrap around it: its JSON form, the own label, quotation marks."""
    thought, text = split_answer("seeker", text)
    for opening, closing in (('"', '"'), ("“", "”")):
        if len(text) > 2 and text[0] == opening and text[-1] == closing and not set(text[1:-1]) & {opening, closing}:
            text = text[1:-1]
    return thought, text.strip()


def _shares_words(said: str, instructions: str, run: int = 8) -> bool:
    words, known = _words(said).split(), _words(instructions)
    return any(" ".join(words[i : i + run]) in known for i in range(len(words) - run + 1))


@lru_cache(maxsize=64)  # the same few instructions at every message
def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.replace("’", "'").casefold()))


def resolve_seeker(
    seeker: str | Seeker | Callable[..., Any],
    settings: ModelSettings | None = None,
    *,
    temperature: float = 0.7,
    options: Mapping[str, Any] | None = None,
) -> Seeker:
    """The seeker that a string, an object or a callable stands for.

    Args:
        seeker: `builtin`, or `builtin:reader`, which reads what is meant; `PROVIDER/NAME[@URL]` or `local:PATH` (a chat
            model as `LLMSeeker`); `python:MODULE:NAME`
            (a Seeker, a ChatModel or a callable); or such an object itself.
        settings: how chat models are called.
        temperature: of a chat model.
        options: further fields of every request to a chat model, such as `{"max_tokens": 2000, "top_p": 0.9}`.

    Raises:
        SpecError: an unknown string, an object that is neither a Seeker nor callable, or a model that is known not to
            take this temperature or these options.
        MissingExtra: the packages that the model needs are not installed.
    """
    said = Options.of(options, "seeker")

    def builtin(name: str) -> Seeker:
        if name == "reader":
            from esc_env.builtin.reader.chairs import ReadingSeeker

            return ReadingSeeker()
        if name not in ("", "seeker"):
            raise SpecError(f"no builtin seeker {name!r}. {did_you_mean(name, ['builtin', 'builtin:reader'])}")
        from esc_env.builtin.seeker import BuiltinSeeker

        return BuiltinSeeker()

    def speaking(model: ChatModel, spec: Spec | None) -> Seeker:
        if spec:
            check_parameters(model, "seeker", temperature=temperature, stop=bool(said.stop))
        return LLMSeeker(model, temperature, **said.chair)

    def function(thing: Callable[..., Any]) -> Seeker:
        check_takes(thing, "seeker", ("scenario", "dialogue"))
        return CallableSeeker(thing)

    seat: Seat[Seeker] = Seat("seeker", "reply", builtin, speaking, function, lambda thing: isinstance(thing, Seeker))
    return seat.take(seeker, settings, said)
