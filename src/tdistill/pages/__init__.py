"""Draw tables, figures and pages. Knows no run."""
