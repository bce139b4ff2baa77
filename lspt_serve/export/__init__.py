"""Prompted models out of torch: the shared graph, or one task in one file."""

from lspt_serve.export.baked import export_bundle
from lspt_serve.export.shared import export_graph
from lspt_serve.export.wrapper import create_model

__all__ = ["create_model", "export_bundle", "export_graph"]
