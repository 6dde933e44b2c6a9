"""What a store holds, read lazily or by shard."""
