"""The machine: processor, memory, GPU, versions."""
