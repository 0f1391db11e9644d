"""Write a report on a run.

- data: all that a report shows              - pooled: systems and differences from scores by training seed
- sections: the sections, listed once        - tables, plots: what stands in them
- sparsity_page: the page on the teacher's sparsity
"""
