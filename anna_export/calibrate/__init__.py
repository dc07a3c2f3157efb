"""Calibration: what a quantised scheme must know of a model, learnt layer by layer."""
