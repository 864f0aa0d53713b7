"""Studies over runs: ablations, comparisons, and reports that people can look at."""
