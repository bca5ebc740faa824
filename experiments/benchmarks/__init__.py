"""One module for each benchmark, with `run(repeats=...) -> dict`; `python -m experiments bench` runs them."""
