"""Diagonal linear networks and the lasso regularisation path."""

import lazy_loader

# The names are those of `__init__.pyi`. Each is imported when it is first used, so that the command
# line answers without the seconds that JAX and diffrax take to import.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
