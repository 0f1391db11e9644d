"""Write a report on a run: tables, plots and one self-contained page."""
