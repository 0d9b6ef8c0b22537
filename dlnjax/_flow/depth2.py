"""What flows other than the gradient's need of a network of depth 2: the flow of `log |p|`.

Each weight `p` of `u∘v` (`p_± = (u ± v)/2`), `u∘u` or `u∘u − v∘v` has `q = p²`, and a force on it
that is `p` times a function of `x`. So its logarithm moves at a velocity that is the same function
for every `p`, and `w = 2 log |p|/log ε` is the state, at any `ε`:

    d log |p|/dt = c a,    dw/ds = −a,    a^± = ∓∇ℓ(x) − λ,

where `c` is 1 for `u∘v` and 2 for the others.
"""

from jaxtyping import Array, Float

from ..networks import UV, AbstractNetwork, Deep, Pretrained, USquared


def check_depth_2(network: AbstractNetwork, what: str) -> None:
    """**Raises:** `TypeError` unless each weight `p` of `network` is one of `q = p²`."""
    inner = network.network if isinstance(network, Pretrained) else network
    is_deep = isinstance(inner, Deep) and not isinstance(inner.depth, int)
    if is_deep or not isinstance(inner, UV | USquared | Deep):
        name = f"`{type(inner).__name__}`" + (" at a depth above 2" if is_deep else "")
        raise TypeError(
            f"{what} is known at depth 2, where the flow of a weight is linear in it, got {name}. "
            "Use `UV(u, v)`, `USquared(u)` or `Deep(u, v, depth=2)`."
        )


def weight_rate(network: AbstractNetwork, log_eps: Float[Array, ""]) -> Float[Array, ""]:
    """`c`, by which `d log |p|/dt` exceeds `−dw/ds`."""
    return -log_eps / (2 * network.time_scale(log_eps))
