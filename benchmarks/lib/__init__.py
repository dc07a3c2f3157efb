"""What benchmarks share: figures, the machine's peaks, models, charts."""
