"""Check the paper's propositions exactly on small MDPs, and measure what they leave open.

- instances: random MDPs, token trees, a road          - propositions: P1–P4 on random MDPs
- sweeps, imitation: the cost of a cut, the bias of α   - compounding: regret over growing horizons
- estimators, optimum, estimator_rows: bias and noise of gradients, and optima, on token trees
- checks: the whole command                            - plots, report, estimator_report: its figures and pages
"""
