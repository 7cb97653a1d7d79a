"""Exercise 8, a solution: a cross.

Run it to train for 60 seconds, then it prints scores and saves pictures.
"""

import numpy as np
import torch
from torch.utils.data import Dataset

from SegStudio import SegStudio

SIZE = 64


def draw_shape(rng):
    """The pixels of one cross of random size, place and angle: (64, 64), True or False."""
    radius, angle = rng.uniform(6, 14), rng.uniform(0, np.pi / 2)
    row, column = rng.uniform(radius, SIZE - radius, 2)
    y, x = np.mgrid[:SIZE, :SIZE]
    y, x = y - row, x - column
    along = np.abs(x * np.cos(angle) + y * np.sin(angle))  # distances from the two bars' axes
    across = np.abs(y * np.cos(angle) - x * np.sin(angle))
    width = 0.3 * radius
    return ((along <= radius) & (across <= width)) | ((across <= radius) & (along <= width))


def paint(image, mask, pixels, rng):
    """The image and the mask with the cross in front of the other shapes."""
    color = torch.from_numpy(rng.integers(60, 256, 3)).float()
    image = torch.where(pixels, color[:, None, None], image)
    mask[:, pixels] = 0  # what is hidden behind the cross
    mask[5, pixels] = SixShapes.mask_values[5]
    return image, mask


class SixShapes(Dataset):
    """Another data set of shapes, with one more shape in front on most images."""

    class_names = ("rectangle", "triangle", "disk", "oval", "star", "cross")
    mask_values = (50, 100, 150, 200, 250, 25)  # 300 would be 44 in uint8

    def __init__(self, shapes):
        self.shapes = shapes

    def __len__(self):
        return len(self.shapes)

    def __getitem__(self, index):
        item = self.shapes[index]
        image = item["image"]  # (3, 64, 64) float, 0 to 255
        mask = item["mask_tensor"]  # (5, 64, 64) uint8
        rng = np.random.default_rng(index)  # the same item at each reading
        mask = torch.cat((mask, torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)))  # (6, 64, 64)
        if rng.random() < 0.8:
            image, mask = paint(image, mask, torch.from_numpy(draw_shape(rng)), rng)
        return {"image": image, "mask_tensor": mask}


def make_network():
    """A network with six output channels."""
    return SegStudio.SemanticSegmentation.UNet(out_channels=6)


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
