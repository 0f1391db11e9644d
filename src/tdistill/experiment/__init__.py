"""Turn a recipe into artefacts: models, roll-outs, students, measurements, a report."""
