"""The bodies of requests: OpenAI's and TEI's, with this server's own fields."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError, PydanticUseDefault

from anna_export.serve.refusal import Refusal

TruncationSide = Literal["left", "right"]
TokenIds = list[Annotated[StrictInt, Field(ge=0, le=2**31)]]
Content = TypeVar("Content", bound="Body")


class EmbedDtype(StrEnum):
    """What a vector is written as, by sentence-transformers' names."""

    FLOAT32 = "float32"
    INT8 = "int8"
    UINT8 = "uint8"
    BINARY = "binary"
    UBINARY = "ubinary"


class InputType(StrEnum):
    """What a text is to the model's default task, in this server's, NVIDIA's and Cohere's words."""

    QUERY = "query"
    DOCUMENT = "document"
    PASSAGE = "passage"  # NVIDIA's
    SEARCH_QUERY = "search_query"  # Cohere's, as the next
    SEARCH_DOCUMENT = "search_document"

    @property
    def is_document(self) -> bool:
        """Whether the text is searched, not searched for."""
        return self not in (InputType.QUERY, InputType.SEARCH_QUERY)


class TruncateWord(StrEnum):
    """Whether texts are truncated, and where, in NVIDIA's and Cohere's words."""

    NONE = "NONE"
    START = "START"
    END = "END"


def _read_truncate(value: object) -> object:
    """Read `truncate`, so that there is one error for all that it may not be."""
    if isinstance(value, bool) or value in list(TruncateWord):
        return value
    message = "{value}; send true or false, END, START or NONE"
    raise PydanticCustomError("truncate", message, {"value": repr(value)[:40]})


Truncate = Annotated[
    bool | TruncateWord,
    BeforeValidator(_read_truncate),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": list(TruncateWord)}]}),
]
_SIDES: dict[object, TruncationSide] = {TruncateWord.START: "left", TruncateWord.END: "right"}


def _say_nullable(schema: dict[str, Any]) -> None:
    """Have a body's JSON Schema allow null in every optional field."""
    for name, field in schema["properties"].items():
        variants = field.get("anyOf", [])
        if name in schema.get("required", ()) or {"type": "null"} in variants:
            continue
        kind = {key: field.pop(key) for key in ("$ref", "anyOf", "enum", "type") if key in field}
        field["anyOf"] = [*(variants or [kind]), {"type": "null"}]


class Body(BaseModel):
    """A request's body: fields of other servers are ignored, and null is as good as no field."""

    model_config = ConfigDict(extra="ignore", json_schema_extra=_say_nullable)

    @field_validator("*", mode="before")
    @classmethod
    def null_is_left_out(cls, value: Any) -> Any:
        """Take the field's default for null, which clients write where nothing was set."""
        if value is None:
            raise PydanticUseDefault
        return value


class EmbedFields(Body):
    """Texts, their prompt, in one of three fields, and what their vectors are to be."""

    texts_field: ClassVar[str]

    prompt_name: StrictStr | None = Field(None, description="Name of one of the model's prompts.")
    input_type: InputType | None = Field(
        None,
        description="`query` or `search_query`: the prompt named query, else the default; "
        "`document`, `passage` or `search_document`: the prompt of its documents.",
    )
    instruction: StrictStr | None = Field(
        None, description="Your own instruction, put into the model's prompt format."
    )
    add_special_tokens: bool = Field(
        False,
        description="Add begin and end tokens to token ids; otherwise they must have them.",
    )
    truncate: Truncate = Field(
        False,
        description="Truncate texts that are too long, on the model's own side, which `END` or "
        "`START` may name; `false` and `NONE` refuse them.",
    )
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None,
        description="Return only the first dimensions; unit vectors are normalised again.",
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

    @property
    def truncates(self) -> bool:
        """Whether texts that are too long are truncated."""
        return self.truncate not in (False, TruncateWord.NONE)

    def truncation_sides(self) -> dict[str, TruncationSide]:
        """Return the side that texts are to be truncated on, by each field that names it."""
        side = _SIDES.get(self.truncate)
        return {} if side is None else {"truncate": side}

    def normalizes(self, model_does: bool) -> bool:
        """Whether vectors are to have unit length, by whether the model's own do."""
        return model_does


class OpenAIRequest(EmbedFields):
    """A body of POST /v1/embeddings."""

    texts_field = "input"
    input: StrictStr | list[StrictStr] | TokenIds | list[TokenIds] = Field(
        description="A text, texts, token ids of one, or token ids of several."
    )
    model: StrictStr | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: StrictStr | None = None


class TeiRequest(EmbedFields):
    """A body of POST /embed."""

    texts_field = "inputs"
    inputs: StrictStr | list[StrictStr] | TokenIds | list[TokenIds] = Field(
        description="A text, texts, token ids of one, or token ids of several."
    )
    truncation_direction: Literal["left", "Left", "right", "Right"] | None = Field(
        None, description="Where texts are truncated; other than the model does it is refused."
    )
    normalize: bool = Field(
        True,
        description="Return unit vectors; with `false` the model's own, which have unit length too "
        "if `normalized` in `/info` is true. The header `x-normalized` tells of every answer.",
    )

    def truncation_sides(self) -> dict[str, TruncationSide]:
        """As its base; `truncation_direction` counts where texts are truncated."""
        sides = super().truncation_sides()
        if self.truncates and self.truncation_direction is not None:
            left = self.truncation_direction in ("left", "Left")
            sides["truncation_direction"] = "left" if left else "right"
        return sides

    def normalizes(self, model_does: bool) -> bool:
        """As its base, or because the request says so."""
        return model_does or self.normalize


EmbedRequest = OpenAIRequest | TeiRequest


class TokenizeRequest(Body):
    """A body of POST /tokenize."""

    inputs: StrictStr | list[StrictStr]
    add_special_tokens: bool = True
    prompt_name: StrictStr | None = None


def read_body(model: type[Content], content: bytearray) -> Content:
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
