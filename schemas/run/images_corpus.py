"""The section `corpus.images` of the run file: how images are read, and the class of scrambled ones."""

from __future__ import annotations

from pydantic import Field

from schemas.run.section import PathText, Section


class Images(Section):
    """Settings of a corpus of images."""

    image: str = Field("image", description="Column of a dataset, or array of an .npz file, with the images.")
    label: str = Field("label", description="Column, or array of an .npz file, with the class of each image.")
    labels: PathText | None = Field(
        None,
        description="File with the classes, .npy or idx, if `corpus.path` is a .npy or idx file. Default: "
        "for idx files, the one named labels instead of images.",
    )
    scrambled: bool = Field(
        False,
        description="Add a class `scrambled`, as large as the other classes on average: images of all "
        "classes, cut into blocks that are reassembled in a different order for each image.",
    )
    block: int = Field(
        4, ge=1, description="Side of a block in pixels; it must divide both sides of the images."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed that decides which images are scrambled, and how.")
