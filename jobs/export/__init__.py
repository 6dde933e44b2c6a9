"""`latentlake export FORMAT STORE --out DIR`: the store in the formats that other tools read.

Each format is a module: its `command` has the options and fills a new folder (`folder.exporting`), its
`export` returns how much it wrote. docs/exports.md says what each consumer gets, and which of its commands
read it.
"""
