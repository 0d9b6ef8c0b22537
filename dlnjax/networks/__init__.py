"""Diagonal linear networks: parametrisations `x = network()` of a linear model.

- `base.py`: the interfaces `AbstractNetwork` (weights) and `AbstractDualNetwork` (link function).
- `depth2.py`, `deep.py`, `layers.py`, `linear.py`: the networks of the library.
- `mixed_depth.py`: some coordinates of depth 1 before those of a network.
- `single_index.py`, `gaussian.py`: a shallow network by its Hermite coefficients, and `hermite`.
- `single_location.py`: an attention layer, by expectations on quadrature nodes.
- `pretrained.py`: a network that starts at a given linear model.
- `steps.py`: a shallow network of one variable.
- `two_timescale.py`: a network with weights that are at their optimum at every time.
- `growth_time.py`: the growth time of a product of layers, and its inverse.
- `growth.py`: the link of a network as an exponential or a power, relative to its start.
- `prior.py`: where a network starts, as `ε → 0`.
- `signs.py`: arrays with one row for each sign.
- `check.py`: `check_network`, a test for networks of users.
"""

from .base import (
    AbstractDualNetwork as AbstractDualNetwork,
    AbstractNetwork as AbstractNetwork,
    Constant as Constant,
)
from .deep import Deep as Deep
from .depth2 import UV as UV, USquared as USquared
from .gaussian import hermite as hermite
from .growth import Growth as Growth
from .layers import Layers as Layers
from .linear import Linear as Linear
from .mixed_depth import MixedDepth as MixedDepth
from .pretrained import Pretrained as Pretrained
from .single_index import SingleIndex as SingleIndex
from .single_location import SingleLocation as SingleLocation
from .steps import Steps as Steps
from .two_timescale import TwoTimescale as TwoTimescale
