"""The store on disk: objects and commits, the writer, and the reader."""
