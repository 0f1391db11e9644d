"""Write a report on a run. ``data``: what it shows; ``pooled``: scores over seeds; ``tables``, ``plots``: how; ``sections``: in which order."""
