"""IJB templates: one feature for each set of images and videos of a person.

Protocol: B. F. Klare et al., CVPR 2015; C. Whitelam et al., CVPRW 2017 (IJB-B), as insightface's scripts have
it.
"""

import numpy as np
from jaxtyping import ArrayLike, Float, Int


def ijb_template_features(
    features: ArrayLike, templates: ArrayLike, medias: ArrayLike
) -> tuple[Int[np.ndarray, " templates"], Float[np.ndarray, "templates dim"]]:
    """Features of templates, of length one, whose dot product is the score of two templates.

    The mean over the images of each medium within a template, so that a video counts as one; the sum over
    the media; over its length.

    Args:
        features: of images ``[images, dim]``.
        templates: number of each image's template, ``[images]``.
        medias: number of each image's photograph or video, ``[images]``.

    Returns:
        The templates' numbers, rising, and their features.

    Raises:
        ValueError: shapes that do not fit, or features that are not finite.

    Source:
        C. Whitelam et al., CVPRW 2017, Section 4.

    Example:
        >>> found, mean = ijb_template_features(np.eye(2), [7, 7], [0, 1])
        >>> found.tolist(), mean.round(4).tolist()
        ([7], [[0.7071, 0.7071]])
    """
    x = np.asarray(features, np.float64)
    given = {"templates": np.asarray(templates), "medias": np.asarray(medias)}
    for name, ids in given.items():
        if x.ndim != 2 or ids.shape != x.shape[:1]:
            raise ValueError(
                f"{name}: expected one number for each row of features [images, dim], got {ids.shape}"
                f" for {x.shape}"
            )
    if not np.isfinite(x).all():
        row = int(np.argwhere(~np.isfinite(x))[0, 0])
        raise ValueError(f"features: expected finite numbers, row {row} has others")
    pairs, of_image, counts = np.unique(
        np.stack(list(given.values()), 1), axis=0, return_inverse=True, return_counts=True
    )
    medium = np.zeros((len(pairs), x.shape[1]))
    np.add.at(medium, of_image.reshape(-1), x)
    unique, of_medium = np.unique(pairs[:, 0], return_inverse=True)
    template = np.zeros((len(unique), x.shape[1]))
    np.add.at(template, of_medium.reshape(-1), medium / counts[:, None])
    return unique, template / np.maximum(np.linalg.norm(template, axis=1, keepdims=True), 1e-12)
