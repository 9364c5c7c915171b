"""What a release promises besides its code: who is told what, which checks run, what is installed."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from esc_env.cli import main

ROOT = Path(__file__).parents[1]
TOML = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, SETUPTOOLS = TOML["project"], TOML["tool"]["setuptools"]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code
    return capsys.readouterr().out


# --- esc --version, completion --------------------------------------------------------------------


def test_the_version_names_all_that_a_result_may_hang_on(capsys):
    told = dict(line.split() for line in printed(capsys, "--version").splitlines())
    assert list(told)[:2] == ["esc-env", "Python"]
    assert told["Python"] == ".".join(map(str, sys.version_info[:3]))
    for name in ("gymnasium", "numpy"):
        assert told[name] == version(name)
    assert "pytest" not in told


@pytest.mark.full
def test_the_version_names_the_packages_of_extras_that_are_installed(capsys):
    assert f"\ntorch {version('torch')}\n" in printed(capsys, "--version")


def test_the_version_leaves_out_what_is_not_installed(capsys, monkeypatch):
    monkeypatch.setattr("esc_env.cli._installed", lambda package: "1" if package in ("esc-env", "numpy") else None)
    assert [line.split()[0] for line in printed(capsys, "--version").splitlines()] == ["esc-env", "Python", "numpy"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("esc lead", ["leaderboard"]),
        ("esc leaderboard v", ["verify"]),
        ("esc eval --see", ["--seeker", "--seeker-temperature", "--seeker-option", "--seed"]),
        ("esc eval --critic-mode l", ["logprobs"]),
    ],
)
def test_the_tab_key_completes_commands_options_and_choices(capsys, monkeypatch, typed, offered):
    monkeypatch.setenv("_ESC_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    assert printed(capsys).split() == offered


def test_the_doctor_knows_what_every_extra_adds(capsys, monkeypatch):
    monkeypatch.setattr("esc_env.cli._installed", lambda package: None)
    assert "adds more" not in printed(capsys, "doctor")


# --- files beside the code ------------------------------------------------------------------------


def test_every_direct_dependency_has_a_line_that_says_why():
    wanted = {
        re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        for requirements in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
        for requirement in requirements
    } - {"esc-env"}
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\| `.*\|$", page, re.M)]
    assert sorted(row[0].strip("`") for row in rows) == sorted(wanted)
    assert all(all(row) for row in rows)


def test_the_citation_is_of_this_version():
    citation = read("CITATION.cff")
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])


def test_before_a_commit_the_quick_checks_of_the_whole_run_are_made():
    step = (ROOT / ".ci" / "run").read_text(encoding="utf-8").partition('step "lint, layout"\n')[2]
    quick = step.partition("\n\n")[0].splitlines()
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"] for hook in local["hooks"]] == quick
    assert {(hook["language"], hook["pass_filenames"]) for hook in local["hooks"]} == {("system", False)}


@pytest.mark.parametrize("form", ["bug.yml", "idea.yml"])
def test_an_issue_form_is_one_that_is_taken(form):
    told = read(f".github/ISSUE_TEMPLATE/{form}")
    assert {"name", "description", "body"} <= set(told)
    asked = [part for part in told["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in asked}) == len(asked) > 0
    assert all(part["attributes"]["label"] for part in asked)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = [(page, *found) for page in PAGES for found in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text("utf-8"))]


def test_every_picture_of_a_page_is_there_small_and_told_in_words():
    assert SHOWN
    for page, told, link in SHOWN:
        picture = page.parent / link
        assert picture.stat().st_size < 150_000, picture
        assert told, f"{page}: {link} has no words for who cannot see it"
    shown = {(page.parent / link).resolve() for page, _, link in SHOWN}
    assert shown == set((ROOT / "docs" / "pictures").resolve().iterdir())


def test_no_picture_loads_or_runs_anything():
    for picture in (ROOT / "docs" / "pictures").glob("*.svg"):
        drawn = picture.read_text(encoding="utf-8")
        assert not re.search(r"<script|<foreignObject|<image|@import|\son\w+=|javascript:", drawn), picture
        assert all(link.startswith("#") for link in re.findall(r"(?:href=\"|url\()([^\")]+)", drawn)), picture


def test_the_pictures_of_the_readme_stand_beside_the_commands_that_they_show():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    record = (ROOT / "docs" / "record.py").read_text(encoding="utf-8")
    commands = re.findall(r'"(esc [^"]+)"', record)
    assert len(commands) == 4
    assert all(f"`{command}`" in readme for command in commands)


# --- what is installed ----------------------------------------------------------------------------


@pytest.mark.full
def test_of_a_checkout_without_symbolic_links_the_source_archive_holds_every_package_and_no_link(tmp_path):
    pytest.importorskip("build")
    checkout, made = tmp_path / "checkout", tmp_path / "made"
    command = ["git", "-c", "core.symlinks=false", "checkout-index", "--all", f"--prefix={checkout}/"]
    if subprocess.run(command, cwd=ROOT, capture_output=True).returncode != 0:
        pytest.skip("not a git checkout")  # an unpacked archive, of which none is made again
    assert (checkout / "esc_env" / "agents").is_file()
    command = [sys.executable, "-m", "build", "--sdist", "--outdir", str(made), str(checkout)]
    subprocess.run(command, check=True, capture_output=True)
    (archive,) = made.iterdir()
    with tarfile.open(archive) as source:
        members = {member.name.partition("/")[2]: member for member in source}
    assert all(member.isfile() or member.isdir() for member in members.values())
    folders = {package: package.replace(".", "/") for package in SETUPTOOLS["packages"]} | SETUPTOOLS["package-dir"]
    assert {f"{folder}/__init__.py" for folder in folders.values()} <= set(members)
    assert "esc_env/agents" not in members
