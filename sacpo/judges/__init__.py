"""Judges: they compare a policy's answers with the baseline's. The `judge` step knows no judge's insides."""
