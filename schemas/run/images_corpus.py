"""The section `corpus.images` of the run file: how images are read, and the class of scrambled ones."""

from __future__ import annotations

from pydantic import Field

from schemas.run.section import PathText, Section


class Images(Section):
    """What a corpus of images has in addition to its path."""

    image: str = Field("image", description="Column of a dataset, or array of an .npz file, of the images.")
    label: str = Field("label", description="Column, or array of an .npz file, of each image's class.")
    labels: PathText | None = Field(
        None,
        description="File of the classes, .npy or idx, where `corpus.path` is a .npy or idx file. Default: "
        "of idx files the one named labels instead of images.",
    )
    scrambled: bool = Field(
        False,
        description="Add a class `scrambled`, as many as the other classes have on average: images of all "
        "classes, cut into blocks that are put together in another order, each in its own.",
    )
    block: int = Field(4, ge=1, description="Pixels of a block's side; it must divide both sides.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of which images are scrambled, and how.")
