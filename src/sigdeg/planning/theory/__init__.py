"""Operator merging: the exact theory behind the plans, for Gaussian data and for mixtures.

`operators` says what a merge does, `budget` what a plan costs and reaches, `programmes` and
`pareto` search all plans, `phase` and `recommend` say which is best, `trained` carries one out, and
`mixture` is the regime in which no training time suffices.

Reference:
    Operator merging (arXiv 2505.16024), for all of it.
"""
