"""`latentlake report STORE`: a static site of a store's features, made from the store alone.

`build` states what is made in which order; `tables` lays the stored tables out by feature; `columns` and
`overview` make the pages of a site; `features` and `clusters` the pages of which there are many, of `facts`,
`rows` and `histogram`, as data; `page` renders and writes. `jobs.tables.selection` says which features get a
page, `pipeline.store.reading.windows` cuts the token windows of their examples out of the shards.

A site opens from disk: no server, no network, no font, no library. Scripts are the files in `static`; data
reach them as `.js` files that set a variable or call a function, for a page on `file://` may not fetch. A
hundred thousand features take 0.6 GB and some eight hundred files: 128 pages to a file, as
compressed JSON in which a token is a number, of which `static/pages.js` makes the page that the address
names (`feature.html#12`). Nothing of the corpus becomes HTML: jinja2 escapes it, or it becomes a text node.
A Content-Security-Policy forbids all that is not a file of the site. Pages hold no time and no absolute path:
equal tables give equal bytes.
"""
