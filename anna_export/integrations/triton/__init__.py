"""An artifact as a model repository of Triton Inference Server; experimental.

Its configs are of Triton's published schema, and its tokenizer and graph give the artifact's
vectors, but no Triton server has run it.
"""
