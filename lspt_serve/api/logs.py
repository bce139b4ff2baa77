"""What the service's lines in the log look like."""

import json
import logging
import warnings
from datetime import UTC, datetime
from typing import Any

from opentelemetry import trace

__all__ = ["JsonLines", "configure_logging", "ignore_warnings_of_decoders"]


class JsonLines(logging.Formatter):
    """A record as a JSON object on a line; `extra={"fields": {...}}` of a record is part of it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if (span := trace.get_current_span().get_span_context()).is_valid:
            line |= {
                "trace_id": trace.format_trace_id(span.trace_id),
                "span_id": trace.format_span_id(span.span_id),
            }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(log_format: str) -> None:
    """Log what BentoML lets through of its own, by its handlers, as `text` or `json`."""
    logging.getLogger("uvicorn.access").propagate = False  # it would make a line, to drop it
    bentoml = logging.getLogger("bentoml")
    logging.getLogger("lspt_serve").setLevel(bentoml.level)
    if log_format == "json":
        for handler in {*bentoml.handlers, *logging.root.handlers}:
            handler.setFormatter(JsonLines())


def ignore_warnings_of_decoders() -> None:
    """What Pillow has to say of a file: callers could fill the log with it, and Python's memory.

    For all of the process: Python keeps every text that it has warned of.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
