"""Executors hand shards to workers: in this process, or on Ray actors. They share everything but dispatch."""
