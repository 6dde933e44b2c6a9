"""Records of a store: receipts, plans, tokens, tables, and what they refer to."""
