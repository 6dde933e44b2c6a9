"""The store on disk: objects and commits, the writer, and the reader."""

from pipeline.store.feature_store import FeatureStore

__all__ = ["FeatureStore"]
