"""The place of `errors`."""
