"""The types of all public names are known: `pyright --verifytypes`, less what its imports lack.

Untyped are the metaclass of equinox's enumerations, and so `RESULTS` and all that has a `result`,
and scikit-learn's base classes. What our own annotations lack, pyright says besides.
"""

import json
import subprocess
import sys

THEIRS = ("partially unknown", "metaclass unknown", "base class unknown")

command = ["pyright", "--verifytypes", "dlnjax", "--ignoreexternal", "--outputjson"]
report = json.loads(subprocess.run(command, capture_output=True, check=False).stdout)
symbols = report["typeCompleteness"]["symbols"]
ours = [
    f"{symbol['name']}: {found['message']}"
    for symbol in symbols
    for found in symbol["diagnostics"]
    if found["severity"] == "error" and not any(text in found["message"] for text in THEIRS)
]
print("\n".join(ours))
print(f"types: {len(symbols)} public names and what they refer to, {len(ours)} untyped")
sys.exit(bool(ours) or not symbols)
