"""`latentlake report STORE`: a static site of a store's features, made from the store alone.

`build` states what is made in which order; `tables` lays the stored tables out by feature; `features`,
`clusters`, `columns` and `overview` make the pages, of `rows`, `strips` and `histogram`; `page` renders and
writes one. `jobs.tables.selection` says which features get a page, `pipeline.store.reading.windows` cuts the
token windows of their examples out of the shards.

A site opens from disk: no server, no network, no font, no library. Scripts are the two files in `static`;
data reach them as `.js` files that set a variable, for a page on `file://` may not fetch. Content goes
through jinja2's autoescape, or `strips`, which escapes itself; a Content-Security-Policy forbids all that is
not a file of the site. Pages hold no time and no absolute path: equal tables give equal bytes.
"""
