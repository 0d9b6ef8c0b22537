"""All claims by their identifiers, in the order in which `dlnjax reproduce` measures them."""

from . import (
    azu21,
    b23,
    b25,
    b25_limits,
    epgf23,
    gis20,
    hoff17,
    ms25,
    pf23,
    w23,
    woo20,
)
from .claim import Claim

# This one is a figure and distributions rather than numbers: `dlnjax reproduce` draws it.
FIGURE = "B25-fig1"

CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in [
        *b25.CLAIMS,
        Claim(FIGURE, "the averaged flow at ε = 1e-5 tracks the lasso path at μ = s", None),
        *b25_limits.CLAIMS,
        *b23.CLAIMS,
        *w23.CLAIMS,
        *woo20.CLAIMS,
        *azu21.CLAIMS,
        *pf23.CLAIMS,
        *ms25.CLAIMS,
        *epgf23.CLAIMS,
        *hoff17.CLAIMS,
        *gis20.CLAIMS,
    ]
}
