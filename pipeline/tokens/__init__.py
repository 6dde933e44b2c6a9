"""Documents packed into contexts, and contexts into token shards."""
