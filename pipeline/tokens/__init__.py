"""Documents laid into contexts, and contexts into token shards."""
