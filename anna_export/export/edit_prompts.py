"""Change the prompts of a finished artifact; its weights and graphs are not written again."""

import os
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from anna_export import quantise
from anna_export.artifact.evidence import add_evidence
from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import CARD_FILE, MANIFEST_FILE, PARITY_FILE, hash_file
from anna_export.artifact.prefixes import with_prefixes
from anna_export.errors import ExistsError, InputError
from anna_export.export.bake import bake, prefix_bytes
from anna_export.files.atomic import make_parents, staged
from anna_export.files.disk import require_disk
from anna_export.progress import Progress
from anna_export.report.card import model_card
from anna_export.text.prompts import PROMPTS_FILE, Prompts
from anna_export.text.st_files import write_prompts
from anna_export.verify.parity_file import read_parity
from anna_export.weights.checkpoint import Checkpoint


def add_prompts(
    folder: Path,
    added: Prompts,
    *,
    overwrite: bool,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Add prompts to an artifact, which then is the old one or the new one at every moment.

    Args:
        folder: The artifact's.
        added: What to add; its default, if it has one, becomes the artifact's.
        overwrite: Replace prompts of the same names.
        checkpoint: What the artifact was made from, to compute their prefixes exactly; None for
            the artifact's own weights.
        progress: Told how many of their tokens are computed.

    Raises:
        ExistsError: If a name is taken by another prompt, and may not be replaced.
        InputError: If a prompt leaves no room for a text, or the artifact was made from something
            else.
    """
    artifact = open_artifact(folder)
    if checkpoint is not None and not artifact.manifest.source.is_of(checkpoint.source_hashes()):
        raise InputError(
            f"expected the model and adapter that {folder} was made from, found others; leave them "
            "out to compute prompts with the artifact's stored weights"
        )
    current = artifact.manifest.prompts
    taken = [
        name
        for name, prompt in added.by_name.items()
        if current.by_name.get(name, prompt) != prompt
    ]
    if taken and not overwrite:
        raise ExistsError(
            f"expected new names, found {', '.join(taken)} with other prompts in {folder}; "
            "`overwrite` replaces them"
        )
    documents = {
        name: documents_name
        for name, documents_name in current.documents.items()
        if name not in added.by_name
    }
    return _with_prompts(
        artifact,
        Prompts(
            {**current.by_name, **added.by_name},
            added.default or current.default,
            {**documents, **added.documents},
        ),
        added.by_name,
        checkpoint,
        progress,
    )


def remove_prompts(folder: Path, names: Collection[str]) -> Artifact:
    """Remove prompts from an artifact; where the default goes, there is none.

    Raises:
        InputError: If there is no prompt of a name, or documents of another use it.
    """
    artifact = open_artifact(folder)
    current = artifact.manifest.prompts
    for name in names:
        if name not in current.by_name:
            raise InputError(
                f"expected known prompts ({', '.join(sorted(current.by_name)) or 'none'}), found "
                f"{name!r}"
            )
    left = {
        name: documents_name
        for name, documents_name in current.documents.items()
        if name not in names
    }
    if users := [name for name, documents_name in left.items() if documents_name in names]:
        raise InputError(
            f"expected prompts that no other needs, found the documents of {', '.join(users)} "
            "prompted by one; remove them together"
        )
    return _with_prompts(
        artifact,
        Prompts(
            {name: prompt for name, prompt in current.by_name.items() if name not in names},
            None if current.default in names else current.default,
            left,
        ),
    )


def proved_prompts(artifact: Artifact) -> set[str]:
    """Return the names of the prompts that the stored proof covers as they are now."""
    entry, hashes = artifact.manifest.evidence.get(PARITY_FILE), artifact.manifest.prompts.hashes()
    if entry is None or entry.covers != artifact.manifest.artifact_id:
        return set()
    return {name for name, digest in entry.prompts.items() if hashes.get(name) == digest}


def _with_prompts(
    artifact: Artifact,
    prompts: Prompts,
    to_bake: Collection[str] = (),
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Put a folder in the artifact's place that shares all files but those that tell prompts.

    Args:
        artifact: What is replaced.
        prompts: All that it is to have.
        to_bake: Names of those whose prefixes are computed; the others keep theirs.
        checkpoint: What computes them; None for the artifact's own weights.
        progress: Told how many tokens of these are done.
    """
    manifest, tokeniser = artifact.manifest, artifact.tokeniser()
    tokeniser.require_room(prompts.by_name.values())
    new = [prompts.by_name[name] for name in to_bake]
    scheme = quantise.scheme_of(manifest)
    require_disk(artifact.folder, prefix_bytes(manifest.spec, scheme, tokeniser, new))
    proof = read_parity(artifact)
    with staged(artifact.folder, overwrite=True, holding=MANIFEST_FILE) as folder:
        shutil.copytree(
            artifact.folder, folder, symlinks=True, copy_function=_link, dirs_exist_ok=True
        )
        write_prompts(folder, prompts, manifest.similarity)
        files = {**manifest.files, PROMPTS_FILE: hash_file(folder / PROMPTS_FILE)}
        given_prompts = sorted({*manifest.given_prompts, *to_bake} & prompts.by_name.keys())
        update = {"prompts": prompts, "given_prompts": given_prompts, "files": files}
        edited = Artifact(folder, manifest.model_copy(update=update))
        remaining = {
            name: entry
            for name, entry in manifest.prefixes.items()
            if name in prompts.by_name and name not in to_bake
        }
        # never written in place, or through a link: others share them
        for name in manifest.prefixes.keys() - remaining.keys():
            make_parents(folder, manifest.prefixes[name].file)
            (folder / manifest.prefixes[name].file).unlink()
        baked = bake(edited, to_bake, edited.tokeniser(), checkpoint, progress)
        changed = with_prefixes(edited, remaining | baked)
        card = model_card(changed, proof)
        changed = add_evidence(changed, CARD_FILE, card)
    return replace(changed, folder=artifact.folder)


def _link(source: str, target: str) -> None:
    """Share a file, which is never written in place; copy it where the disk shares none."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target)
