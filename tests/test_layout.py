"""Folders, import names and the wheel agree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("agents", "rewards", "evaluation", "training")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

LINKS = """this checkout has no symbolic links. What is installed from it works, but type checkers need them. Type:
git config core.symlinks true && git checkout -- esc_env    (on Windows with developer mode on)"""


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_linked_where_its_import_name_says(name: str):
    link = ROOT / "esc_env" / name
    assert link.is_symlink(), LINKS
    assert str(link.readlink()) == f"../{name}"
    assert (ROOT / name / "__init__.py").is_file()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_imported_under_another_name_says_the_right_one(name: str):
    run = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert f"import this package as esc_env.{name}" in run.stderr


def test_every_package_is_listed_for_the_build():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {
        "esc_env." + ".".join(path.parent.relative_to(ROOT).parts)
        for name in FOLDERS
        for path in (ROOT / name).rglob("__init__.py")
    }
    inner = (path.parent.relative_to(ROOT) for path in (ROOT / "esc_env").rglob("__init__.py"))
    found |= {".".join(path.parts) for path in inner if path.parts[1:2] not in [(name,) for name in FOLDERS]}
    assert listed == found


def test_coverage_measures_all_five_folders():
    assert set(PROJECT["tool"]["coverage"]["run"]["source"]) == {"esc_env", *FOLDERS}


def test_nothing_unexpected_stands_at_the_top():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    expected = {
        "esc_env", *FOLDERS, "tests", "docs", "benchmarks", "examples", "pyproject.toml", "README.md",
        "CHANGELOG.md", "CITATION.cff", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "MANIFEST.in", "SECURITY.md",
        "LICENSE", "constraints.txt", "mkdocs.yml",
    }  # fmt: skip
    assert {name for name in top if not name.startswith(".")} <= expected


@pytest.mark.full
def test_the_wheel_installs_one_name_with_all_its_data(tmp_path: Path):
    pytest.importorskip("build")
    checkout, made = tmp_path / "checkout", tmp_path / "made"  # setuptools writes to where it builds
    for folder in ("esc_env", *FOLDERS):
        shutil.copytree(ROOT / folder, checkout / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, checkout)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(made), str(checkout)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = made.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"esc_env"}
    for needed in (
        "esc_env/py.typed", "esc_env/builtin/bank.jsonl", "esc_env/builtin/moves.npz", "esc_env/builtin/voices.json",
        "esc_env/data/esconv_membership.json", "esc_env/agents/phrases.json", "esc_env/evaluation/pages/page.css",
        "esc_env/evaluation/validity/gaming.json", "esc_env/evaluation/validity/paraphrases.json",
        "esc_env/evaluation/validity/conversations.json", "esc_env/evaluation/validity/harms.json",
        "esc_env/training/__init__.py",
    ):  # fmt: skip
        assert needed in names
    text_data = [
        path.relative_to(ROOT / name)
        for name in ("esc_env", *FOLDERS)
        for path in (ROOT / name).rglob("*")
        if path.suffix in {".txt", ".json", ".jsonl", ".npz", ".css"} and "__pycache__" not in path.parts
    ]
    assert all(any(name.endswith(str(path)) for name in names) for path in text_data)
