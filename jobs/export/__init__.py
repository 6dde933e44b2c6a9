"""`latentlake export FORMAT STORE --out DIR`: the store in the formats that other tools read.

Each format is a module with a function that writes into a new folder (`folder.new_export`) and returns how
much; `commands` has its options. docs/exports.md says what each consumer gets, and which of its commands read
it.
"""
