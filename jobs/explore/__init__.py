"""`latentlake explore STORE`: a local web application over a store.

`command` starts it, `guard` decides which requests are answered, `server` puts the pages together: a module
each, with the same as JSON below `/api`. `lake` has what they are made from, `typed` runs typed texts through
the model.
"""
