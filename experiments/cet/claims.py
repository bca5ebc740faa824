"""What the paper claims, as a generator with a known truth and judged collections can show it."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from experiments.cet import generator, pooled
from experiments.cet.training import Arm
from experiments.claims import AtLeast, AtMost, Claim, Within

PAPER = "arXiv:2209.05072"
ABSTRACT = f"{PAPER}, abstract"
NOT_AVAILABLE = "n/a"
GENERATOR = "generator, nDCG@10 against true relevance"
REAL = "collections, labels from BM25's pool"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "strong-negatives-hurt",
        "Negatives of a stronger retriever train a worse ranker, since more of them are false.",
        ABSTRACT,
        "about 9 % lower MRR@10 with RepBERT's negatives than with BM25's on MS MARCO (from a summary)",
        f"{GENERATOR}: naive with weak negatives minus naive with strong ones",
        AtLeast(0.01),
    ),
    Claim(
        "cet-repairs-strong-negatives",
        "Weights from a coupled selection model make strong negatives useful.",
        ABSTRACT,
        NOT_AVAILABLE,
        f"{GENERATOR}: CET (tau 1, separate inputs) minus naive, strong negatives",
        AtLeast(0.02),
    ),
    Claim(
        "not-a-larger-step",
        "The gain comes from how the weights differ, not from their size.",
        "ours",
        NOT_AVAILABLE,
        f"{GENERATOR}: CET with weights of mean 1 (tau 1) minus naive, strong negatives",
        AtLeast(0.02),
    ),
    Claim(
        "large-tau-is-naive",
        "With a temperature far above the spread of the scores, CET is the naive ranker.",
        "ours",
        NOT_AVAILABLE,
        f"{GENERATOR}: CET with tau 10 (the official script's) minus naive, strong negatives",
        Within(-0.01, 0.01),
    ),
    Claim(
        "oracle-is-the-ceiling",
        "Leaving out exactly the false negatives is best.",
        "ours",
        NOT_AVAILABLE,
        f"{GENERATOR}: the oracle minus the best mean of all other arms",
        AtLeast(0.0),
    ),
    Claim(
        "stronger-retriever-more-false-negatives",
        "The stronger the retriever, the more of its unlabelled top documents are relevant.",
        ABSTRACT,
        NOT_AVAILABLE,
        "collections, share of relevant documents among the first 20 unlabelled: dense minus BM25, one value"
        f" for each collection and depth {', '.join(map(str, pooled.DEPTHS))} of BM25's pool; no training",
        AtLeast(0.0),
    ),
    Claim(
        "dense-negatives-hurt",
        "Negatives of a stronger retriever train a worse ranker, on real judgments too.",
        ABSTRACT,
        "about 9 % lower MRR@10 with RepBERT's negatives than with BM25's on MS MARCO (from a summary)",
        f"{REAL} and first 20: nDCG@10, naive with BM25's negatives minus with dense ones; mean over"
        " collections",
        AtLeast(0.0),
    ),
    Claim(
        "weights-find-false-negatives",
        "The selection model gives false negatives less weight.",
        ABSTRACT,
        NOT_AVAILABLE,
        f"{REAL} and first 20: mean weight of false over true dense negatives, CET (tau 1, separate inputs);"
        " mean over collections",
        AtMost(0.7),
    ),
    Claim(
        "cet-beats-naive",
        "CET trains a better ranker than plain training on the same negatives.",
        ABSTRACT,
        NOT_AVAILABLE,
        f"{REAL} and first 20: nDCG@10, CET (tau 1, separate inputs) minus naive, dense negatives; mean over"
        " collections",
        AtLeast(0.0),
    ),
)


def measurements(
    arms: tuple[Sequence[Arm], Sequence[Arm]],
    made: Mapping[str, np.ndarray],
    real: Mapping[str, Mapping[str, np.ndarray]],
    shares: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, ArrayLike]:
    """One value for each seed of every claim.

    Args:
        arms: of the generator and of the collections.
        made: of the generator, ``[arms, seeds]`` by name.
        real: of the collections with the first pooling, by collection.
        shares: of false negatives, ``[depths]`` by collection and retriever.

    Returns:
        Values by the claim's name.
    """
    of_generator, of_real = (list(each) for each in arms)

    def gain(better: Arm, worse: Arm = generator.NAIVE_STRONG) -> np.ndarray:
        return made["ndcg"][of_generator.index(better)] - made["ndcg"][of_generator.index(worse)]

    def over_collections(name: str, arm: Arm, less: Arm | None = None) -> np.ndarray:
        found = [
            of[name][of_real.index(arm)] - (0 if less is None else of[name][of_real.index(less)])
            for of in real.values()
        ]
        return np.mean(found, axis=0)

    others = [place for place, arm in enumerate(of_generator) if arm.filter != "oracle"]
    best = of_generator[max(others, key=lambda place: made["ndcg"][place].mean())]
    return {
        "strong-negatives-hurt": gain(generator.NAIVE_WEAK),
        "cet-repairs-strong-negatives": gain(generator.CET),
        "not-a-larger-step": gain(generator.MEAN),
        "large-tau-is-naive": gain(generator.LOOSE),
        "oracle-is-the-ceiling": gain(generator.ORACLE, best),
        "stronger-retriever-more-false-negatives": np.concatenate(
            [of[pooled.DENSE] - of[pooled.BM25] for of in shares.values()]
        ),
        "dense-negatives-hurt": over_collections("ndcg", pooled.NAIVE_BM25, pooled.NAIVE_DENSE),
        "weights-find-false-negatives": over_collections("false_weight", pooled.CET),
        "cet-beats-naive": over_collections("ndcg", pooled.CET, pooled.NAIVE_DENSE),
    }
