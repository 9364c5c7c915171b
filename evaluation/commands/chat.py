"""`esc chat`."""

from __future__ import annotations

import json
import secrets
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from esc_env.cli_options import AgentOptions, ApiKeyEnv, Budget, Critic, Persona, Seeker, Temperature, grouped
from esc_env.errors import ModelError, ScenarioError, SupporterFailure
from esc_env.escaping import safe
from esc_env.evaluation.commands.serving import Browser, Port, serve
from esc_env.secrets import struck

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from esc_env.conversation import Chairs
    from esc_env.dialogue import Dialogue
    from esc_env.evaluation.view.talks import Talk
    from esc_env.protocols import Agent
    from esc_env.scenarios import Scenario

__all__ = ["chat"]

NO_HELP = "This is a research program, no help in need: in danger, call your local emergency number."


@grouped
def chat(
    *,
    side: Annotated[Literal["supporter", "seeker"], typer.Option("--as", help="Which side you take.")] = "supporter",
    agent: Annotated[
        str, typer.Option(help="Who supports you, with --as seeker; as for `esc eval`.")
    ] = "builtin:skilled",
    temperature: Temperature = 0.0,
    agent_options: AgentOptions,
    scenarios: Annotated[
        str, typer.Option("--scenarios", "-s", help="Whom you may meet: builtin:test, or a file.")
    ] = "builtin:test",
    scenario: Annotated[str | None, typer.Option(help="Id of the one you meet. Default: one drawn by --seed.")] = None,
    seeker: Seeker,
    critic: Critic,
    persona: Persona = None,
    budget: Budget = None,
    api_key_env: ApiKeyEnv = None,
    max_turns: Annotated[int, typer.Option(min=1, help="T: how often you may speak.")] = 8,
    seed: Annotated[int | None, typer.Option(help="Repeats a conversation. Default: another one every time.")] = None,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="Show the critic's score and the seeker's hidden state.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Append the transcript to this JSONL file (`esc scenarios FILE` reads it).")
    ] = None,
    web: Annotated[
        bool,
        typer.Option("--web", help="Talk in the browser, on this machine alone, until Ctrl-C. Needs the extra 'web'."),
    ] = False,
    port: Port = 8767,
    browser: Browser = False,
) -> None:
    """Talk with a simulated seeker, or be one.

    You are the supporter, or with --as seeker the one who is supported by an agent. Ctrl-D or /quit ends it. With --web
    the same conversation is held in the browser, where several people, or windows, each have their own; the critic's
    verdicts and the seeker's hidden state are behind switches there, which --reveal turns on.
    """
    from rich.console import Console

    from esc_env.agents.spec import resolve_agent
    from esc_env.chairs.critics import resolve_critic
    from esc_env.chairs.seekers import resolve_seeker
    from esc_env.conversation import Chairs
    from esc_env.models import ModelSettings
    from esc_env.rules import Rules

    if reveal and side == "seeker":
        raise typer.BadParameter("--reveal shows the simulated seeker's state; with --as seeker there is none")
    if web and side == "seeker":
        raise typer.BadParameter("--web is for talking with a simulated seeker; leave --web or --as seeker out")
    if save is not None:
        _check_savable(save)  # what cannot be written is told before anybody has typed a word
    console = Console(highlight=False)
    number = secrets.randbelow(2**31) if seed is None else seed
    settings = ModelSettings(budget=budget, api_key_env=api_key_env)
    if side == "seeker":
        supporter = resolve_agent(agent, settings, temperature=temperature, options=agent_options)
        held = _be_supported(console, supporter, number)
    else:
        chairs = Chairs(
            resolve_seeker(
                seeker["seeker"], settings, temperature=seeker["seeker_temperature"], options=seeker["seeker_options"]
            ),
            resolve_critic(
                critic["critic"], settings, mode=critic["critic_mode"], temperature=critic["critic_temperature"],
                options=critic["critic_options"],
            ),
            Rules(max_turns=max_turns),
        )  # fmt: skip
        if web:
            _support_in_browser(scenarios, scenario, chairs, persona, seed, reveal, save, port, browser)
            return
        held = _support(console, scenarios, scenario, chairs, persona, number, reveal)
    if save is not None and held is not None:
        _append(save, *held)
        typer.echo(f"Saved to {save}")


def _support(
    console: Console, scenarios: str, wanted: str | None, chairs: Chairs, persona: str | None, seed: int, reveal: bool
) -> tuple[Scenario, Dialogue]:
    from esc_env.background import run
    from esc_env.conversation import begin, exchange
    from esc_env.data.datasets import load_scenarios
    from esc_env.protocols import Reply, RevealingSeeker, Verdict
    from esc_env.rendering import show
    from esc_env.seeds import Seed, episode_seed

    chosen = load_scenarios(scenarios)
    person = chosen.by_id(wanted) if wanted else chosen.sample(1, seed)[0]
    person = person.with_persona(persona) if persona else person
    name = Seed(episode_seed(seed, person.id, 0))
    seeker = chairs.seeker
    if reveal and not isinstance(seeker, RevealingSeeker):
        raise ScenarioError("this seeker does not show its state; leave --reveal out")
    dialogue, _ = run(begin(person, chairs, seed=name))
    verdicts: list[Verdict] = []
    shown = show(console, dialogue)
    ending = None
    while ending is None:
        said = _read()
        if said is None:
            break
        turn = len(verdicts) + 1
        done = run(exchange(person, dialogue, Reply(said), chairs, turn=turn, seed=name))
        dialogue = done.dialogue
        verdicts.append(done.verdict)
        if done.stop:
            ending = f"Solved in {turn} turns." if done.verdict.solved else f"Not solved within {turn} turns."
        heard = shown + 1  # what was typed stands there already
        shown = show(console, dialogue, verdicts if reveal else (), shown=heard, ending=ending)
        if reveal and isinstance(seeker, RevealingSeeker):
            _show_state(console, seeker.reveal(person, dialogue, seed=name))
    typer.echo(f"\nTo meet the same person again, type: {_again(scenarios, person, seed, persona)}")
    return person, dialogue


def _again(scenarios: str, person: Scenario, seed: int, persona: str | None) -> str:
    words = ["esc", "chat", "--scenarios", scenarios, "--scenario", person.id, "--seed", str(seed)]
    return shlex.join([*words, *(["--persona", persona] if persona else [])])


def _support_in_browser(
    scenarios: str,
    wanted: str | None,
    chairs: Chairs,
    persona: str | None,
    seed: int | None,
    reveal: bool,
    save: Path | None,
    port: int,
    browser: bool,
) -> None:
    from esc_env.data.datasets import load_scenarios
    from esc_env.evaluation.view.talks import Talks
    from esc_env.scenarios import ScenarioSet

    people = load_scenarios(scenarios)
    people = ScenarioSet.of(people.name, [people.by_id(wanted)]) if wanted else people
    people = people.with_persona(persona) if persona else people

    def keep(person: Scenario, dialogue: Dialogue) -> None:
        if save is not None:
            _append(save, person, dialogue)

    def again(talk: Talk) -> str:
        assert talk.episode is not None
        return _again(scenarios, talk.episode.scenario, talk.seed, persona)

    def app(token: str | None, stopping: Callable[[], bool]) -> Any:
        from esc_env.evaluation.view.chat import chat

        return chat(talks, NO_HELP, again, stopping)

    talks = Talks(people, chairs, seed=seed, revealing=reveal, keep=keep)
    try:
        serve(app, "esc chat", host="127.0.0.1", port=port, browser=browser)
    finally:
        talks.close()


def _show_state(console: Console, state: Mapping[str, Any]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    for name, value in state.items():
        console.print(Padding(Text(safe(f"{name}: {value}"), style="dim"), (0, 0, 0, 11)))


def _be_supported(console: Console, supporter: Agent, seed: int) -> tuple[Scenario, Dialogue] | None:
    from esc_env.background import run
    from esc_env.conversation import as_message
    from esc_env.dialogue import Dialogue, Message
    from esc_env.protocols import Reply
    from esc_env.rendering import show
    from esc_env.scenarios import Scenario
    from esc_env.seeds import Seed, episode_seed

    name = Seed(episode_seed(seed, "chat", 0), role="supporter")
    typer.echo(NO_HELP)
    typer.echo("Say what troubles you.")
    dialogue = Dialogue()
    while (said := _read()) is not None:
        dialogue = dialogue.then(Message("seeker", said))
        try:
            reply = run(supporter.respond(dialogue, seed=name.at(turn=dialogue.turns + 1)))
        except ModelError:
            raise
        except Exception as error:
            raise SupporterFailure(f"{type(supporter).__name__} raised {type(error).__name__}: {error}") from error
        if not isinstance(reply, Reply):
            raise SupporterFailure(f"{type(supporter).__name__} returned {type(reply).__name__}, not a Reply")
        dialogue = dialogue.then(as_message(reply))
        show(console, dialogue, shown=len(dialogue) - 1)
    if not dialogue.messages:
        return None
    return Scenario("chat", dialogue.messages[0].content), dialogue


def _read() -> str | None:
    """A line that the person typed; None when they are done."""
    while True:
        try:
            said = input("You        ").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return None
        if said == "/quit":
            return None
        if said:
            return said.encode(errors="replace").decode()
        if sys.stdin.isatty():
            typer.echo("(type something, or /quit)")


def _check_savable(path: Path) -> None:
    """Raise unless the file can be written, and is new or holds nothing but what `--save` writes."""
    from esc_env.data.readers import read_file

    path.open("a", encoding="utf-8").close()
    if path.stat().st_size and (layout := read_file(path).format) != "plain":
        raise ScenarioError(f"{path} is in the {layout} layout, and --save writes the plain one. Give another file")


def _append(path: Path, person: Scenario, dialogue: Dialogue) -> None:
    """Add the conversation as a line of esc-env's plain scenario format."""
    from dataclasses import replace
    from hashlib import blake2b

    mark = blake2b(dialogue.transcript().encode(), digest_size=4).hexdigest()
    held = replace(person, id=f"{person.id}-{mark}", dialogue=dialogue)
    there = path.read_bytes() if path.exists() else b""  # it may have been moved away meanwhile
    torn = there and not there.endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" if torn else "")
        file.write(json.dumps(struck(held.to_json(dialogue=True)), ensure_ascii=False) + "\n")
