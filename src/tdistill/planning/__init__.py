"""Say before a run what it takes: memory, disk, tokens and time of every stage, without loading a weight.

- sizes: teacher and student on the meta device    - activations: what a backward pass keeps, counted on fake tensors
- head: the memory of logits and their gradients   - memory, disk, time: what a stage takes, one equation a part
- lengths: tokens and candidates                   - machines: what is free here, and public peak numbers of devices
- plan: the stages of a recipe                     - advice: settings that make it fit    - pages: tables and JSON
"""
