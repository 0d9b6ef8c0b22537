"""Diagonal linear networks: each a file, on the interfaces of `base.py`.

`link.py` is how the flow evaluates their links, `check.py` tests a network of one's own.
"""

from .base import (
    AbstractDualNetwork as AbstractDualNetwork,
    AbstractNetwork as AbstractNetwork,
    Constant as Constant,
    Growth as Growth,
)
from .deep import Deep as Deep
from .depth2 import UV as UV, USquared as USquared
from .linear import Linear as Linear
