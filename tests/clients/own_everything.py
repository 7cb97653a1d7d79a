# Copies of the __init__s (nn.Module's called through the parent), nested own blocks, images of 32x32
import numpy as np, torch, torchvision, os, sys, gzip, pickle
import torch.nn as nn
from SegStudio import *

class HW(SegStudio):
    class SemanticSegmentation(SegStudio.SemanticSegmentation):
        def __init__(self, dl_studio, max_num_objects):
            super(SegStudio.SemanticSegmentation, self).__init__()
            self.dl_studio = dl_studio
            self.max_num_objects = max_num_objects

        class SquaresDataset(torch.utils.data.Dataset):
            def __init__(self, n, size):
                self.dataset = {}
                rng = np.random.default_rng(0)
                for k in range(n):
                    im = np.zeros((3, size, size), np.uint8); m = np.zeros((5, size, size), np.uint8)
                    c = k % 5; y, x = rng.integers(2, size - 14, 2)
                    im[:, y:y+12, x:x+12] = rng.integers(80, 255, (3, 1, 1)); m[c, y:y+12, x:x+12] = 50 * (c + 1)
                    self.dataset[k] = [im, m, {c: [[x, y, x + 11, y + 11]]}]
            def __len__(self):
                return len(self.dataset)
            def __getitem__(self, idx):
                im, m, boxes = self.dataset[idx]
                bb = torch.zeros(5, 5, 4)
                for c in boxes:
                    bb[0, c] = torch.tensor(boxes[c][0])
                return {'image': torch.tensor(im).float(), 'mask_tensor': torch.tensor(m), 'bbox_tensor': bb}

        class mUnet(SegStudio.SemanticSegmentation.mUnet):
            class SkipBlockDN(SegStudio.SemanticSegmentation.SkipBlockDN):
                def forward(self, x):
                    out = super().forward(x)
                    return nn.functional.dropout(out, 0.1, self.training)
            def __init__(self, skip_connections=True, depth=4):
                super().__init__(skip_connections, depth)
                self.bn_out = nn.BatchNorm2d(5)
                self.scale = nn.Parameter(torch.ones(1, 5, 1, 1))
            def forward(self, x):
                return self.scale * super().forward(x / 255.) * 100

        class SegmentationLossMSE(nn.Module):
            def __init__(self, batch_size):
                super().__init__()
                self.batch_size = batch_size
            def forward(self, output, mask_tensor):
                total = torch.zeros(1, self.batch_size)
                for idx in range(self.batch_size):
                    total[0, idx] = torch.mean((output[idx] - mask_tensor[idx]) ** 2)
                return torch.sum(total) / self.batch_size

dls = HW(dataroot="./data", image_size=[32, 32], path_saved_model="./m.pth", momentum=0.9, learning_rate=1e-4,
         epochs=3, batch_size=5, classes=('rectangle', 'triangle', 'disk', 'oval', 'star'), use_gpu=True)
seg = HW.SemanticSegmentation(dls, 5)
tr, te = seg.SquaresDataset(20, 32), seg.SquaresDataset(10, 32)
seg.load_PurdueShapes5MultiObject_dataset(tr, te)
net = seg.mUnet()
seg.custom_run_code_for_training_for_semantic_segmentation(net, criterion=seg.SegmentationLossMSE(5), log_every=2)
scores = seg.run_code_for_testing_semantic_segmentation(net)
seg.run_code_for_training_for_semantic_segmentation(net)
print(scores)
for k in range(2):
    s = te[k]
    dls.display_tensor_as_image(s['image'] / 255.0, k)
    dls.display_tensor_as_image(s['mask_tensor'].max(0)[0], title="mask of %d" % k)
print("all done")
