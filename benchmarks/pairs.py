"""python benchmarks/pairs.py

What the pairs that the reader learns from are like (`esc_env/builtin/pairs.jsonl`): how many, of which kinds; whether
lengths give the good reply away; how many different words; near-duplicates; and how well a classifier of words tells
good replies from bad ones in situations that it has not seen, without the context. The table of docs/reader.md.
"""

from __future__ import annotations

import json
from collections import Counter
from statistics import median, quantiles

from esc_env.builtin.language import tokens
from esc_env.builtin.reader.lessons import HARMS
from esc_env.builtin.reader.pairs import PAIRS, held_out


def grams(text: str, size: int = 4) -> frozenset[tuple[str, ...]]:
    """Runs of words."""
    words = tokens(text)
    return frozenset(tuple(words[at : at + size]) for at in range(len(words) - size + 1))


def alike(texts: list[str], least: float = 0.5) -> int:
    """How many texts share so much of their runs of four words with one before, by Jaccard's index."""
    seen: list[frozenset[tuple[str, ...]]] = []
    holding: dict[tuple[str, ...], list[int]] = {}
    found = 0
    for text in texts:
        own = grams(text)
        near = Counter(place for gram in own for place in holding.get(gram, ()))
        found += any(count / len(own | seen[place]) >= least for place, count in near.items())
        for gram in own:
            holding.setdefault(gram, []).append(len(seen))
        seen.append(own)
    return found


def main() -> None:
    """Print it."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    sets = [json.loads(line) for line in PAIRS.read_text("utf-8").splitlines()]
    good = [text for item in sets for _, text in item["good"]]
    bad = [text for item in sets for _, text in item["bad"]]
    kinds = Counter(kind for item in sets for kind, _ in item["bad"])
    moves = Counter(move for item in sets for move, _ in item["good"])
    words = Counter(word for text in (*good, *bad) for word in tokens(text) if word[0].isalnum())
    size = {name: [len(text.split()) for text in texts] for name, texts in (("good", good), ("bad", bad))}
    print(
        f"{len(sets):,} sets in {len({item['situation'] for item in sets})} situations, of which "
        f"{sum(held_out(item['situation']) for item in sets)} sets are held out"
    )
    print(f"{len(good):,} good replies, {len(bad):,} bad ones ({sum(kinds[kind] for kind in HARMS):,} of them harm)")
    print("moves:", ", ".join(f"{name} {count}" for name, count in moves.most_common()))
    print("kinds:", ", ".join(f"{name} {count}" for name, count in kinds.most_common()))
    for name, counts in size.items():
        print(
            f"words in a {name} reply: median {median(counts):g}, "
            f"quartiles {quantiles(counts)[0]:g} and {quantiles(counts)[2]:g}"
        )
    print(
        f"{words.total():,} words, {len(words):,} different ({len(words) / words.total():.3f}); "
        f"{sum(count == 1 for count in words.values()):,} once only"
    )
    openings = Counter(" ".join(text.lower().split()[:3]) for text in good)
    print(
        "commonest openings of good replies:", ", ".join(f"{name!r} {count}" for name, count in openings.most_common(5))
    )
    print(
        f"near-duplicates among good replies (half of the runs of four words): {alike(good)}; "
        f"among bad ones: {alike(bad)}"
    )
    longer = [
        (len(a.split()) > len(b.split())) + 0.5 * (len(a.split()) == len(b.split()))
        for item in sets
        for _, a in item["good"]
        for _, b in item["bad"]
    ]
    print(f"the good reply is the longer one in {100 * sum(longer) / len(longer):.1f} % of pairs")
    parts: dict[bool, tuple[list[str], list[bool]]] = {True: ([], []), False: ([], [])}
    for item in sets:
        texts, labels = parts[held_out(item["situation"])]
        for side, helps in (("good", True), ("bad", False)):
            texts += [text for _, text in item[side]]
            labels += [helps] * len(item[side])
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2), LogisticRegression(C=4.0, max_iter=500)
    )
    model.fit(*parts[False])
    scores = dict(zip(parts[True][0], model.decision_function(parts[True][0]), strict=True))
    won = [
        (scores[a] > scores[b]) + 0.5 * (scores[a] == scores[b])
        for item in sets
        if held_out(item["situation"])
        for _, a in item["good"]
        for _, b in item["bad"]
    ]
    print(
        f"words alone, without the context, prefer the good reply in {100 * sum(won) / len(won):.1f} % of unseen pairs"
    )


if __name__ == "__main__":
    main()
