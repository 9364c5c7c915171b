"""python benchmarks/mutants.py statistics/resampling

Which changes of a module does none of its tests notice? mutmut makes hundreds of small ones, and runs the tests that
reach each; the command prints those that survived, and the score: the share that did not. They are made in a copy,
below `build/mutants`, where `mutmut show NAME` and `mutmut browse` work, and where the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINKS = ("esc_env", "esc_env/agents", "esc_env/rewards", "esc_env/evaluation", "esc_env/training")
"""Where the code is: the links by name, since mutmut follows none."""
MODULES = {
    "conversation": ("esc_env/conversation.py", ["test_env.py", "test_loop.py", "test_broken_off.py"]),
    "chairs/critics": (
        "esc_env/chairs/critics.py",
        ["test_llm_chairs.py", "test_options.py", "test_agents.py", "test_testing.py", "test_open_model.py"],
    ),
    "statistics/intervals": (
        "esc_env/evaluation/statistics/intervals.py",
        [
            *(
                f"test_evaluate.py::test_{name}"
                for name in (
                    "an_interval_holds_the_rate_and_is_never_a_point",
                    "the_order_of_scenarios_hardly_matters_and_the_same_data_gives_the_same_interval",
                    "wilson_is_symmetric_and_narrows_with_more_trials",
                    "wilson_agrees_with_published_numbers",
                    "an_interval_covers_the_rate_where_scenarios_are_few_and_rates_extreme",
                    "the_interval_of_a_difference_covers_it_where_hardly_any_scenario_differs",
                    "intervals_of_clustered_data_cover_in_93_to_97_percent",
                    "trials_that_tell_nothing_new_do_not_narrow_an_interval",
                    "the_interval_of_a_mean_difference_is_clustered_and_covers_the_mean",
                )
            ),
            "test_intervals.py",
            "test_plan.py",
            "test_comparison.py::test_wilson_is_that_of_statsmodels",
            "test_comparison.py::test_the_interval_of_a_mean_is_the_weighted_one_of_statsmodels",
            "test_reward_model.py::test_auc_agrees_with_scikit_learn",
        ],
    ),
    "statistics/resampling": (
        "esc_env/evaluation/statistics/resampling.py",
        ["test_resampling.py", "test_reward_model.py::test_the_interval_of_an_auc_resamples_whole_clusters"],
    ),
    "ranking/comparison": ("esc_env/evaluation/ranking/comparison.py", ["test_comparison.py"]),
    "ranking/verify": ("esc_env/evaluation/ranking/verify.py", ["test_verify.py"]),
}
"""Where each is, and the tests whose claims are about it."""
APART = (
    "test_env.py::test_it_can_be_made_without_importing_the_package_first",
    "test_env.py::test_the_same_seed_is_the_same_conversation_in_every_env_and_process",
    "test_loop.py::test_ctrl_c_at_the_terminal_ends_a_program_even_if_a_callable_blocks",
    "test_verify.py::test_the_schema_is_made_by_its_command",
)
"""Tests that start programs of their own, in which mutmut cannot look on."""


def copy(folder: Path) -> None:
    """The checkout as it is, links as links, with the times of its files, by which mutmut knows what has changed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def configure(folder: Path, module: str, tests: list[str]) -> None:
    """Tell mutmut what to change, and which tests to run."""
    config = ConfigParser()
    apart = [f"--deselect=tests/{name}" for name in APART]
    config["mutmut"] = {
        "source_paths": "\n".join(LINKS),
        "only_mutate": module,
        "also_copy": "\n".join(("benchmarks", "docs")),
        "pytest_add_cli_args_test_selection": "\n".join([*(f"tests/{name}" for name in tests), *apart]),
    }
    with (folder / "setup.cfg").open("w") as file:
        config.write(file)


def main() -> None:
    """Change a module, and print what survives."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("module", choices=MODULES)
    options.add_argument("--processes", type=int, default=1)
    asked = options.parse_args()
    folder = ROOT / "build" / "mutants" / asked.module.replace("/", "-")
    copy(folder)
    configure(folder, *MODULES[asked.module])
    for command in (["run", "--max-children", str(asked.processes)], ["results"], ["export-cicd-stats"]):
        subprocess.run([sys.executable, "-m", "mutmut", *command], cwd=folder, check=True)
    told = json.loads((folder / "mutants" / "mutmut-cicd-stats.json").read_text())
    noticed = told["killed"] + told["timeout"] + told["segfault"]
    share = f"{noticed} of {told['total']} are noticed ({noticed / told['total']:.0%})"
    print(f"{asked.module}: {share}, and no test reaches {told['no_tests']}")


if __name__ == "__main__":
    main()
