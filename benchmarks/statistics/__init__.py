"""Whether intervals and verdicts are right, and scores those of plain mteb."""
