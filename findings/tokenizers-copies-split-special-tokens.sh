#!/usr/bin/env bash
# tokenizers 0.23.3: Tokenizer.encode_special_tokens, and copies of the tokenizer.
#
# One would guess: a tokenizer that was pickled, or deep-copied, gives the ids of the one it was made of.
# What happens: encode_special_tokens is no part of the serialised form. A copy has it off: special tokens that are
# written in a text, which the original takes for plain text, are special tokens to the copy. Nothing warns.
#
# Seen (2026-12-01): "</s>" has the ids of its letters in the original, and 2 in either copy.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check tokenizers==0.23.3
"$dir/venv/bin/python" - <<'PY'
import copy
import pickle

from tokenizers import AddedToken, Tokenizer, models

names = ["<unk>", "<s>", "</s>", "<", "/", "s", ">"]
tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, [], unk_token="<unk>"))
tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
tokenizer.encode_special_tokens = True
ids = tokenizer.encode("</s>").ids
print("original:", ids)
assert ids == [3, 4, 5, 6]
for way, copied in (("pickled", pickle.loads(pickle.dumps(tokenizer))), ("copied", copy.deepcopy(tokenizer))):
    print(f"{way}: {copied.encode('</s>').ids}")
    assert copied.encode("</s>").ids == [2] and not copied.encode_special_tokens, "copies keep it now"
PY
