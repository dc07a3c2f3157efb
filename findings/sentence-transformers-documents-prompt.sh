#!/usr/bin/env bash
# sentence-transformers 6.2.0: SentenceTransformer.encode_document of a model whose prompts are query and passage.
#
# One would guess: documents get the prompt named passage. The method's documentation says that it takes the first
# of document, passage and corpus that the model has.
# What happens: every model has a prompt named document, which the constructor adds without words, so the other two
# names are never reached. Documents are embedded without a prompt; nothing is said.
#
# Seen (2026-12-01): prompts are {'query': 'query: ', 'document': '', 'passage': 'passage: '} and encode_document
# takes document.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check sentence-transformers==6.2.0
"$dir/venv/bin/python" - <<'PY'
import torch
from sentence_transformers import SentenceTransformer


class Recorder(SentenceTransformer):
    def encode(self, inputs, prompt_name=None, **_):
        return prompt_name


model = Recorder(modules=[torch.nn.Identity()], prompts={"query": "query: ", "passage": "passage: "})
taken = model.encode_document(["a"])
print(f"prompts are {model.prompts} and encode_document takes {taken}")
assert taken == "document" and not model.prompts["document"], "passage is taken now"
PY
