"""The files that let sentence-transformers load an artifact as one of its models."""

import json
from pathlib import Path
from typing import Final

from anna_export.prompts import PROMPTS_FILE, Prompts
from anna_export.staging import write_text

MODULES_FILE: Final = "modules.json"
MODULE_CLASS: Final = "anna_export.st.AnnaEncoder"


def write_st_files(folder: Path, prompts: Prompts) -> None:
    """Write modules.json, which names our module, and the prompts."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": MODULE_CLASS}]
    write_text(folder / MODULES_FILE, json.dumps(modules, indent=2) + "\n")
    config = {
        "prompts": prompts.fronts(),
        "default_prompt_name": prompts.default,
        "similarity_fn_name": "cosine",
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    write_text(folder / PROMPTS_FILE, text + "\n")
