"""What the paper claims, what its mechanism implies, and the limits that we state."""

from experiments.claims import AtLeast, AtMost, Claim

PAPER = "arXiv:2203.04703v1"
TABLE = f"{PAPER}, result tables, TransE on WN18RR"
ADVERSARIAL_TABLE = f"{TABLE} with self-adversarial loss"
ABSTRACT = f"{PAPER}, abstract"
OURS = "specification of this reproduction; not in the paper"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="mrr-above-uniform",
        sentence="Negatives from text neighbourhoods give a better MRR than uniform ones at equal budget.",
        source=TABLE,
        paper="+0.0123 (.2145 against .2022), plain loss",
        measure="filtered MRR of LEMON as in the authors' code minus uniform, word net, plain loss",
        criterion=AtLeast(0.005),
    ),
    Claim(
        name="hits-above-uniform",
        sentence="They give a better Hits@10 than uniform ones.",
        source=TABLE,
        paper="+0.0159 (51.22 % against 49.63 %), plain loss",
        measure="the same, Hits@10",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="adversarial-mrr-above-uniform",
        sentence="With the self-adversarial loss, too, LEMON's MRR is above that of uniform negatives.",
        source=ADVERSARIAL_TABLE,
        paper="+0.0042 (.2274 against .2232)",
        measure="filtered MRR of LEMON as in the authors' code minus uniform, both self-adversarial",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="adversarial-hits-above-uniform",
        sentence="With the self-adversarial loss, too, its Hits@10 is above that of uniform negatives.",
        source=ADVERSARIAL_TABLE,
        paper="+0.0042 (53.20 % against 52.78 %)",
        measure="the same, Hits@10",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="replaced-mrr-above-uniform",
        sentence="So do negatives near the entity that is replaced (a proposed reading).",
        source=OURS,
        paper="n/a",
        measure="filtered MRR of LEMON minus uniform, plain loss; K and mix chosen on validation",
        criterion=AtLeast(0.005),
    ),
    Claim(
        name="replaced-hits-no-worse",
        sentence="These lose no more than a point of Hits@10.",
        source=OURS,
        paper="n/a",
        measure="the same, Hits@10",
        criterion=AtLeast(-0.01),
    ),
    Claim(
        name="replaced-adversarial-mrr",
        sentence="With the self-adversarial loss, too, their MRR is above that of uniform negatives.",
        source=OURS,
        paper="n/a",
        measure="filtered MRR of LEMON minus uniform, both self-adversarial; mix chosen on validation",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="plausible",
        sentence="Text neighbours are more plausible than random entities.",
        source=ABSTRACT,
        paper="qualitative only",
        measure="share of drawn entities that occur in training on the same side of the same relation, LEMON "
        "(mix 0) over uniform; the smaller of the graphs' ratios",
        criterion=AtLeast(1.2),
    ),
    Claim(
        name="harder",
        sentence="They are harder: a model takes them for true more often.",
        source=ABSTRACT,
        paper="qualitative only",
        measure="mean sigmoid of the scores of LEMON's negatives (mix 0) over that of uniform ones, "
        "by a model "
        "after a third of the steps on uniform negatives; word net",
        criterion=AtLeast(1.3),
    ),
    Claim(
        name="drawing-costs-like-uniform",
        sentence="Drawing them costs as little as drawing uniform ones.",
        source=f"{PAPER}, complexity table",
        paper="O(1) a draw",
        measure="seconds to draw and filter a batch, LEMON over uniform; word net",
        criterion=AtMost(1.5),
    ),
    Claim(
        name="neighbourhoods-are-cheap",
        sentence="The neighbourhoods are made once, in little time.",
        source=f"{PAPER}, complexity table",
        paper="one PCA and one k-means before training",
        measure="CPU seconds of PCA, k-means and neighbourhoods; word net",
        criterion=AtMost(5.0),
    ),
    Claim(
        name="dense-graph-loses",
        sentence="On a dense graph of types text neighbours are false negatives, and MRR falls "
        "below uniform's.",
        source=OURS,
        paper="n/a",
        measure="filtered MRR of LEMON (mix 0) minus uniform on the dense graph, plain loss",
        criterion=AtMost(0.0),
    ),
)
