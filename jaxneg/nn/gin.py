"""The graph isomorphism network on dense, padded adjacencies, and the read-out that GCC puts on it.

K. Xu et al. 2019, "How powerful are graph neural networks?", arXiv:1810.00826, Equations 4.1 and 4.2; J.
Qiu et al. 2020, "GCC: Graph contrastive coding for graph neural network pre-training", arXiv:2006.09963,
Section 3.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxneg.nn.batch_norm import BatchNorm, NormalisedModel
from jaxneg.nn.bridge import bridge_normalised
from jaxneg.nn.contraction import contract

Aggregation = Literal["sum", "mean", "sqrt"]
Readout = Literal["sum", "mean"]

HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
AGGREGATIONS = ("sum", "mean", "sqrt")
READOUTS = ("sum", "mean")


def aggregate(
    adj: Float[Array, "*graphs nodes nodes"],
    x: Float[Array, "*graphs nodes features"],
    aggregation: Aggregation,
) -> Float[Array, "*graphs nodes features"]:
    """What each node hears from its neighbours; nothing where it has none.

    ``(A x)_i / d_i^p`` with p = 0 for "sum", 1 for "mean", 1/2 for "sqrt" and d the row sums of A

    Args:
      adj: Adjacencies, A.
      x: Features of the nodes.
      aggregation: What the sums are divided by.

    Returns:
      The sums, in the type of ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.nn.gin import aggregate
      >>> aggregate(jnp.array([[0.0, 1.0], [0.0, 0.0]]), jnp.array([[3.0], [5.0]]), "mean").tolist()
      [[5.0], [0.0]]
    """
    exact = jnp.promote_types(x.dtype, jnp.float32)
    total = jnp.matmul(adj.astype(x.dtype), x, preferred_element_type=exact)
    if aggregation != "sum":
        degree = jnp.maximum(jnp.sum(adj, -1, keepdims=True, dtype=exact), 1)
        total = total / (degree if aggregation == "mean" else jnp.sqrt(degree))
    return total.astype(x.dtype)


class GINLayer(nnx.Module):
    """One round of messages.

    Args:
      inputs: Features that come in.
      outputs: Features that go out, and of the hidden layer.
      aggregation: Of the neighbours.
      norm: Whether features are normalised over the nodes of the batch.
      dtype: Type of the computation.
      rngs: Random streams.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        aggregation: Aggregation,
        norm: bool,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        def linear(n: int) -> nnx.Linear:
            return nnx.Linear(n, outputs, dtype=dtype, kernel_init=HE_NORMAL, dot_general=contract, rngs=rngs)

        self.first, self.second = linear(inputs), linear(outputs)
        # As GCC's code has them: in the perceptron, after it, and after the layer.
        self.norms = nnx.List([BatchNorm(outputs) for _ in range(3 if norm else 0)])
        self.aggregation: Aggregation = aggregation

    def __call__(
        self,
        x: Float[Array, "*graphs nodes inputs"],
        adj: Float[Array, "*graphs nodes nodes"],
        mask: Bool[Array, "*graphs nodes"] | None,
    ) -> Float[Array, "*graphs nodes outputs"]:
        """The next features."""
        x = self.first(x + aggregate(adj, x, self.aggregation))
        if not self.norms:
            x = jax.nn.relu(self.second(jax.nn.relu(x)))
        else:
            x = self.second(jax.nn.relu(self.norms[0](x, mask)))
            for norm in (self.norms[1], self.norms[2]):
                x = jax.nn.relu(norm(x, mask))
        return x if mask is None else jnp.where(mask[..., None], x, 0)


class GIN(nnx.Module):
    """The module behind :func:`gin`."""

    def __init__(
        self,
        features: int,
        layers: int,
        width: int,
        aggregation: Aggregation,
        norm: bool,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        sizes = [features, *[width] * (layers - 1)]
        self.layers = nnx.List([GINLayer(n, width, aggregation, norm, dtype, rngs) for n in sizes])
        self.features, self.dtype = features, dtype

    def __call__(
        self,
        x: Float[Array, "*graphs nodes features"],
        adj: Float[Array, "*graphs nodes nodes"],
        mask: Bool[Array, "*graphs nodes"] | None = None,
    ) -> tuple[Float[Array, "*graphs nodes width"], ...]:
        """Features of the nodes after each layer."""
        if x.ndim < 2 or x.shape[-1] != self.features:
            raise ValueError(f"x: expected [..., nodes, {self.features}], got shape {x.shape}")
        if adj.shape != (*x.shape[:-1], x.shape[-2]):
            raise ValueError(f"adj: expected {(*x.shape[:-1], x.shape[-2])} for x {x.shape}, got {adj.shape}")
        if mask is not None and mask.shape != x.shape[:-1]:
            raise ValueError(f"mask: expected {x.shape[:-1]}, got {mask.shape}")
        if self.dtype is not None:
            x = x.astype(self.dtype)
        hidden = []
        for layer in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x = layer(x, adj, mask)
            hidden.append(x)
        return tuple(hidden)


class GINEncoder(nnx.Module):
    """The module behind :func:`gin_encoder`."""

    def __init__(
        self,
        features: int,
        layers: int,
        width: int,
        outputs: int,
        aggregation: Aggregation,
        readout: Readout,
        ego: bool,
        norm: bool,
        dropout: float,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        self.gin = GIN(features, layers, width, aggregation, norm, dtype, rngs)
        pooled = 2 if ego else 1
        self.readouts = nnx.List(
            [
                nnx.Linear(
                    pooled * n, outputs, dtype=dtype, kernel_init=HE_NORMAL, dot_general=contract, rngs=rngs
                )
                for n in [features, *[width] * layers]
            ]
        )
        self.readout, self.ego, self.dropout = readout, ego, dropout

    def __call__(
        self,
        x: Float[Array, "*graphs nodes features"],
        adj: Float[Array, "*graphs nodes nodes"],
        mask: Bool[Array, "*graphs nodes"] | None = None,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*graphs outputs"]:
        """Embeddings of length one."""
        hidden = (x, *self.gin(x, adj, mask))
        exact = jnp.promote_types(hidden[-1].dtype, jnp.float32)
        total = jnp.zeros((), exact)
        for number, (h, linear) in enumerate(zip(hidden, self.readouts, strict=True)):
            where = None if mask is None else mask[..., None]
            if self.readout == "sum":
                pooled = jnp.sum(h, -2, dtype=exact, where=where)
            else:
                # A graph without nodes has no mean; its sum over one is 0.
                count = h.shape[-2] if mask is None else jnp.maximum(mask.sum(-1, keepdims=True), 1)
                pooled = jnp.sum(h, -2, dtype=exact, where=where) / count
            if self.ego:
                pooled = jnp.concatenate([pooled, h[..., 0, :].astype(exact)], -1)
            score = linear(pooled.astype(hidden[-1].dtype)).astype(exact)
            if self.dropout and dropout_key is not None:
                key = jax.random.fold_in(dropout_key, number)
                kept = jax.random.bernoulli(key, 1 - self.dropout, score.shape)
                score = jnp.where(kept, score / (1 - self.dropout), 0)
            total = total + score
        squared = jnp.sum(total * total, -1, keepdims=True)
        return total * jax.lax.rsqrt(jnp.maximum(squared, 1e-10))


def gin(
    features: int,
    *,
    layers: int = 5,
    width: int = 64,
    aggregation: Aggregation = "sum",
    norm: bool = True,
    dtype: DTypeLike | None = None,
) -> NormalisedModel:
    """Node features from rounds of messages between neighbours.

    ``h <- relu(B relu(A (h + sum of the neighbours' h) + a) + b)``; with ``norm``, batch normalisation over
    all real nodes before each relu, and once more, with another relu, after the layer

    Args:
      features: Features of a node.
      layers: Rounds of messages. GCC's and Xu's programs count the input as a layer, too.
      width: Features of a node after each.
      aggregation: "sum"; "mean" divides it by the number of neighbours, "sqrt" by its square root.
      norm: Whether there is batch normalisation.
      dtype: Type of the computation; by default that of features and parameters.

    Returns:
      ``apply(params, x [..., nodes, features], adj [..., nodes, nodes], mask [..., nodes] = None)`` gives a
      tuple with ``[..., nodes, width]`` for each layer. Nodes where the mask is false are padding: their
      rows and columns in ``adj`` must be 0; their features come out as 0 and count in no statistic.

    Raises:
      ValueError: If an argument is none of these, or shapes do not fit.

    Source:
      Xu et al. 2019, arXiv:1810.00826, Equation 4.1 with epsilon = 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import gin
      >>> model = gin(3, layers=2, width=8)
      >>> params = model.init(jax.random.key(0))
      >>> [h.shape for h in model.apply(params, jnp.ones((4, 5, 3)), jnp.ones((4, 5, 5)))]
      [(4, 5, 8), (4, 5, 8)]
    """
    _check(aggregation, features=features, layers=layers, width=width)
    return bridge_normalised(lambda rngs: GIN(features, layers, width, aggregation, norm, dtype, rngs))


def gin_encoder(
    features: int,
    *,
    layers: int = 5,
    width: int = 64,
    outputs: int = 64,
    aggregation: Aggregation = "sum",
    readout: Readout = "sum",
    ego: bool = False,
    norm: bool = True,
    dropout: float = 0.0,
    dtype: DTypeLike | None = None,
) -> NormalisedModel:
    """An embedding of length one for each graph: GCC's encoder.

    ``z = sum_l (U_l pool(h_l) + u_l),  z / |z|`` over the input l = 0 and the layers of :func:`gin`; with
    ``ego`` U_l reads the pool and the features of node 0

    Args:
      features: Features of a node.
      layers: Rounds of messages.
      width: Features of a node after each.
      outputs: Length of an embedding.
      aggregation: Of the neighbours, as for :func:`gin`.
      readout: Whether nodes are summed, as in GCC, or averaged.
      ego: Whether node 0, of which the graph is the neighbourhood, is read beside the pool.
      norm: Whether there is batch normalisation.
      dropout: Share of each layer's read-out that is dropped in training; 0.5 in GCC's code.
      dtype: Type of the computation; by default that of features and parameters. Sums over nodes and the
        embeddings are in float32.

    Returns:
      ``apply(params, x [..., nodes, features], adj [..., nodes, nodes], mask [..., nodes] = None,
      dropout_key=None)`` gives ``[..., outputs]``; without a key nothing is dropped.

    Raises:
      ValueError: If an argument is none of these, or shapes do not fit.

    Source:
      Xu et al. 2019, arXiv:1810.00826, Equation 4.2; Qiu et al. 2020, arXiv:2006.09963, Section 3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import gin_encoder
      >>> model = gin_encoder(3, layers=2, width=8, outputs=4)
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((6, 5, 3)), jnp.ones((6, 5, 5))).shape
      (6, 4)
    """
    _check(aggregation, features=features, layers=layers, width=width, outputs=outputs)
    if readout not in READOUTS:
        raise ValueError(f"readout: expected one of {', '.join(READOUTS)}, got {readout!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected at least 0 and less than 1, got {dropout}")
    return bridge_normalised(
        lambda rngs: GINEncoder(
            features, layers, width, outputs, aggregation, readout, ego, norm, dropout, dtype, rngs
        )
    )


def _check(aggregation: str, **sizes: int) -> None:
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation: expected one of {', '.join(AGGREGATIONS)}, got {aggregation!r}")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
