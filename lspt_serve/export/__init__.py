"""Prompted models out of torch: the shared graph (in int8 too), one task in one file, adapters."""

from lspt_serve.export.adapter import export_adapter
from lspt_serve.export.baked import export_bundle
from lspt_serve.export.quantise import quantise_graph
from lspt_serve.export.shared import export_graph
from lspt_serve.export.wrapper import create_model

__all__ = ["create_model", "export_adapter", "export_bundle", "export_graph", "quantise_graph"]
