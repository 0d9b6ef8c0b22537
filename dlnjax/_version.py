"""The version, and what made a result, for the file that holds it."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__version__ = "0.1.0"

PACKAGES = ("jax", "jaxlib", "diffrax", "equinox", "numpy", "zarr")


def provenance() -> dict[str, Any]:
    """Versions, of packages that are installed, and the kind of device of this process."""
    import jax  # not when only the version is asked for

    versions = {"dlnjax": __version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # zarr is an extra
            continue
    device = jax.local_devices()[0]
    return {
        "versions": versions | {"python": platform.python_version()},
        "device": {"platform": device.platform, "kind": device.device_kind},
    }
