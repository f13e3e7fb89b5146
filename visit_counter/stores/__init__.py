"""The stores: one contract (`base`), one module for each place counts can be kept."""
