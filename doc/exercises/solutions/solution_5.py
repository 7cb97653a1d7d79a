"""Exercise 5, a solution. Its counts: python solution_5.py ANNOTATIONS.json"""

import sys

READINGS = ("selected", "category", "image")


def counts_as(reading, annotations, category_id, chosen_ids):
    """Whether an image counts as one with a single large object of a category.

    annotations: all annotations of the image, each a dict as in COCO: category_id, iscrowd,
        bbox [x, y, width, height] and more.
    chosen_ids: the ids of all chosen categories, category_id included.

    Large: the box has a width and a height of 200 or more. The image must have exactly one
    annotation:
        "selected"   of all chosen categories together
        "category"   of the object's own category
        "image"      of any category
    A crowd (iscrowd is 1) and a small object count as annotations. A crowd is never the object.
    """
    own = [a for a in annotations if a["category_id"] == category_id]
    counted = {
        "selected": [a for a in annotations if a["category_id"] in chosen_ids],
        "category": own,
        "image": annotations,
    }[reading]
    if len(own) != 1 or len(counted) != 1 or own[0]["iscrowd"]:
        return False
    _, _, width, height = own[0]["bbox"]
    return width >= 200 and height >= 200


def count_images(coco, names):
    """How many images count: {"selected": {"cake": number, ...}, "category": ..., "image": ...}.

    coco: a pycocotools.coco.COCO. names: of the chosen categories.
    """
    chosen_ids = coco.getCatIds(catNms=names)
    counts = {reading: dict.fromkeys(names, 0) for reading in READINGS}
    for name in names:
        (category_id,) = coco.getCatIds(catNms=[name])
        for image_id in coco.getImgIds(catIds=[category_id]):
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
            for reading in READINGS:
                counts[reading][name] += counts_as(reading, annotations, category_id, chosen_ids)
    return counts


if __name__ == "__main__":
    from pycocotools.coco import COCO

    coco = COCO(sys.argv[1])
    for reading, numbers in count_images(coco, ["cake", "dog", "motorcycle"]).items():
        print(f"{reading:9}", numbers)
