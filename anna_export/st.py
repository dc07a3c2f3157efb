"""The name that artifacts give sentence-transformers in modules.json: it stays importable."""

from anna_export.integrations.sentence_transformer import AnnaEncoder as AnnaEncoder
