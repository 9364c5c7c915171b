"""The command line: what a person types, sees, and is told when it goes wrong."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
from conftest import bank

from esc_env.cli import main

PEOPLE = 3


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with a scenario file and somebody's agents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESC_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(s.to_json()) + "\n" for s in bank(PEOPLE)))
    (tmp_path / "cli_agents.py").write_text(
        "def mine(messages): return 'What happened then?'\n"
        "def raises(messages): raise ValueError('my \\x1b[31mbug')\n"
        "def foreign(messages): raise ValueError('\\u4f60 \\u2212 \\u00e9 \\udcff')\n"
        "def seeker_fails(scenario, dialogue): raise OSError('no network')\n"
    )
    yield tmp_path
    sys.modules.pop("cli_agents", None)


@pytest.fixture
def esc(here, capsys):
    """Type a command: (exit code, stdout, stderr)."""

    def type_(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return type_


# --- eval -----------------------------------------------------------------------------------------


def test_eval_prints_a_table_and_leaves_a_run(esc, here):
    code, out, err = esc("eval", "--agent", "python:cli_agents:mine", "--scenarios", "people.jsonl", "--out", "run")
    assert (code, err) == (0, "")
    for word in ("python:cli_agents:mine", "SR", "95 %", "of all", "AT", "score", "ended", "run/report.html"):
        assert word in out
    assert sorted(path.name for path in (here / "run").iterdir() if path.name[0] != ".") == [
        "report-0001.html", "report.html", "report.json", "run.json", "scenarios.jsonl", "timing.jsonl",
        "trajectories.jsonl",
    ]  # fmt: skip


def test_a_complete_run_says_so_and_prints_its_table(esc):
    command = ("eval", "--agent", "builtin:silent", "--scenarios", "people.jsonl", "--out", "run")
    _, first, _ = esc(*command)
    code, second, _ = esc(*command)
    assert code == 0
    assert "was complete; nothing was run" in second
    assert first.splitlines()[:6] == second.splitlines()[:6]
    _, third, _ = esc(*command, "--fresh")
    assert "was complete" not in third


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_a_time_limit_that_is_none_is_one_line(esc, seconds):
    code, _, err = esc("eval", "--agent", "builtin:silent", "--scenarios", "people.jsonl", "--time-limit", seconds)
    assert code == 1
    assert err.startswith("esc: time_limit must be a number of seconds above 0")


@pytest.mark.parametrize(
    "record",
    [
        {"player": "p", "history": [], "emo_point": 5, "task": "t"},
        {"0": {"fluency": 3, "empathic": 2}},
        {"0": ["AI assistant: Hi"]},
        {"kind": "trajectory"},
    ],
)
def test_a_file_that_holds_no_scenarios_is_refused_without_naming_a_command_that_is_none(esc, here, record):
    (here / "other.json").write_text(json.dumps(record))
    _, known, _ = esc("--help")
    code, _, err = esc("scenarios", "other.json")
    assert code == 1
    assert "not scenarios" in err
    for command in re.findall(r"`esc (\w+)", err):
        assert f"  {command} " in known


def test_a_misspelt_split_is_told_in_whole_sentences(esc):
    _, _, err = esc("eval", "--scenarios", "builtin:tset")
    assert "unknown split 'tset'. Did you mean 'builtin:test'" in err


def test_a_misspelt_field_is_told_in_whole_sentences(esc, here):
    (here / "mine.jsonl").write_text('{"id": "a", "situation": "x", "fatcs": []}')
    _, _, err = esc("scenarios", "mine.jsonl")
    assert err.endswith("record 1: unknown field 'fatcs'. Did you mean 'facts'?\n")


def test_without_agents_all_builtin_ones_run(esc, here):
    code, out, _ = esc("eval", "--scenarios", "people.jsonl", "--limit", "1", "--max-turns", "2", "--out", "all")
    assert code == 0
    for name in ("silent", "template", "advice", "parrot", "skilled", "random-strategy"):
        assert f"builtin:{name}" in out
        assert (here / "all" / f"builtin-{name}--people.jsonl" / "report.json").exists()


def test_agents_and_scenarios_repeat(esc, here):
    (here / "others.jsonl").write_text("".join(json.dumps(s.to_json()) + "\n" for s in bank(1)))
    agents, sources = ("-a", "builtin:silent", "-a", "builtin:parrot"), ("-s", "people.jsonl", "-s", "others.jsonl")
    code, out, _ = esc("eval", *agents, *sources, "--out", "all")
    assert code == 0
    assert out.count("SR") == 2
    assert len(list((here / "all").iterdir())) == 4


def test_who_is_chosen_and_who_is_left_out_are_two_runs(esc, here):
    chosen, others = ("builtin:test?emotion=anger", "builtin:test?emotion!=anger")
    code, out, err = esc("eval", "-a", "builtin:silent", "-s", chosen, "-s", others, "--limit", "1", "--out", "runs")
    assert (code, err) == (0, "")
    assert chosen in out
    assert others in out
    assert len(list((here / "runs").iterdir())) == 2


def test_a_supporter_that_raises_everywhere_is_shown_and_no_reason_to_fail(esc):
    code, out, _ = esc("eval", "--agent", "python:cli_agents:raises", "--scenarios", "people.jsonl", "--out", "run")
    assert code == 0
    assert f"failed in {PEOPLE} of {PEOPLE} conversations by itself" in out
    assert f"{PEOPLE} × supporter: turn 1: the agent raised ValueError: my" in out
    assert "\x1b" not in out


def test_a_run_with_errors_fails_and_says_what_completes_it(esc):
    code, out, _ = esc("eval", "--agent", "builtin:silent", "--scenarios", "people.jsonl", "--out", "run",
                       "--seeker", "python:cli_agents:seeker_fails")  # fmt: skip
    assert code == 1
    assert f"{PEOPLE} × seeker: OSError: no network" in out
    assert "Solved: 0.0 % of all, – of the 0 with an outcome. The same command goes on where they broke off" in out
    assert "–" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("eval", "--agent", "builtin:skiled"), "Did you mean 'builtin:skilled'"),
        (("eval", "--agent", "gpt-4o"), "'gpt-4o' names nothing. Write"),
        (("eval", "--agent", "python:cli_agents:mien"), "Did you mean 'mine'?"),
        (("eval", "--scenarios", "nowhere.jsonl"), "nowhere.jsonl"),
        (("eval", "--scenarios", "builtin:tset"), "builtin:test"),
        (("eval", "--scenarios", "people.jsonl", "--persona", "grumpy"), "unknown persona 'grumpy'"),
        (("eval", "--scenarios", "people.jsonl", "--out", "people.jsonl"), "people.jsonl"),
        (("eval", "--scenarios", "people.jsonl", "--out", ".", "--fresh"), "--fresh leaves it alone"),
        (("leaderboard", "nowhere"), "no run here"),
        (("scenarios", "nowhere"), "nowhere"),
        (("chat", "--scenarios", "people.jsonl", "--scenario", "person-9"), "person-"),
        (("chat", "--save", "no/such/folder/file"), "no/such/folder/file"),
    ],
)
def test_what_goes_wrong_is_one_line_and_never_a_traceback(esc, arguments, told):
    options = ("--agent", "builtin:silent") if arguments[0] == "eval" and "--agent" not in arguments else ()
    code, out, err = esc(*arguments, *options)
    assert code == 1
    assert out == ""
    assert err.startswith("esc: ")
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", ["--trials", "--limit", "--concurrency", "--max-turns"])
def test_numbers_out_of_range_are_refused(esc, option):
    code, _, err = esc("eval", option, "0")
    assert code == 2
    assert option in err


def test_the_progress_bar_is_for_terminals_or_on_request(esc):
    command = ("eval", "--agent", "builtin:silent", "--scenarios", "people.jsonl", "--out", "run")
    assert esc(*command)[2] == ""
    assert f"{PEOPLE}/{PEOPLE}" in esc(*command, "--fresh", "--progress")[2]


# --- consoles that cannot show every character ------------------------------------------------------


@pytest.fixture
def console(esc, monkeypatch, capsys):
    """Type a command at a console of an encoding: (exit code, what it shows)."""

    def type_(encoding: str, *arguments: str, typed: bytes = b"") -> tuple[int, str]:
        shown = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding=encoding, write_through=True))
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding=encoding))
            code, _, _ = esc(*arguments)
            said = shown.getvalue()
        return code, said.decode("utf-8" if encoding == "ascii" else encoding)  # click takes ASCII for a mistake

    return type_


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "ascii", "utf-8"])
def test_no_console_costs_a_result(console, encoding):
    command = ("eval", "-a", "python:cli_agents:foreign", "-a", "builtin:silent", "-s", "people.jsonl", "--out", "r")
    code, out = console(encoding, *command)
    assert code == 0, out
    assert re.search(r"silent.* 0\.0 % .* [-−]\d\.\d\d ", out), "a minus that cannot be shown is a hyphen"
    assert re.search(r"raised ValueError: (你|\?) [-−] [é?] \?", out)
    assert ("┃" in out) == (encoding == "utf-8")
    assert "r/builtin-silent--people.jsonl/report.html" in out
    for other in (("leaderboard", "r"), ("scenarios", "people.jsonl"), ("doctor",), ("train", "--help"),
                  ("validate", "gaming", "--only", "skilled", "--limit", "1", "--trials", "1")):  # fmt: skip
        code, out = console(encoding, *other)
        assert "Traceback" not in out
        assert code == 0 or "BROKEN" in out


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "ascii", "utf-8"])
def test_whatever_bytes_are_typed_the_chat_goes_on(console, encoding):
    code, out = console(encoding, "chat", "-s", "people.jsonl", "--seed", "1", typed=b"Hi \xff\xfe\x81\n/quit\n")
    assert code == 0
    assert "To meet the same person again" in out


def test_a_stream_that_was_told_how_to_replace_is_left_alone(here):
    script = (
        "import sys\nfrom esc_env.cli import main\ntry: main(['doctor'])\nexcept SystemExit: print(sys.stdout.errors)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True,
                          env={**os.environ, "PYTHONIOENCODING": "ascii:xmlcharrefreplace"})  # fmt: skip
    assert done.stdout.endswith(b"xmlcharrefreplace" + os.linesep.encode())


# --- leaderboard ----------------------------------------------------------------------------------


def test_leaderboard_ranks_and_writes_three_files(esc, here):
    esc("eval", "-a", "builtin:silent", "-a", "builtin:parrot", "--scenarios", "people.jsonl", "--out", "runs")
    code, out, _ = esc("leaderboard", "runs", "--out", "board")
    assert code == 0
    assert out.index("builtin:parrot") > out.index("Leaderboard")
    assert sorted(path.name for path in (here / "board").iterdir()) == [
        "leaderboard.html", "leaderboard.json", "leaderboard.md",
    ]  # fmt: skip
    assert json.loads((here / "board" / "leaderboard.json").read_text())["ranked"]
    esc("eval", "-a", "builtin:silent", "--scenarios", "people.jsonl", "--seed", "3", "--out", "other")
    code, _, err = esc("leaderboard", "runs", "other")
    assert code == 1
    assert "seed: 0 / 3" in err
    code, out, _ = esc("leaderboard", "runs", "other", "--out", "both")
    assert code == 0
    assert "seed: 0 / 3" in out
    assert out.count("Leaderboard: ") == 2
    assert "seed: 0 / 3" in (here / "both" / "leaderboard.md").read_text()
    assert len(json.loads((here / "both" / "leaderboard.json").read_text())["boards"]) == 2
    assert "../runs/builtin-silent--people.jsonl" in (here / "both" / "leaderboard.html").read_text()


# --- chat -----------------------------------------------------------------------------------------


def typed(monkeypatch, *lines: str) -> None:
    waiting = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)


def test_chat_as_supporter_hides_the_state_and_saves_the_transcript(esc, here, monkeypatch):
    typed(monkeypatch, "What happened?", "", "Tell me more.")
    code, out, _ = esc("chat", "--scenarios", "people.jsonl", "--seed", "1", "--save", "talks.jsonl")
    assert code == 0
    assert "cannot sleep because of my job" in out
    assert "score" not in out
    assert "distress" not in out
    assert "--seed 1" in out
    code, out, _ = esc("scenarios", "talks.jsonl")
    assert code == 0
    assert "1 scenarios of 1 records" in out
    (line,) = (here / "talks.jsonl").read_text().splitlines()
    said = [m["content"] for m in json.loads(line)["dialogue"] if m["role"] == "supporter"]
    assert said == ["What happened?", "Tell me more."]


def test_chat_saves_on_a_line_of_its_own_and_never_into_a_file_that_holds_something_else(esc, here, monkeypatch):
    people = (here / "people.jsonl").read_text()
    (here / "talks.jsonl").write_text(people.rstrip("\n"))
    typed(monkeypatch, "What happened?")
    code, _, _ = esc("chat", "--scenarios", "people.jsonl", "--save", "talks.jsonl")
    assert code == 0
    assert (here / "talks.jsonl").read_text().startswith(people)
    assert len((here / "talks.jsonl").read_text().splitlines()) == PEOPLE + 1
    before = (here / "cli_agents.py").read_text()
    code, out, err = esc("chat", "--scenarios", "people.jsonl", "--save", "cli_agents.py")
    assert (code, out) == (1, "")
    assert "cli_agents.py" in err
    assert (here / "cli_agents.py").read_text() == before


def test_chat_reveals_score_and_state_on_request_and_repeats_by_seed(esc, monkeypatch):
    shown = []
    for _ in range(2):
        typed(monkeypatch, "What happened?")
        shown.append(esc("chat", "--scenarios", "people.jsonl", "--seed", "1", "--reveal"))
    assert shown[0] == shown[1]
    assert "turn 1: score" in shown[0][1]
    assert "distress" in shown[0][1]


def test_chat_ends_after_the_last_turn(esc, monkeypatch):
    typed(monkeypatch, "Hm.", "Hm.", "never read")
    _, out, _ = esc("chat", "--scenarios", "people.jsonl", "--max-turns", "2")
    assert "Not solved within 2 turns." in out


def test_chat_as_seeker_talks_to_an_agent(esc, here, monkeypatch):
    typed(monkeypatch, "I lost my job.", "Last week.", "/quit")
    code, out, _ = esc("chat", "--as", "seeker", "--agent", "python:cli_agents:mine", "--save", "talk.jsonl")
    assert code == 0
    assert out.count("What happened then?") == 2
    assert "emergency number" in out
    saved = json.loads((here / "talk.jsonl").read_text())
    assert [m["role"] for m in saved["dialogue"]] == ["seeker", "supporter"] * 2
    typed(monkeypatch, "I lost my job.")
    code, _, err = esc("chat", "--as", "seeker", "--agent", "python:cli_agents:raises")
    assert code == 1
    assert "raised ValueError" in err


# --- scenarios, doctor, help ----------------------------------------------------------------------


def test_scenarios_counts_and_accounts_for_every_record(esc, here):
    with (here / "people.jsonl").open("a") as file:
        file.write('{"id": "broken"}\n')
    code, out, _ = esc("scenarios", "people.jsonl")
    assert code == 0
    assert f"{PEOPLE} scenarios of {PEOPLE + 1} records" in out
    assert "anxiety" in out
    assert f"line {PEOPLE + 1}" in out
    code, out, _ = esc("scenarios", "people.jsonl", "--json")
    assert json.loads(out)["scenarios"] == PEOPLE


def test_doctor_never_shows_a_key(esc, here, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setenv("ESC_DATA", str(here))
    code, out, _ = esc("doctor")
    assert code == 0
    assert "secret" not in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert lines["OPENAI_API_KEY"].endswith("   set")
    assert lines["ANTHROPIC_API_KEY"].endswith("not set")
    assert "people.jsonl" in out
    for extra in ("llm", "train", "dev"):
        assert extra in lines


def test_doctor_says_what_a_missing_extra_adds(esc, monkeypatch):
    monkeypatch.setattr("esc_env.cli._installed", lambda package: None)
    _, out, _ = esc("doctor")
    assert "adds chat models behind an API" in out
    assert "pip install 'esc-env[llm]'" in out


@pytest.mark.parametrize("command", ["eval", "leaderboard", "compare", "wording", "chat", "scenarios", "doctor"])
def test_every_option_has_help(esc, command):
    code, out, _ = esc(command, "--help")
    assert code == 0
    for line in out.splitlines():
        words = line.split()
        if words and words[0].startswith("-"):
            assert len(words) > 2 or len(line) < 40, line


def test_help_is_quick_and_loads_no_package_of_models_or_scenarios():
    code = (
        "import sys\n"
        "from esc_env.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as ended: assert not ended.code\n"
        "heavy = {'torch', 'transformers', 'openai', 'litellm', 'esc_env.data.datasets', 'esc_env.builtin.seeker'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=True)
    assert "loaded []" in done.stderr
    for command in ("eval", "leaderboard", "chat", "scenarios", "doctor"):
        assert command in done.stdout


def test_commands_that_are_not_there_are_named_and_cost_no_other_command(esc, monkeypatch):
    points = [EntryPoint("a", value, "esc_env.commands") for value in ("no_such:register", "esc_env.agents.cli:gone")]
    points.append(EntryPoint("b", "esc_env.evaluation.commands.runs:register", "esc_env.commands"))
    monkeypatch.setattr("esc_env.cli.entry_points", lambda group: points)
    code, out, err = esc("eval", "--help")
    assert (code, "Benchmark agents" in out) == (0, True)
    assert "the commands of no_such:register are left out" in err
    assert "the commands of esc_env.agents.cli:gone are left out" in err


def test_a_reader_that_leaves_early_is_no_error(here):
    script = "from esc_env.cli import main; main(['scenarios', 'people.jsonl'])"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert "Traceback" not in process.communicate(timeout=60)[1]


# --- wording --------------------------------------------------------------------------------------


def test_wording_describes_what_supporters_wrote(esc):
    esc("eval", "--agent", "python:cli_agents:mine", "--scenarios", "people.jsonl", "--out", "run")
    code, out, err = esc("wording", "run")
    assert (code, err) == (0, "")
    for word in ("python:cli_agents:mine", "distinct-2", "100.0 %", "as the builtin move classifier reads them"):
        assert word in out
    _, told, _ = esc("wording", "run", "--json")
    assert json.loads(told)["runs"][0]["wording"]["questions"] == 1.0
    code, _, err = esc("wording", "run", "--bertscore", "roberta-large")
    assert (code, err.count("\n")) == (1, 1)
    assert "--human" in err
