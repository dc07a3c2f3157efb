"""The data doctor: what is wrong with training rows, found before any minute of training."""
