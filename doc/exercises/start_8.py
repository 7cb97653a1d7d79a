"""Exercise 8: your own shape class.

Check: python Examples/check_exercise.py 8 my_8.py
Train: python my_8.py        # 60 seconds of training, then scores and pictures
"""

import numpy as np
import torch
from torch.utils.data import Dataset

from SegStudio import SegStudio

SIZE = 64


def draw_shape(rng):
    """The pixels of one cross (or ring, or ...) of random size and place: (64, 64), True or False.

    rng: a numpy random generator, such as np.random.default_rng(7).
    """
    raise NotImplementedError


def paint(image, mask, pixels, rng):
    """The image and the mask with the new shape in front of the others.

    Shape: image (3, 64, 64) of 0 to 255, mask (6, 64, 64) uint8, pixels (64, 64) True or False.
    """
    raise NotImplementedError  # change the image and the mask; which planes?


class SixShapes(Dataset):
    """A data set of shapes, with your shape in front of the others in most images."""

    class_names = ("rectangle", "triangle", "disk", "oval", "star", "cross")
    mask_values = (50, 100, 150, 200, 250, 0)  # choose the last one; what fits into uint8?

    def __init__(self, shapes):
        self.shapes = shapes

    def __len__(self):
        return len(self.shapes)

    def __getitem__(self, index):
        item = self.shapes[index]
        image = item["image"]  # (3, 64, 64) float, 0 to 255
        mask = item["mask_tensor"]  # (5, 64, 64) uint8
        rng = np.random.default_rng(index)  # the item is the same each time it is read
        mask = torch.cat((mask, torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)))  # (6, 64, 64)
        if rng.random() < 0.8:
            image, mask = paint(image, mask, torch.from_numpy(draw_shape(rng)), rng)
        return {"image": image, "mask_tensor": mask}


def make_network():
    """A network with six output channels."""
    raise NotImplementedError


def main():
    """Train on your data set and test."""
    dls = SegStudio(classes=SixShapes.class_names, batch_size=16, seed=0)
    segmenter = SegStudio.SemanticSegmentation(dls, max_num_objects=6)
    segmenter.load_shapes(train_images=2000, test_images=200)
    segmenter.load_PurdueShapes5MultiObject_dataset(
        SixShapes(segmenter.dataserver_train), SixShapes(segmenter.dataserver_test)
    )
    net = make_network()
    segmenter.custom_run_code_for_training_for_semantic_segmentation(
        net, "BCEDice", optimizer=torch.optim.AdamW, max_seconds=60
    )
    segmenter.run_code_for_testing_semantic_segmentation(net)


if __name__ == "__main__":
    main()
