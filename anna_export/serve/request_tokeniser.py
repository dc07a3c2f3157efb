"""From a request's texts or token ids to items of the queue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from anna_export.artifact.folder import Artifact
from anna_export.artifact.prefixes import StoredPrefixes
from anna_export.errors import InputError
from anna_export.serve.config import ServerConfig
from anna_export.serve.queue_item import QueueItem
from anna_export.serve.refusal import Refusal
from anna_export.serve.schema import EmbedDtype, EmbedRequest, TokenizeRequest
from anna_export.spec import Head
from anna_export.text.find_prefix import longest_cached_prefix, most_cached_tokens
from anna_export.text.prompt_formats import FORMATS, instruction_format
from anna_export.text.prompts import NO_PROMPT, Prompt

# The commonest client that sends ids of another tokenizer does so unless it is told not to.
_SEND_TEXTS: Final = (
    "send texts (LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False)"
)


@dataclass(frozen=True, slots=True)
class TokenisedTexts:
    """A request's texts, and how many of them were truncated."""

    items: list[QueueItem]
    truncated: int

    @property
    def tokens(self) -> int:
        """Tokens of all texts, prompts included."""
        return sum(item.tokens for item in self.items)

    @property
    def cached_tokens(self) -> int:
        """Those of them that cached prefixes hold."""
        return sum(item.cached_tokens for item in self.items)


class RequestTokeniser:
    """Tokenises requests for a model, without its weights.

    Args:
        artifact: The model.
        config: The server's limits.
    """

    def __init__(self, artifact: Artifact, config: ServerConfig) -> None:
        manifest = artifact.manifest
        self._tokeniser = artifact.tokeniser()
        self._spec, self._framing = manifest.spec, manifest.framing
        self._prompts, self._config = manifest.prompts, config
        self._format = config.instruction_format or instruction_format(manifest.prompts)
        self._prefix_ids: Mapping[Prompt, list[int]] = StoredPrefixes(artifact).ids

    def read(self, request: EmbedRequest) -> TokenisedTexts:
        """Return a request's texts as items of the queue.

        Raises:
            Refusal: If there is no text or too many, one is too long, or there is no such prompt;
                if the model truncates elsewhere, or has no vectors of that format.
        """
        field = request.texts_field
        self._require_format(request)
        inputs: Any = request.texts
        if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
            inputs = [inputs]
        if not inputs:
            raise Refusal.invalid("expected at least one text, found none", field)
        self._require_few(inputs, field, "; send them in several requests")
        tokenise = self._texts if isinstance(inputs[0], str) else self._ids
        texts = tokenise(inputs, request)
        if texts.tokens > self._config.max_request_tokens:
            raise Refusal.invalid(
                f"expected at most {self._config.max_request_tokens:,} tokens in a request, "
                f"found {texts.tokens:,}; send the texts in several requests",
                field,
            )
        return texts

    def tokens(self, request: TokenizeRequest) -> list[list[dict[str, Any]]]:
        """Return the tokens of texts as they are embedded, in TEI's shape.

        Raises:
            Refusal: If there are too many texts, or no such prompt.
        """
        texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
        self._require_few(texts, "inputs")
        try:
            rows = self._tokeniser.ids(texts, self._prompts.find(request.prompt_name))
        except InputError as error:
            raise Refusal.invalid(str(error), "inputs") from None
        special = {*self._framing.front_ids, *self._framing.back_ids}
        return [
            [
                {
                    "id": token,
                    "text": self._tokeniser.id_to_token(token),
                    "special": token in special,
                }
                for token in row
                if request.add_special_tokens or token not in special
            ]
            for row in rows
        ]

    def _require_format(self, request: EmbedRequest) -> None:
        """Refuse a request for vectors that the model does not have, or truncates no texts for."""
        dim = self._spec.embedding_dim
        if request.dimensions is not None and request.dimensions > dim:
            raise Refusal.invalid(
                f"expected at most {dim} dimensions, found {request.dimensions}", "dimensions"
            )
        integers = request.embed_dtype in (EmbedDtype.INT8, EmbedDtype.UINT8)
        if integers and not request.normalizes(self._spec.head.normalize):
            raise Refusal.invalid(
                f"expected unit vectors for {request.embed_dtype}, whose range is fixed, found "
                "those of a model that does not normalise; send normalize: true to /embed",
                "embed_dtype",
            )
        for name, side in request.truncation_sides().items():
            if side != self._framing.truncation_side:
                end = "end" if side == "left" else "start"
                raise Refusal.invalid(
                    f"expected texts truncated at their {end}, as this model's are, found {name} "
                    f"{getattr(request, name)}; send truncate: true without a side",
                    name,
                )

    def _prompt(self, request: EmbedRequest) -> Prompt:
        """Return the prompt of a request.

        Raises:
            Refusal: If it names several, or one that the model does not have.
        """
        names = request.prompt_fields()
        if len(names) > 1:
            raise Refusal.invalid(
                "expected one of prompt_name, input_type and instruction, found "
                f"{' and '.join(names)}",
                names[0],
            )
        if request.instruction is not None:
            return FORMATS[self._format].prompt(request.instruction)
        try:
            if request.input_type is None:
                return self._prompts.find(request.prompt_name)
            name = self._prompts.queries()
            if request.input_type.is_document:
                name = self._prompts.documents.get(name, "")
            return self._prompts.find(name)
        except InputError as error:
            raise Refusal.invalid(str(error), "prompt_name", "unknown_prompt") from None

    def _require_few(self, values: Sequence[Any], field: str, remedy: str = "") -> None:
        if len(values) > self._config.max_inputs:
            raise Refusal.invalid(
                f"expected at most {self._config.max_inputs:,} texts, found {len(values):,}"
                + remedy,
                field,
            )

    def _texts(self, texts: Sequence[str], request: EmbedRequest) -> TokenisedTexts:
        prompt, field = self._prompt(request), request.texts_field
        try:
            rows = self._tokeniser.frame(texts, prompt)
        except InputError as error:
            raise Refusal.invalid(str(error), field) from None
        truncated = [index for index, row in enumerate(rows) if row.truncated]
        if truncated and not request.truncates:
            longest = rows[truncated[0]]
            raise Refusal.invalid(
                f"expected at most {self._framing.max_tokens:,} tokens a text, prompt included, "
                f"found {len(longest.ids) + longest.truncated:,}; shorten it, or send "
                "truncate: true",
                f"{field}.{truncated[0]}",
                "text_too_long",
            )
        prefixes = self._prefix_ids
        prefixes = {prompt: prefixes[prompt]} if prompt in prefixes else {}
        head = self._spec.head
        counted = self._tokeniser.prompt_tokens(prompt) if head.leaves_out_prompt else 0
        items = [_item(row.ids, prefixes, head, counted) for row in rows]
        return TokenisedTexts(items, len(truncated))

    def _ids(self, rows: Sequence[Sequence[int]], request: EmbedRequest) -> TokenisedTexts:
        field = request.texts_field
        if self._prompt(request) is not NO_PROMPT and any(
            getattr(request, name) for name in request.prompt_fields()
        ):
            raise Refusal.invalid(
                "expected texts behind a prompt, found token ids, which are used as they are", field
            )
        front, back = self._framing.front_ids, self._framing.back_ids
        framed = not request.add_special_tokens
        room = self._framing.room
        items, truncated = [], 0
        for index, row in enumerate(rows):
            self._require_ids(row, f"{field}.{index}")
            if framed:
                row = self._unframed(row, f"{field}.{index}")
            if len(row) > room:
                truncated += 1
                if not request.truncates:
                    frame = len(front) + len(back) if framed else 0
                    raise Refusal.invalid(
                        f"expected at most {room + frame:,} token ids, found "
                        f"{len(row) + frame:,}; shorten them, or send truncate: true",
                        f"{field}.{index}",
                        "text_too_long",
                    )
            body = self._framing.cut(row, room)
            items.append(_item([*front, *body, *back], self._prefix_ids, self._spec.head))
        return TokenisedTexts(items, truncated)

    def _unframed(self, row: Sequence[int], param: str) -> Sequence[int]:
        """Return the token ids between the special tokens that every text of the model has.

        Raises:
            Refusal: If they are not there: the ids are another tokenizer's, or incomplete.
        """
        front, back = self._framing.front_ids, self._framing.back_ids
        between = row[len(front) : len(row) - len(back)]
        if [*front, *between, *back] == list(row):
            return between
        frame = " and ".join(
            f"{verb} with {token} ({self._tokeniser.id_to_token(token)})"
            for verb, tokens in (("begin", front), ("end", back))
            for token in tokens
        )
        raise Refusal.invalid(
            f"expected token ids of this model's tokenizer, which {frame}, found ids from {row[0]} "
            f"to {row[-1]}, as of another one; {_SEND_TEXTS}, or add_special_tokens: true with ids "
            "of this tokenizer",
            param,
            "foreign_token_ids",
        )

    def _require_ids(self, row: Sequence[int], param: str) -> None:
        if not row:
            raise Refusal.invalid("expected token ids, found none", param)
        least, most = min(row), max(row)
        if least < 0 or most >= self._spec.vocab_size:
            raise Refusal.invalid(
                f"expected token ids from 0 to {self._spec.vocab_size - 1}, found "
                f"{least if least < 0 else most}, an id of another tokenizer; {_SEND_TEXTS}",
                param,
            )


def _item(
    ids: Sequence[int], prefixes: Mapping[Prompt, list[int]], head: Head, prompt_tokens: int = 0
) -> QueueItem:
    most = most_cached_tokens(head, len(ids), prompt_tokens)
    prompt, cached_tokens = longest_cached_prefix(ids, prefixes, most)
    return QueueItem(tuple(ids[cached_tokens:]), prompt, cached_tokens, prompt_tokens)
