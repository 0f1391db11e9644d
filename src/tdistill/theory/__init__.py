"""The paper's propositions, the bias of top-p IQ-Learn and compounding errors, checked on MDPs small enough to solve exactly."""
