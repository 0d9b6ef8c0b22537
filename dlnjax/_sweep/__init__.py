"""Sweeps over many instances: what is asked (`spec.py`, `arguments.py`, `toml.py`), one cell as a
program (`program.py`), running it (`run.py`), and the store on disk (`store.py`).
"""
