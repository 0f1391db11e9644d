"""Draw tables, figures and pages. Nothing here knows what a run is."""
