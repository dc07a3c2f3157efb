"""The whole project on a small model: train, export, prove, measure."""
