# Explores and changes the data through .dataset; own loaders; several learning rates
import numpy as np, torch, torchvision, random, copy, sys
import torch.nn as nn
from torch.utils.data import DataLoader, Subset, ConcatDataset
import matplotlib.pyplot as plt
from SegStudio import *

dls = SegStudio(dataroot="./data/PurdueShapes5MultiObject/", image_size=[64, 64], path_saved_model="./saved_model",
                momentum=0.9, learning_rate=np.float32(1e-4), epochs=np.int64(1), batch_size=4,
                convo_layers_config="1x[128,3,3,1]-MaxPool(2)", use_gpu=False,
                classes=['rectangle', 'triangle', 'disk', 'oval', 'star'])
dls.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
segmenter = SegStudio.SemanticSegmentation(dls, 5)

class Shapes(SegStudio.SemanticSegmentation.PurdueShapes5MultiObjectDataset):
    """Two-class masks in 0/1, and horizontal flips."""
    def __init__(self, dl_studio, segmenter, train_or_test, dataset_file, flip=False):
        super(Shapes, self).__init__(dl_studio, segmenter, train_or_test, dataset_file)
        self.flip = flip
    def __getitem__(self, idx):
        sample = super().__getitem__(idx)
        sample['mask_tensor'] = (sample['mask_tensor'] > 0).float()
        sample['image'] = sample['image'] / 255.0
        if self.flip and random.random() < 0.5:
            sample['image'] = torch.flip(sample['image'], [2])
            sample['mask_tensor'] = torch.flip(sample['mask_tensor'], [2])
        return sample

train = Shapes(dls, segmenter, 'train', "PurdueShapes5MultiObject-20-train.gz", flip=True)
val = Shapes(dls, segmenter, 'val', "PurdueShapes5MultiObject-20-test.gz")
counts = {name: 0 for name in train.label_map}
for idx in range(len(train.dataset)):
    r, g, b, mask, boxes = train.dataset[idx]
    assert len(r) == 4096 and np.array(mask).shape == (5, 64, 64)
    for name, value in train.label_map.items():
        if np.any(mask[(value - 50) // 50] == value):
            counts[name] += 1
    for key in boxes:
        for bb in boxes[key]:
            assert bb[2] > bb[0]
print(counts, train.num_shapes, train.class_labels, train.image_size)
for k, item in train.dataset.items():
    if k == 3:
        plt.imshow(np.stack([np.array(c).reshape(64, 64) for c in item[:3]], -1).astype(np.uint8)); plt.savefig("item3.png"); plt.close()
# only images with one or two shapes
few = [item for _, item in train.dataset.items() if sum(len(v) for v in item[4].values()) <= 3]
train.dataset = few
print("kept", len(train), len(train.dataset))
train.dataset = dict(enumerate(few[:8]))
assert len(train) == 8 and train[0]['image'].max() <= 1
segmenter.load_PurdueShapes5MultiObject_dataset(train, val)
both = ConcatDataset([train, Subset(val, range(8))])
segmenter.train_dataloader = DataLoader(both, batch_size=dls.batch_size, shuffle=True, drop_last=True, num_workers=2)
hist = {}
base = segmenter.mUnet(skip_connections=True, depth=2)
for lr in (1e-3, 1e-2):
    dls.learning_rate = lr
    model = copy.deepcopy(base)
    hist[lr] = segmenter.run_code_for_training_for_semantic_segmentation(model)
segmenter.run_code_for_testing_semantic_segmentation(model)
cpu_iou = []
with torch.no_grad():
    model.eval()
    for data in segmenter.test_dataloader:
        pred = model(data['image']) > 0.5
        truth = data['mask_tensor'] > 0.5
        inter = (pred & truth).sum((2, 3)).float(); union = (pred | truth).sum((2, 3)).float()
        cpu_iou.append((inter / (union + 1e-6)).mean().item())
        dls.display_tensor_as_image(truth[0, 0])
        dls.display_tensor_as_image(truth[0].any(0).expand(3, -1, -1), "any")
print("IoU %.3f" % np.mean(cpu_iou))
print("all done")
