"""The papers, run end to end: one module for each, the claims it must show, and the command line.

``python -m experiments list`` shows what there is. A module is imported only when it is run, so that
the command line answers at once.
"""
