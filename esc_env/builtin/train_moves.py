"""Train the move classifier: `python -m esc_env.builtin.train_moves` (needs scikit-learn, a dev dependency).

Reads corpus.tsv (label, utterance) and bank.jsonl, writes moves.npz, and prints how well it does: by five-fold
cross-validation on our own utterances, and with `--esconv FILE` on the strategy labels of real ESConv dialogues.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np

from esc_env.builtin.language import stem, tokens
from esc_env.builtin.moves import ASSET, MOVES, features

HERE = Path(__file__).parent
GENERIC, SPECIFIC = 2e-2, 2e-3
"""A stem in at least this share of texts says nothing about one person (weight 0); in at most that share, all (1)."""

ESCONV = {
    "open_question": "Question",
    "closed_question": "Question",
    "coping_question": "Question",
    "safety_question": "Question",
    "restatement": "Restatement or Paraphrasing",
    "reflection": "Reflection of Feelings",
    "self_disclosure": "Self-disclosure",
    "affirmation": "Affirmation and Reassurance",
    "suggestion": "Providing Suggestions",
    "safety_referral": "Providing Suggestions",
    "commitment": "Providing Suggestions",
    "information": "Information",
    "other": "Others",
    "noise": "Others",
    "dismissal": "Others",
}
"""Our moves as ESConv's strategies."""


def corpus() -> list[tuple[str, str]]:
    """(label, utterance) pairs, in file order."""
    lines = (HERE / "corpus.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [(line.split("\t", 1)[0], line.split("\t", 1)[1]) for line in lines if line]
    unknown = {label for label, _ in pairs} - set(MOVES)
    if unknown:
        raise SystemExit(f"corpus.tsv: unknown labels {sorted(unknown)}")
    return pairs


def pipeline() -> Any:
    """The classifier, untrained."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(
        TfidfVectorizer(analyzer=cast(Any, features), min_df=2, sublinear_tf=True),
        LogisticRegression(C=8.0, max_iter=2000),
    )


def rarity(texts: list[str]) -> dict[str, float]:
    """For every stem in at least two texts, how much it says about one person, in [0, 1]."""
    frequency: Counter[str] = Counter()
    for text in texts:
        frequency.update({stem(word) for word in tokens(text) if word[0].isalnum()})
    scale = math.log(GENERIC / SPECIFIC)
    return {
        word: min(1.0, max(0.0, math.log(GENERIC * len(texts) / count) / scale))
        for word, count in sorted(frequency.items())
        if count > 1
    }


def main() -> None:
    """Train, write, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--esconv", type=Path, help="an ESConv file whose strategy labels to test on")
    options = parser.parse_args()
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    labels = [label for label, _ in corpus()]
    texts = [text for _, text in corpus()]
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    guesses = cross_val_predict(pipeline(), texts, labels, cv=folds)
    print(f"own utterances ({len(texts)}), 5-fold: accuracy {accuracy_score(labels, guesses):.3f}")
    print(f"macro-F1 {f1_score(labels, guesses, average='macro'):.3f}")

    model = pipeline().fit(texts, labels)
    vectors, regression = model.steps[0][1], model.steps[1][1]
    grams = vectors.get_feature_names_out()
    order = [list(regression.classes_).index(move) for move in MOVES]
    bank = [json.loads(line) for line in (HERE / "bank.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [item for item in bank if item["split"] == "train"]
    told = [text for item in train for text in (item["situation"], *item["facts"])]
    stems = rarity(texts + told)
    np.savez_compressed(
        ASSET,
        grams=np.array("\n".join(grams)),
        idf=vectors.idf_.astype(np.float16),
        weights=regression.coef_[order].T.astype(np.float16),
        bias=regression.intercept_[order].astype(np.float32),
        stems=np.array("\n".join(stems)),
        rarity=np.array(list(stems.values()), dtype=np.float16),
    )
    print(f"wrote {ASSET.name}: {len(grams)} grams, {len(stems)} stems")

    if options.esconv:
        from esc_env.data.readers import read_file

        said = [
            message
            for scenario in read_file(options.esconv).scenarios
            for message in (scenario.dialogue or ())
            if message.role == "supporter" and message.strategy
        ]
        truth = [message.strategy for message in said]
        found = [ESCONV[move] for move in model.predict([message.content for message in said])]
        print(f"ESConv strategies ({len(said)}): accuracy {accuracy_score(truth, found):.3f}")
        print(f"macro-F1 {f1_score(truth, found, average='macro'):.3f}")


if __name__ == "__main__":
    main()
