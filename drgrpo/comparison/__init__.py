"""A comparison of configurations: arms (a name and overrides) times seeds, and the report on them.

`python -m drgrpo.comparison RESULTS_DIR OUT_DIR [ARM ...]` makes a report from results that are there already, also
from several comparisons; the first arm named is the one that the others are compared with.
"""
