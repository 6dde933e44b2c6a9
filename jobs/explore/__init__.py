"""`latentlake explore STORE`: a local web application over a store.

`command` starts it, `guard` decides which requests are answered, `server` has the pages and the JSON of
`/api`, `typed` runs typed texts through the model.
"""
