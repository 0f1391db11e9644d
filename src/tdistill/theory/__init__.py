"""Check the paper's propositions, the bias of top-p IQ-Learn and compounding errors on MDPs small enough to solve exactly."""
