"""The public names. `__init__.py` imports each of them when it is first used."""

from . import (
    generators as generators,
    graphs as graphs,
    metrics as metrics,
    networks as networks,
    plot as plot,
)
from ._batching import batched as batched
from ._cache import enable_cache as enable_cache
from ._end_point.bregman import bregman_projection as bregman_projection
from ._end_point.end_point import end_point as end_point, limit_point as limit_point
from ._end_point.null_space import (
    NullSpaceConstant as NullSpaceConstant,
    null_space_constant as null_space_constant,
)
from ._end_point.point import EndPoint as EndPoint
from ._end_point.potential import (
    inverse_mirror_map as inverse_mirror_map,
    mirror_map as mirror_map,
    potential as potential,
)
from ._flow.auto_tsit5 import AutoTsit5 as AutoTsit5
from ._flow.crossings import CrossingTimes as CrossingTimes, crossing_times as crossing_times
from ._flow.formulations import (
    AcceleratedForm as AcceleratedForm,
    DualForm as DualForm,
    MomentumForm as MomentumForm,
    WeightForm as WeightForm,
)
from ._flow.gradient_flow import Flow as Flow, gradient_flow as gradient_flow
from ._flow.loss_times import LossTimes as LossTimes, loss_times as loss_times
from ._flow.margin_flow import MarginFlow as MarginFlow, margin_flow as margin_flow
from ._flow.rodas5p import Rodas5P as Rodas5P
from ._flow.stochastic import (
    StochasticFlow as StochasticFlow,
    stochastic_flow as stochastic_flow,
)
from ._gap import (
    SuboptimalityGap as SuboptimalityGap,
    certificate as certificate,
    eta as eta,
    suboptimality_gap as suboptimality_gap,
)
from ._lasso.basis_pursuit import (
    BasisPursuit as BasisPursuit,
    basis_pursuit as basis_pursuit,
)
from ._lasso.max_margin import MaxMargin as MaxMargin, max_margin as max_margin
from ._lasso.monotone import (
    is_always_monotone as is_always_monotone,
    is_z_matrix as is_z_matrix,
)
from ._lasso.path import lasso_path as lasso_path
from ._lasso.point import LassoPoint as LassoPoint, lasso as lasso
from ._laws.design import GaussianDesign as GaussianDesign
from ._laws.graph import GaussianGraph as GaussianGraph
from ._laws.lasso import (
    LassoAsymptotics as LassoAsymptotics,
    lasso_asymptotics as lasso_asymptotics,
    optimal_stopping as optimal_stopping,
)
from ._laws.message_passing import (
    MessagePassing as MessagePassing,
    StateEvolution as StateEvolution,
    message_passing as message_passing,
    state_evolution as state_evolution,
)
from ._limit.limit_flow import limit_flow as limit_flow
from ._path import (
    LassoPath as LassoPath,
    LimitFlow as LimitFlow,
    PiecewiseLinearPath as PiecewiseLinearPath,
)
from ._problem import (
    AbstractLoss as AbstractLoss,
    AbstractProblem as AbstractProblem,
    Exponential as Exponential,
    ExponentialLoss as ExponentialLoss,
    GeneralizedLinear as GeneralizedLinear,
    Huber as Huber,
    HuberLoss as HuberLoss,
    LeastSquares as LeastSquares,
    Logistic as Logistic,
    LogisticLoss as LogisticLoss,
    MatrixFree as MatrixFree,
    Poisson as Poisson,
    PoissonLoss as PoissonLoss,
    Quadratic as Quadratic,
    Schedule as Schedule,
    degree_profile as degree_profile,
    walsh as walsh,
)
from ._problem.check_loss import check_loss as check_loss
from ._results import RESULTS as RESULTS
from ._sweep.opening import open_sweep as open_sweep
from ._sweep.run import run_sweep as run_sweep
from ._sweep.spec import KnotGrid as KnotGrid, Sweep as Sweep
from ._train.accelerated import (
    continuized_nesterov as continuized_nesterov,
    jacobi as jacobi,
)
from ._train.effective import (
    EffectiveInitialization as EffectiveInitialization,
    effective_initialization as effective_initialization,
)
from ._train.gossip import GossipRates as GossipRates, gossip_rates as gossip_rates
from ._train.sharpness import sharpness as sharpness
from ._train.train import Training as Training, train as train
from ._version import __version__ as __version__
from .metrics import Metric as Metric
from .networks import (
    UV as UV,
    Deep as Deep,
    Layers as Layers,
    Linear as Linear,
    Pretrained as Pretrained,
    USquared as USquared,
)
from .networks.base import (
    AbstractDualNetwork as AbstractDualNetwork,
    AbstractNetwork as AbstractNetwork,
    Constant as Constant,
)
from .networks.check import check_network as check_network
from .networks.growth import Growth as Growth
