"""What `latentlake cluster` is made of.

`kmeans`, `vectors`, `rows`: directions grouped by cosine; contexts and documents as vectors over features;
vectors that are read by blocks.
`features`: clusterings of features, by decoder direction, by `graph` (co-activation) and by `density`.
`groups`: clusterings of contexts and documents. `assignment`: the one pass over all shards that they need.
`naming`: the tokens that name a cluster. `placing`: features on a plane.
"""
