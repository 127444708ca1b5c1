"""Tables in memory: a DataFrame of pandas or polars, or a table of Arrow, as Arrow columns."""

from typing import TYPE_CHECKING, Any

from hybrid_lightning.errors import ConfigError, reason

if TYPE_CHECKING:
    import pyarrow


def is_frame(source: Any) -> bool:
    """Whether an object gives its columns by Arrow's PyCapsule interface, or by that of dataframe interchange."""
    return hasattr(source, "__arrow_c_stream__") or hasattr(source, "__dataframe__")


def frame_name(frame: Any, place: str) -> str:
    """What stands for it where a file has its path, such as ``DataFrame``; that of ``predict_path`` has another one."""
    kind = type(frame).__name__
    return f"{kind} to predict" if place.endswith("predict_path") else kind


def arrow_of(frame: Any) -> "pyarrow.Table":
    """The columns; a named index of pandas is one of them."""
    import pyarrow
    import pyarrow.interchange

    try:
        if isinstance(frame, pyarrow.Table):
            return frame
        if type(frame).__module__.partition(".")[0] == "pandas":
            is_named = None not in frame.index.names
            return pyarrow.Table.from_pandas(frame, preserve_index=is_named)
        if hasattr(frame, "__arrow_c_stream__"):
            return _without_views(pyarrow.table(frame))
        return pyarrow.interchange.from_dataframe(frame)
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise ConfigError(
            f"the {type(frame).__name__} cannot be read as columns of one type each: {reason(error)} Give each column "
            f"one type, such as with astype(str)."
        ) from error


def _without_views(table: "pyarrow.Table") -> "pyarrow.Table":
    """Text of polars, as Arrow's functions take it; categories become text."""
    import pyarrow

    for position, field in enumerate(table.schema):
        kind = field.type
        is_category = pyarrow.types.is_dictionary(kind)
        if not pyarrow.types.is_string_view(kind.value_type if is_category else kind):
            continue
        chunks = []
        for chunk in table.column(position).chunks:
            texts = (chunk.dictionary if is_category else chunk).cast(pyarrow.large_string())
            chunks.append(texts.take(chunk.indices) if is_category else texts)
        table = table.set_column(position, field.name, pyarrow.chunked_array(chunks, pyarrow.large_string()))
    return table
