"""From a request's texts or token ids to what is embedded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anna_export.artifact.folder import Artifact
from anna_export.encoder import best_prefix
from anna_export.errors import InputError
from anna_export.serve.refusal import Refusal
from anna_export.serve.scheduler import Item
from anna_export.serve.schema import InputType, Prompted, TokenizeRequest
from anna_export.serve.settings import Settings
from anna_export.text.prompt_formats import FORMATS
from anna_export.text.prompts import NO_PROMPT, Prompt

Given = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Read:
    """A request's texts, and how many of them were cut."""

    items: list[Item]
    cut: int

    @property
    def tokens(self) -> int:
        """Tokens of all texts, prompts included."""
        return sum(len(item.ids) for item in self.items)

    @property
    def cached(self) -> int:
        """Those that baked prefixes have computed."""
        return sum(item.cached for item in self.items)


class Reader:
    """Tokenises for a model, without having its weights.

    Args:
        artifact: The model.
        settings: The server's limits.
        field: What the texts are called in the body, for errors.
    """

    def __init__(self, artifact: Artifact, settings: Settings) -> None:
        manifest = artifact.manifest
        self.tokeniser = artifact.tokeniser()
        self.spec, self.contract, self.prompts = manifest.spec, manifest.contract, manifest.prompts
        self._settings = settings
        self._fronts: Mapping[Prompt, list[int]] = {
            manifest.prompts.by_name[name]: entry.ids for name, entry in manifest.prefixes.items()
        }

    def read(self, given: Given, asked: Prompted, *, truncate: bool, field: str) -> Read:
        """Return what is to be embedded.

        Args:
            given: A text, texts, or token ids of one or several.
            asked: The prompt, and what to do with token ids.
            truncate: Cut what is too long.
            field: What the body calls the texts.

        Raises:
            Refusal: If there is no text or too many, one is too long, or there is no such prompt.
        """
        dimensions = asked.dimensions
        if dimensions is not None and dimensions > self.spec.dim:
            raise Refusal.invalid(
                f"expected at most {self.spec.dim} dimensions, found {dimensions}", "dimensions"
            )
        values: list[Any] = [given] if isinstance(given, str) else list(given)
        if values and isinstance(values[0], int):
            values = [values]
        if not values:
            raise Refusal.invalid("expected at least one text, found none", field)
        if len(values) > self._settings.max_inputs:
            raise Refusal.invalid(
                f"expected at most {self._settings.max_inputs:,} texts, found {len(values):,}; "
                "send them in several requests",
                field,
            )
        if isinstance(values[0], str):
            read = self._texts(values, asked, truncate, field)
        else:
            read = self._ids(values, asked, truncate, field)
        if read.tokens > self._settings.max_request_tokens:
            raise Refusal.invalid(
                f"expected at most {self._settings.max_request_tokens:,} tokens in a request, "
                f"found {read.tokens:,}; send the texts in several requests",
                field,
            )
        return read

    def tokens(self, asked: TokenizeRequest) -> list[list[dict[str, Any]]]:
        """Return the tokens of texts as they are embedded, in TEI's shape.

        Raises:
            Refusal: If there are too many texts, or no such prompt.
        """
        texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
        if len(texts) > self._settings.max_inputs:
            raise Refusal.invalid(
                f"expected at most {self._settings.max_inputs:,} texts, found {len(texts):,}",
                "inputs",
            )
        try:
            rows = self.tokeniser.ids(texts, self.prompts.find(asked.prompt_name))
        except InputError as error:
            raise Refusal.invalid(str(error), "inputs") from None
        framing = {self.contract.bos_id, self.contract.eos_id}
        return [
            [
                {"id": token, "text": self.tokeniser.text(token), "special": token in framing}
                for token in row
                if asked.add_special_tokens or token not in framing
            ]
            for row in rows
        ]

    def prompt(self, asked: Prompted) -> Prompt:
        """Return the prompt that a request asks for.

        Raises:
            Refusal: If it asks for several, or one that is not there.
        """
        given = {
            name: value
            for name in ("prompt_name", "input_type", "instruction")
            if (value := getattr(asked, name)) is not None
        }
        if len(given) > 1:
            raise Refusal.invalid(
                f"expected one of prompt_name, input_type and instruction, found "
                f"{' and '.join(given)}",
                next(iter(given)),
            )
        if asked.instruction is not None:
            return FORMATS[self._settings.instruction_format].prompt(asked.instruction)
        try:
            if asked.input_type is InputType.DOCUMENT:
                default = self.prompts.default
                return self.prompts.find(self.prompts.documents.get(default or "", ""))
            return self.prompts.find(asked.prompt_name)
        except InputError as error:
            raise Refusal.invalid(str(error), "prompt_name", "unknown_prompt") from None

    def _texts(self, texts: Sequence[str], asked: Prompted, truncate: bool, field: str) -> Read:
        prompt = self.prompt(asked)
        try:
            framed = self.tokeniser.frame(texts, prompt)
        except InputError as error:
            raise Refusal.invalid(str(error), field) from None
        cut = [place for place, one in enumerate(framed) if one.cut]
        if cut and not truncate:
            first = framed[cut[0]]
            raise Refusal.invalid(
                f"expected at most {self.contract.max_tokens:,} tokens a text, prompt included, "
                f"found {len(first.ids) + first.cut:,}; shorten it, or send truncate: true",
                f"{field}.{cut[0]}",
                "text_too_long",
            )
        fronts = {prompt: self._fronts[prompt]} if prompt in self._fronts else {}
        return Read([self._item(one.ids, fronts) for one in framed], len(cut))

    def _ids(
        self, rows: Sequence[Sequence[int]], asked: Prompted, truncate: bool, field: str
    ) -> Read:
        if self.prompt(asked) is not NO_PROMPT and (
            asked.prompt_name or asked.input_type or asked.instruction
        ):
            raise Refusal.invalid(
                "expected texts behind a prompt, found token ids, which are used as they are", field
            )
        items, cuts = [], 0
        for place, row in enumerate(rows):
            if not row:
                raise Refusal.invalid("expected token ids, found none", f"{field}.{place}")
            if not 0 <= min(row) <= max(row) < self.spec.vocab_size:
                raise Refusal.invalid(
                    f"expected token ids from 0 to {self.spec.vocab_size - 1}, found "
                    f"{min(row) if min(row) < 0 else max(row)}",
                    f"{field}.{place}",
                )
            front, back = self._frame(asked.add_special_tokens)
            room = self.contract.max_tokens - len(front) - len(back)
            if len(row) > room and not truncate:
                raise Refusal.invalid(
                    f"expected at most {room:,} token ids, found {len(row):,}; shorten them, or "
                    "send truncate: true",
                    f"{field}.{place}",
                    "text_too_long",
                )
            cuts += len(row) > room
            items.append(self._item([*front, *row[:room], *back], self._fronts))
        return Read(items, cuts)

    def _frame(self, wanted: bool) -> tuple[list[int], list[int]]:
        bos, eos = self.contract.bos_id, self.contract.eos_id
        return ([bos] if wanted and bos is not None else [], [eos] if wanted else [])

    def _item(self, ids: Sequence[int], fronts: Mapping[Prompt, list[int]]) -> Item:
        prompt, shared = best_prefix(ids, fronts)
        return Item(tuple(ids), prompt, shared)
