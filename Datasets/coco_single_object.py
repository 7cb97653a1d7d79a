"""The homework's selection from COCO: images with a single large object, and its mask.

The two functions at the top are the whole idea. They need only pycocotools and Pillow, so you can
copy them into a script of your own:

    from PIL import Image
    from pycocotools.coco import COCO

    coco = COCO("annotations/instances_train2017.json")
    category_ids = coco.getCatIds(catNms=["cake", "dog", "motorcycle"])
    for category_id in category_ids:
        for annotation in single_large_objects(coco, category_id, category_ids):
            record = coco.loadImgs(annotation["image_id"])[0]
            image = Image.open("train2017/" + record["file_name"]).convert("RGB")
            image, mask = resized_image_and_mask(coco, annotation, image, size=64)

`CocoSelection` below applies them to a file that coco_annotations.py has checked, counts what it
finds, and keeps the options together.
"""

from collections import Counter

from PIL import Image


def single_large_objects(coco, category_id, counted_ids, min_bbox=200):
    """The annotations of one category that are large and the only object in their image.

    Args:
        coco: a pycocotools.coco.COCO.
        category_id: the category of the object.
        counted_ids: the categories whose objects are counted, `category_id` included; an empty list
            means every category. The image must have one object of these categories.
        min_bbox: smallest width and height of the object's box, in pixels of the original.
    """
    found = []
    for image_id in sorted(coco.getImgIds(catIds=[category_id])):
        objects = coco.loadAnns(coco.getAnnIds(imgIds=[image_id], catIds=counted_ids))
        if len(objects) != 1 or objects[0]["iscrowd"]:  # a crowd is many objects in one outline
            continue
        _, _, width, height = objects[0]["bbox"]
        if width >= min_bbox and height >= min_bbox:
            found.append(objects[0])
    return found


def resized_image_and_mask(coco, annotation, image, size=64):
    """The image and the object's mask (0 or 255) as Pillow images of size x size pixels."""
    mask = Image.fromarray(coco.annToMask(annotation) * 255)  # annToMask: (H, W) uint8, 0 or 1
    image = image.resize((size, size), Image.Resampling.BILINEAR)  # Pillow also antialiases
    mask = mask.resize((size, size), Image.Resampling.NEAREST)  # keeps the mask binary
    return image, mask


class CocoSelection:
    """The images of a checked annotation file that hold one large object of a class.

    "Only a single object instance" can mean three things, and the number of images depends on
    it. `single_instance` says which annotations of the image are counted:

        "selected"  those of all chosen classes (the default: every image has one mask)
        "category"  those of the object's own category; an image with one cake and one dog is
                    then selected twice, with two different masks
        "image"     all of them

    A crowd annotation counts, but is never the object. `limit` keeps the first `limit` objects of
    each class, by image id.

    Attributes: `samples`, a list of (annotation, class name) sorted by image and category id;
    `coco`, the pycocotools.coco.COCO to pass to resized_image_and_mask; `problems`, a sentence for
    each outline that cannot be used; `repeated_images`, the ids of images selected more than once.

    Errors: ValueError for a class that is not in the file, or impossible options.
    Source: https://cocodataset.org/#format-data
    """

    READINGS = ("category", "selected", "image")

    def __init__(
        self, annotations, classes, *, min_bbox=200, single_instance="selected", limit=None
    ):
        if single_instance not in self.READINGS:
            raise ValueError(f"single_instance {single_instance!r} is none of {self.READINGS}.")
        if min_bbox < 0:
            raise ValueError(f"min_bbox is {min_bbox}; it must be 0 or more.")
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}; it must be 1 or more.")
        self.annotations = annotations
        self.classes = tuple(classes)
        self.options = {
            "classes": list(classes),
            "min_bbox": min_bbox,
            "single_instance": single_instance,
            "limit": limit,
        }
        self.category_ids = annotations.find_categories(self.classes)  # {class name: id}
        self.coco, self.problems = annotations.to_pycocotools(self.category_ids.values())
        self.counts = {}
        chosen = []
        for name in self.classes:
            objects = self._find(name, single_instance, min_bbox)
            self.counts[name] = self._count(name, objects)
            chosen += [(annotation, name) for annotation in objects[:limit]]
        self.samples = sorted(chosen, key=lambda s: (s[0]["image_id"], s[0]["category_id"]))
        uses = Counter(annotation["image_id"] for annotation, _ in self.samples)
        self.repeated_images = [image_id for image_id, number in uses.items() if number > 1]

    def _find(self, name, reading, min_bbox):
        category_id = self.category_ids[name]
        counted_ids = {
            "category": [category_id],
            "selected": list(self.category_ids.values()),
            "image": [],  # pycocotools takes an empty list for every category
        }[reading]
        return single_large_objects(self.coco, category_id, counted_ids, min_bbox)

    def _count(self, name, objects):
        """One row of the table: images with the class, with one object (3 readings), and large."""
        images = self.coco.getImgIds(catIds=[self.category_ids[name]])
        alone = {reading: len(self._find(name, reading, 0)) for reading in self.READINGS}
        return {"images": len(images), **alone, "large": len(objects)}

    def table(self, kept=None):
        """The counts, one line per class, to compare with those of a report.

        Columns: images with the class; images with a single object in each of the three readings;
        those of the chosen reading that are large enough; those kept ({class: number}).
        """
        min_bbox = self.options["min_bbox"]
        rows = [
            (
                "class",
                "images",
                *(f"single in {reading}" for reading in self.READINGS),
                f"{self.options['single_instance']}, {min_bbox:g}x{min_bbox:g}",
                "kept",
            )
        ]
        for name in self.classes:
            rows.append((name, *self.counts[name].values(), "-" if kept is None else kept[name]))
        widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(f"{cell!s:>{width}}" for cell, width in zip(row, widths, strict=True))
            for row in rows
        )
