"""Tables in files under their public name; they live in `wprox.app.tables`."""

from wprox.app.tables import Table, read_table, write_table

__all__ = ["Table", "read_table", "write_table"]
