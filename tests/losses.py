"""One of several losses, which may be traced: one program serves all of them."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

import dlnjax as dln


class Mixed(dln.AbstractLoss):
    """The logistic loss, Poisson's, Huber's and the exponential one, by `kind`."""

    kind: Shaped[Array, ""]
    delta: Float[Array, ""]

    def _of(self, method, u, y):
        losses = (
            dln.LogisticLoss(),
            dln.PoissonLoss(),
            dln.HuberLoss(self.delta),
            dln.ExponentialLoss(),
        )
        return jnp.stack([getattr(loss, method)(u, y) for loss in losses])[self.kind]

    def value(self, u, y):
        return self._of("value", u, y)

    def derivative(self, u, y):
        return self._of("derivative", u, y)

    def curvature(self, u, y):
        return self._of("curvature", u, y)

    def conjugate(self, p, y):
        return self._of("conjugate", p, y)
