"""Compare finished runs by quality and cost (``tdistill compare``).

- collect: students read out of runs                  - data: students and methods
- comparing: the whole comparison, pooled over seeds  - frontier: methods at equal entropy
- table, figure: what the pages show                  - pages: the pages and their rows
"""
