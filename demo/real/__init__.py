"""`make demo-real`: a model that others trained, all the way: tuned, exported, proved, measured."""
