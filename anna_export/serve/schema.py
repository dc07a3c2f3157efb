"""The bodies of requests: OpenAI's and TEI's, with this server's own fields."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from anna_export.serve.refusal import Refusal

TokenIds = list[Annotated[StrictInt, Field(ge=0, le=2**31)]]
Body = TypeVar("Body", bound=BaseModel)


class EmbedDtype(StrEnum):
    """What a vector is written as, by sentence-transformers' names."""

    FLOAT32 = "float32"
    INT8 = "int8"
    UINT8 = "uint8"
    BINARY = "binary"
    UBINARY = "ubinary"


class InputType(StrEnum):
    """What a text is to the model's default task."""

    QUERY = "query"
    DOCUMENT = "document"


class EmbedFields(BaseModel):
    """Texts, their prompt, in one of three fields, and what their vectors are to be."""

    model_config = ConfigDict(extra="ignore")
    texts_field: ClassVar[str]

    prompt_name: StrictStr | None = Field(None, description="Name of one of the model's prompts.")
    input_type: InputType | None = Field(
        None, description="query: the default prompt; document: the prompt of its documents."
    )
    instruction: StrictStr | None = Field(
        None, description="Your own instruction, put into the model's prompt format."
    )
    add_special_tokens: bool = Field(
        False,
        description="Add begin and end tokens to token ids; otherwise they are used unchanged.",
    )
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="Return only the first dimensions, normalised again."
    )
    embed_dtype: EmbedDtype = Field(EmbedDtype.FLOAT32, description="Number format of the vectors.")

    @property
    def texts(self) -> str | list[str] | list[int] | list[list[int]]:
        """A text, texts, token ids of one, or token ids of several."""
        return getattr(self, self.texts_field)

    def prompt_fields(self) -> list[str]:
        """Return the names of the fields that say which prompt stands before every text."""
        names = ("prompt_name", "input_type", "instruction")
        return [name for name in names if getattr(self, name) is not None]


class OpenAIRequest(EmbedFields):
    """A body of POST /v1/embeddings."""

    texts_field = "input"
    input: StrictStr | list[StrictStr] | TokenIds | list[TokenIds] = Field(
        description="A text, texts, token ids of one, or token ids of several."
    )
    model: StrictStr | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: StrictStr | None = None
    truncate: bool = Field(
        False, description="Truncate texts that are too long; otherwise they are refused."
    )


class TeiRequest(EmbedFields):
    """A body of POST /embed."""

    texts_field = "inputs"
    inputs: StrictStr | list[StrictStr] | TokenIds | list[TokenIds] = Field(
        description="A text, texts, token ids of one, or token ids of several."
    )
    truncate: bool | None = Field(
        False, description="Truncate texts that are too long; otherwise they are refused."
    )
    truncation_direction: Literal["right", "Right"] | None = Field(
        None, description="Texts are truncated at their end."
    )
    normalize: Literal[True] | None = Field(True, description="Vectors have unit length.")


EmbedRequest = OpenAIRequest | TeiRequest


class TokenizeRequest(BaseModel):
    """A body of POST /tokenize."""

    model_config = ConfigDict(extra="ignore")

    inputs: StrictStr | list[StrictStr]
    add_special_tokens: bool = True
    prompt_name: StrictStr | None = None


def read_body(model: type[Body], content: bytearray) -> Body:
    """Read a JSON body.

    Raises:
        Refusal: Naming the first field that is not as it must be.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as invalid:
        # of the errors of a field's alternatives, the one that read furthest into it says most
        first = max(invalid.errors(include_input=False, include_url=False), key=_depth)
        param = ".".join(str(part) for part in first["loc"] if not _is_variant(part)) or None
        position = f"at {param}" if param else "in the body"
        raise Refusal.invalid(
            f"expected a body as /openapi.json says, found {position}: {first['msg']}", param
        ) from None


def _depth(error: Any) -> tuple[int, int]:
    return (sum(isinstance(part, int) for part in error["loc"]), -len(error["loc"]))


def _is_variant(part: object) -> bool:
    return isinstance(part, str) and ("[" in part or part in ("str", "int"))
