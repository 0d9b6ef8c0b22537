"""All claims by their identifiers, in the order in which `dlnjax reproduce` measures them."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import (
    azu21,
    b23,
    b25,
    b25_limits,
    bl22,
    bmz23,
    dec26,
    ebbf21,
    ebbf21_gossip,
    epgf23,
    gb21,
    gis20,
    gun18,
    hoff17,
    jac25,
    lyu24,
    mb23,
    mbbb24,
    mor20,
    ms25,
    pap24,
    pba24,
    pes21,
    pf23,
    w23,
    woo20,
    zhao26,
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
        *jac25.CLAIMS,
        *gis20.CLAIMS,
        *pes21.CLAIMS,
        *pap24.CLAIMS,
        *zhao26.CLAIMS,
        *dec26.CLAIMS,
        *mor20.CLAIMS,
        *gun18.CLAIMS,
        *pba24.CLAIMS,
        *ebbf21.CLAIMS,
        *ebbf21_gossip.CLAIMS,
        *bl22.CLAIMS,
        *bmz23.CLAIMS,
        *mbbb24.CLAIMS,
        *lyu24.CLAIMS,
        *gb21.CLAIMS,
        *mb23.CLAIMS,
    ]
}


@dataclasses.dataclass(frozen=True)
class Ledger:
    lines: list[str]
    content: dict[str, Any]
    holds: bool


def measure(ids: Sequence[str], track: Callable[..., Iterable]) -> Ledger:
    """The rows of the claims `ids`."""
    rows, seconds = [], {}
    for id in track(ids, description="claims"):
        function = CLAIMS[id].measure
        assert function is not None, f"{id} is a figure, without rows"
        start = time.perf_counter()
        rows += function()
        seconds[id] = time.perf_counter() - start
    failed = [row for row in rows if not row.holds]
    lines, last = [], ""
    for row in rows:
        if row.id != last:
            lines.append(f"{row.id}: {CLAIMS[row.id].statement} ({seconds[row.id]:.1f} s)")
            last = row.id
        stated = (
            f"at most {row.stated:.9g}" if row.kind == "at most" else f"stated {row.stated:.9g}"
        )
        lines += [
            f"  {'holds' if row.holds else 'FAILS'}  {row.claim}",
            f"         {stated}, measured {row.measured:.9g}, tolerance {row.tolerance:.2g}: "
            f"{row.why}",
        ]
    summary = f"{len(rows) - len(failed)} of {len(rows)} measurements hold"
    if failed:
        ids_failed = ", ".join(dict.fromkeys(row.id for row in failed))
        summary += f"; FAILS: {ids_failed}"
    content = {
        "rows": [dataclasses.asdict(row) | {"holds": row.holds} for row in rows],
        "seconds": seconds,
    }
    return Ledger([*lines, summary], content, not failed)
