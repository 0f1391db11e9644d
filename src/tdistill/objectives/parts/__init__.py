"""Compute what several algorithms share.

``divergence``       KL, Jensen-Shannon, with hand-written derivatives      ``support``     the distributions that they compare
``gauge``            which Q the logits stand for                           ``clip``        a lower limit of Q
``phi``              φ of inverse Q-learning                                ``value_term``  its value terms
``transition``       transitions with the teacher's reward                  ``windows``     squared errors over windows
``q_regression``     regression of Q to two rewards                         ``td_metrics``  metrics of temporal differences
``policy_gradient``  importance ratios and centred rewards                  ``expert``      who took a step
"""
