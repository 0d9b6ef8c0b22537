"""Diagonal linear networks and the lasso regularisation path."""

from ._batched import batched as batched
from ._bregman import bregman_projection as bregman_projection
from ._check_network import check_network as check_network
from ._diagonal import UV as UV, Deep as Deep, USquared as USquared
from ._effective import (
    EffectiveInitialization as EffectiveInitialization,
    effective_initialization as effective_initialization,
)
from ._flow._formulation import DualForm as DualForm, WeightForm as WeightForm
from ._flow._gradient_flow import Flow as Flow, gradient_flow as gradient_flow
from ._flow._jump_times import JumpTimes as JumpTimes, jump_times as jump_times
from ._flow._rosenbrock import Rodas5P as Rodas5P
from ._interpolator import (
    Interpolator as Interpolator,
    interpolator as interpolator,
    limit_point as limit_point,
)
from ._lasso._basis_pursuit import BasisPursuit as BasisPursuit, basis_pursuit as basis_pursuit
from ._lasso._homotopy import lasso_path as lasso_path
from ._lasso._proximal import LassoPoint as LassoPoint, lasso as lasso
from ._limit import limit_flow as limit_flow
from ._linear import Linear as Linear
from ._monotone import is_always_monotone as is_always_monotone, is_z_matrix as is_z_matrix
from ._network import (
    AbstractDualNetwork as AbstractDualNetwork,
    AbstractNetwork as AbstractNetwork,
    Constant as Constant,
    Growth as Growth,
)
from ._path import LimitFlow as LimitFlow, PiecewiseLinearPath as PiecewiseLinearPath
from ._potential import (
    inverse_mirror_map as inverse_mirror_map,
    mirror_map as mirror_map,
    potential as potential,
)
from ._problem import (
    AbstractProblem as AbstractProblem,
    LeastSquares as LeastSquares,
    Quadratic as Quadratic,
)
from ._rates import (
    NullSpaceConstant as NullSpaceConstant,
    null_space_constant as null_space_constant,
)
from ._solution import RESULTS as RESULTS
from ._sweep import _generators as generators, _metrics as metrics  # noqa: F401
from ._sweep._metrics import Metric as Metric
from ._sweep._run import run_sweep as run_sweep
from ._sweep._spec import KnotGrid as KnotGrid, Sweep as Sweep
from ._sweep._store import open_sweep as open_sweep
from ._theory import (
    SuboptimalityGap as SuboptimalityGap,
    certificate as certificate,
    eta as eta,
    suboptimality_gap as suboptimality_gap,
)
from ._training import Training as Training, train as train
from ._version import __version__ as __version__
